import static org.llava.LlavaException.Status.PACKAGE;

import java.util.List;
import org.llava.Answer;
import org.llava.AskOptions;
import org.llava.LlavaSession;
import org.llava.OpenOptions;

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

  /** The model drafts for itself: without an image each guess is right, but the end is not counted. */
  static void ofAModelChangeNoAnswer(LlavaSession session) {
    OpenOptions options = new OpenOptions();
    options.draftModelPath = Cases.packagePath;
    try (LlavaSession drafted = LlavaSession.open(Cases.packagePath, options)) {
      for (String question : List.of(QUESTION, "How many shapes are there?")) {
        Cases.check(drafted.ask(question).equals(session.ask(question)), question);
        Answer last = drafted.last();
        Cases.check(last.accepted >= last.drafted - 1 && last.accepted > 2, last.accepted, last.drafted);
      }
      Cases.checkAnswers(drafted, Cases.scenes.subList(0, 5));
    }
    options.draftModelPath = Cases.scratch.resolve("nowhere").toString();
    Mistakes.refused(PACKAGE, "nowhere does not exist", () -> LlavaSession.open(Cases.packagePath, options));
  }
}
