import static org.llava.LlavaException.Status.*;

import java.io.IOException;
import java.util.Arrays;
import java.util.List;
import org.llava.Answer.StopReason;
import org.llava.AskOptions;
import org.llava.LlavaException;
import org.llava.LlavaSession;
import org.llava.OpenOptions;

/** Mistakes are exceptions with a status, and the session stays usable. */
final class Mistakes {
  private static final String QUESTION = "What is in the image?";

  private Mistakes() {}

  static void refused(LlavaException.Status status, String reason, Runnable call) {
    try {
      call.run();
    } catch (LlavaException error) {
      Cases.check(error.status() == status && error.getMessage().contains(reason), error.status(), error.getMessage());
      return;
    }
    throw new AssertionError("nothing was thrown: " + reason);
  }

  @SuppressWarnings("unchecked")
  private static <T extends Throwable> boolean sneak(Throwable thrown) throws T {
    throw (T) thrown;
  }

  static void whatAListenerThrowsEndsTheAnswer(LlavaSession session) {
    for (Throwable thrown : List.of(new IllegalStateException(), new IOException(), new OutOfMemoryError())) {
      session.reset();
      session.addImage(Cases.scenes.get(1).file);
      try {
        session.ask(Cases.scenes.get(1).question, null, piece -> Mistakes.<RuntimeException>sneak(thrown));
        throw new AssertionError("nothing was thrown");
      } catch (Throwable caught) {
        Cases.check(caught == thrown, caught);
      }
      Cases.check(session.last().stopReason == StopReason.CANCELLED && session.position() > 0);
    }
    Cases.checkAnswers(session, Cases.scenes.subList(0, 2));
  }

  static void aListenerMayNotUseItsSession(LlavaSession session) {
    List<Runnable> calls =
        List.of(
            session::reset, session::position, session::last, session::close, () -> session.ask("again"));
    for (Runnable call : calls) {
      refused(BUSY, "its callback may only cancel", () -> session.ask(QUESTION, null, piece -> {
        call.run();
        return true;
      }));
    }
    Cases.checkAnswers(session, Cases.scenes.subList(0, 2));
  }

  static void nullIsAMistake(LlavaSession session) {
    List<Runnable> calls =
        List.of(
            () -> LlavaSession.open(null),
            () -> session.addImage(null),
            () -> session.addPixels((int[]) null, 5, 5),
            () -> session.addPixels((byte[]) null, 5, 5),
            () -> session.ask(null),
            () -> session.countTokens(null),
            () -> session.save(null),
            () -> session.restore(null));
    for (Runnable call : calls) {
      refused(MISUSE, " is null", call);
    }
  }

  static void mistakesHaveAStatus(LlavaSession session) throws IOException {
    Scene scene = Cases.scenes.get(0);
    String nowhere = Cases.scratch.resolve("nowhere").toString();
    OpenOptions options = new OpenOptions();
    options.cpuThreads = -1;
    session.addImage(scene.file);
    session.ask(scene.question);
    int position = session.position();
    refused(PACKAGE, "nowhere", () -> LlavaSession.open(nowhere));
    refused(PROMPT, "cpu_threads -1", () -> LlavaSession.open(Cases.packagePath, options));
    refused(IMAGE, "the image", () -> session.addImage(new byte[0]));
    refused(IMAGE, "the image", () -> session.addImage(Arrays.copyOf(scene.file, 100)));
    for (int[] size : new int[][] {{0, 5}, {-1, 5}, {5, -1}}) {
      refused(IMAGE, "the image", () -> session.addPixels(new int[75], size[0], size[1]));
      refused(IMAGE, "the image", () -> session.addPixels(new byte[75], size[0], size[1]));
    }
    refused(MISUSE, "has 24 pixels, and an image of 5 x 5 has 25", () -> session.addPixels(new int[24], 5, 5));
    refused(MISUSE, "has 24 pixels", () -> session.addPixels(new byte[74], 5, 5));
    refused(MISUSE, "has 24 pixels", () -> session.addPixels(new byte[74], Integer.MAX_VALUE, Integer.MAX_VALUE));
    refused(PROMPT, "the prompt is empty", () -> session.ask(" "));
    refused(PROMPT, "max_new_tokens -1", () -> session.ask(QUESTION, Cases.options(-1), null));
    AskOptions many = new AskOptions();
    many.logprobs = 101;
    refused(PROMPT, "logprobs 101: it must be from 0 to 100", () -> session.ask(QUESTION, many, null));
    refused(PROMPT, "zero character", () -> session.ask("a\0b"));
    refused(STATE, "No such file", () -> session.restore(nowhere));
    refused(STATE, "cannot be written", () -> session.save(nowhere + "/conversation"));
    Cases.check(session.position() == position);
  }

  static void aClosedSessionIsRefused(LlavaSession session) {
    LlavaSession closed = LlavaSession.open(Cases.packagePath);
    closed.close();
    closed.close();
    List<Runnable> calls =
        List.of(
            closed::cancel, closed::reset, closed::last, closed::context, closed::readAhead, closed::removeImages,
            () -> closed.ask(QUESTION), () -> closed.addImage(Cases.scenes.get(0).file), () -> closed.countTokens("a"),
            () -> closed.addPixels(new int[25], 5, 5), () -> closed.save("x"), () -> closed.restore("x"));
    for (Runnable call : calls) {
      refused(MISUSE, "is not open", call);
    }
  }
}
