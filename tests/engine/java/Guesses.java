import org.llava.AskOptions;
import org.llava.LlavaSession;

/** Tokens that are guessed make an answer faster, and change none. */
final class Guesses {
  private static final String QUESTION = "What is in the image?";

  private Guesses() {}

  static void changeNoAnswer(LlavaSession session) {
    AskOptions options = Cases.options(100);
    options.newConversation = true;
    options.repetitionPenalty = 0.01; // the answer says again what was said
    options.draftMax = -1;
    String expected = session.ask(QUESTION, options, null);
    Cases.check(session.last().drafted == 0 && session.last().accepted == 0);
    for (int most : new int[] {0, 1, 15}) {
      options.draftMax = most;
      Cases.check(session.ask(QUESTION, options, null).equals(expected), most, expected);
      Cases.check(session.last().drafted >= session.last().accepted && session.last().accepted > 0, most);
    }
  }
}
