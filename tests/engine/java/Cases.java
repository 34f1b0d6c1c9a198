import java.awt.image.BufferedImage;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.atomic.AtomicReference;
import javax.imageio.ImageIO;
import org.llava.Answer;
import org.llava.Answer.StopReason;
import org.llava.Answer.TokenLogprobs;
import org.llava.AskOptions;
import org.llava.LlavaSession;
import org.llava.OpenOptions;
import org.llava.TextListener;

/**
 * The Java binding: its answers are those of the Python runner, and mistakes are exceptions. test_java.py starts it.
 *
 * <p>Arguments: a package, a folder with what the Python runner answered, a folder to write to.
 */
final class Cases {
  private static final String QUESTION = "What is in the image?";
  private static final int NEW_TOKENS = 40; // that the Python runner was asked for

  static String packagePath;
  private static Path folder;
  static Path scratch;
  static List<Scene> scenes;

  /** A test that may throw anything. */
  private interface Case {
    void run(LlavaSession session) throws Exception;
  }

  public static void main(String[] arguments) throws Exception {
    packagePath = arguments[0];
    folder = Path.of(arguments[1]);
    scratch = Path.of(arguments[2]);
    scenes = scenesOf("scenes.tsv");
    List<Case> cases =
        List.of(
            Cases::answersAreThoseOfThePythonRunner,
            Cases::pixelsAreImagesToo,
            Cases::cancellingEndsAnAnswerWithinAToken,
            Mistakes::whatAListenerThrowsEndsTheAnswer,
            Mistakes::aListenerMayNotUseItsSession,
            Mistakes::nullIsAMistake,
            Mistakes::mistakesHaveAStatus,
            Mistakes::aClosedSessionIsRefused,
            Cases::conversationsAreKept,
            Cases::imagesAreReadAheadAndRemoved,
            Cases::samplingIsRepeated,
            Cases::choicesAreNarrowed,
            Cases::logProbabilitiesAreThoseOfThePythonRunner,
            Cases::anAnswerEndsBeforeAStopString,
            Guesses::changeNoAnswer,
            Guesses::ofAModelChangeNoAnswer,
            Cases::emojiAreText,
            Cases::threadsTakeTurns,
            Cases::memoryDoesNotGrow);
    try (LlavaSession session = LlavaSession.open(packagePath)) {
      for (Case each : cases) {
        session.reset();
        each.run(session);
      }
    }
    System.out.println(cases.size() + " passed");
  }

  private static List<Scene> scenesOf(String name) throws IOException {
    List<Scene> found = new ArrayList<>();
    for (String line : Files.readAllLines(folder.resolve(name))) {
      found.add(new Scene(line.split("\t")));
    }
    return found;
  }

  static void check(boolean holds, Object... seen) {
    if (!holds) {
      throw new AssertionError(Arrays.deepToString(seen));
    }
  }

  static AskOptions options(int maxNewTokens) {
    AskOptions options = new AskOptions();
    options.maxNewTokens = maxNewTokens;
    return options;
  }

  static void checkAnswers(LlavaSession session, List<Scene> expected) {
    AskOptions options = options(NEW_TOKENS);
    options.newConversation = true;
    for (Scene scene : expected) {
      StringBuilder pieces = new StringBuilder();
      session.addImage(scene.file);
      String text = session.ask(scene.question, options, piece -> pieces.append(piece).length() > 0);
      check(text.equals(scene.text) && pieces.toString().equals(text), text, pieces, scene.text);
      check(Arrays.equals(session.last().tokenIds, scene.ids), session.last().tokenIds, scene.ids);
    }
  }

  private static void answersAreThoseOfThePythonRunner(LlavaSession session) {
    check(scenes.size() == 50);
    checkAnswers(session, scenes);
    Answer last = session.last();
    check(last.stopReason == StopReason.EOS, last.stopReason);
    check(last.sample.count == last.tokenIds.length && last.prompt.ms > 0 && last.load.ms > 0);
    check(last.image.count > 0 && last.eval.count > 0);
    check(session.position() > last.image.count && session.position() < session.context());
    check(LlavaSession.version().matches("\\d+\\.\\d+\\.\\d+"), LlavaSession.version());
  }

  private static void pixelsAreImagesToo(LlavaSession session) throws IOException {
    for (Scene scene : scenes.subList(0, 5)) {
      BufferedImage image = ImageIO.read(new ByteArrayInputStream(scene.file));
      int width = image.getWidth();
      int height = image.getHeight();
      int[] argb = image.getRGB(0, 0, width, height, null, 0, width);
      byte[] rgb = new byte[3 * argb.length];
      for (int i = 0; i < rgb.length; ++i) {
        rgb[i] = (byte) (argb[i / 3] >> (16 - 8 * (i % 3)));
      }
      session.reset();
      session.addPixels(argb, width, height);
      check(session.ask(scene.question, options(NEW_TOKENS), null).equals(scene.text));
      session.reset();
      session.addPixels(rgb, width, height);
      check(session.ask(scene.question, options(NEW_TOKENS), null).equals(scene.text));
      check(session.last().image.count == 0); // the same image was encoded just now
    }
    int[] image = new int[100 * 50];
    for (int clear : new int[] {-1, 0, 0xff0000}) { // white; clear; red, and clear
      Arrays.fill(image, clear);
      session.reset();
      session.addPixels(image, 100, 50);
      session.ask(QUESTION);
      check((session.last().image.count == 0) == (clear != -1));
    }
  }

  private static void cancellingEndsAnAnswerWithinAToken(LlavaSession session) {
    List<String> pieces = new ArrayList<>();
    session.addImage(scenes.get(0).file);
    TextListener cancelling =
        piece -> {
          pieces.add(piece);
          if (pieces.size() == 2) {
            session.cancel();
          }
          return true;
        };
    String text = session.ask(scenes.get(0).question, null, cancelling);
    check(pieces.size() == 2 && text.equals(String.join("", pieces)), pieces);
    check(session.last().stopReason == StopReason.CANCELLED && session.last().tokenIds.length <= 3);
    session.ask("And now?", null, piece -> false);
    check(session.last().stopReason == StopReason.CANCELLED);
    pieces.clear();
    TextListener cancelledByAnother =
        piece -> {
          pieces.add(piece);
          CompletableFuture.runAsync(session::cancel).join();
          return true;
        };
    session.ask(QUESTION, null, cancelledByAnother);
    check(pieces.size() == 1 && session.last().stopReason == StopReason.CANCELLED, pieces);
    session.cancel(); // no answer is being made: nothing happens
    session.ask("How many?", options(2), null);
    check(session.last().stopReason != StopReason.CANCELLED);
  }

  private static void conversationsAreKept(LlavaSession session) {
    String path = scratch.resolve("Gespräch 🦙").toString();
    session.addImage(scenes.get(2).file);
    session.ask(scenes.get(2).question);
    session.save(path);
    check(Files.exists(Path.of(path)));
    int position = session.position();
    String expected = session.ask("Is it red?");
    session.reset();
    check(session.position() == 0);
    session.restore(path);
    check(session.position() == position && session.ask("Is it red?").equals(expected));
  }

  private static void imagesAreReadAheadAndRemoved(LlavaSession session) {
    session.addImage(scenes.get(4).file);
    session.removeImages();
    session.addImage(scenes.get(3).file);
    session.readAhead();
    check(session.ask(scenes.get(3).question).equals(scenes.get(3).text) && session.last().image.count == 0);
  }

  private static void samplingIsRepeated(LlavaSession session) {
    AskOptions options = options(30);
    options.newConversation = true;
    options.temperature = 3;
    options.topP = 0.99;
    options.seed = -7L;
    String first = session.ask(QUESTION, options, null);
    check(session.ask(QUESTION, options, null).equals(first));
    options.seed = 8L;
    check(!session.ask(QUESTION, options, null).equals(first));
  }

  private static void choicesAreNarrowed(LlavaSession session) {
    AskOptions options = options(NEW_TOKENS);
    options.newConversation = true;
    options.temperature = 9;
    options.topK = 1;
    session.addImage(scenes.get(5).file);
    check(session.ask(scenes.get(5).question, options, null).equals(scenes.get(5).text));
    options.topK = 0;
    options.minP = 1;
    session.addImage(scenes.get(5).file);
    check(session.ask(scenes.get(5).question, options, null).equals(scenes.get(5).text));
    options.temperature = 0;
    options.repetitionPenalty = 1e6;
    session.ask(QUESTION, options, null);
    int[] ids = session.last().tokenIds;
    check(Arrays.stream(ids).distinct().count() == ids.length, Arrays.toString(ids));
  }

  private static void logProbabilitiesAreThoseOfThePythonRunner(LlavaSession session) throws IOException {
    AskOptions options = options(NEW_TOKENS);
    options.newConversation = true;
    options.logprobs = 3;
    List<String> expected = Files.readAllLines(folder.resolve("logprobs.tsv"));
    check(expected.size() == 5);
    for (int i = 0; i < expected.size(); ++i) {
      session.addImage(scenes.get(i).file);
      session.ask(scenes.get(i).question, options, null);
      Answer last = session.last();
      String[] tokens = expected.get(i).split("\t");
      check(last.logprobs.size() == tokens.length && tokens.length == last.tokenIds.length, (Object) tokens);
      for (int token = 0; token < tokens.length; ++token) {
        TokenLogprobs found = last.logprobs.get(token);
        check(found.chosen.id == last.tokenIds[token] && found.top.size() == 3);
        check(found.top.get(0).id == found.chosen.id && found.top.get(0).logprob == found.chosen.logprob);
        String[] values = tokens[token].split(",");
        for (int at = 0; at < 3; ++at) { // sums differ in their last bits, which the unlikeliest tokens show most
          double logprob = found.top.get(at).logprob;
          double other = Double.parseDouble(values[at]);
          check(Math.abs(logprob - other) < 0.01 - 0.05 * other, logprob, other);
        }
      }
    }
    options.logprobs = 0;
    options.temperature = 4;
    options.seed = 5L;
    session.ask(QUESTION, options, null);
    List<TokenLogprobs> found = session.last().logprobs;
    check(found.stream().allMatch(token -> token.top.isEmpty() && token.chosen.logprob < 0));
    check(found.size() == session.last().tokenIds.length && found.get(0).chosen.id == session.last().tokenIds[0]);
    session.ask(QUESTION, options(3), null);
    check(session.last().logprobs.isEmpty() && session.last().tokenIds.length > 0);
  }

  private static void anAnswerEndsBeforeAStopString(LlavaSession session) {
    Scene scene = scenes.get(0);
    String stop = scene.text.substring(4, 6);
    AskOptions options = options(NEW_TOKENS);
    options.stops = List.of("nowhere 🦙", stop);
    session.addImage(scene.file);
    String text = session.ask(scene.question, options, null);
    check(text.equals(scene.text.substring(0, scene.text.indexOf(stop))), text);
    check(session.last().stopReason == StopReason.STRING);
  }

  private static void emojiAreText(LlavaSession session) throws IOException {
    for (String line : Files.readAllLines(folder.resolve("counts.tsv"))) {
      String[] fields = line.split("\t");
      check(session.countTokens(fields[0]) == Integer.parseInt(fields[1]), line);
    }
    OpenOptions options = new OpenOptions();
    options.tokenizerPath = folder.resolve("emoji.bin").toString();
    options.packedCachePath = "off";
    List<Scene> expected = scenesOf("emoji.tsv");
    check(expected.stream().anyMatch(scene -> scene.text.contains("🟦")));
    try (LlavaSession other = LlavaSession.open(packagePath, options)) {
      checkAnswers(other, expected);
    }
  }

  private static void threadsTakeTurns(LlavaSession session) throws InterruptedException {
    AtomicReference<Throwable> failure = new AtomicReference<>();
    List<Thread> threads = new ArrayList<>();
    for (int i = 0; i < 3; ++i) {
      Runnable work =
          () -> {
            try (LlavaSession own = LlavaSession.open(packagePath)) {
              checkAnswers(own, scenes.subList(0, 5));
              session.ask(QUESTION, options(3), null);
            }
          };
      Thread thread = new Thread(null, work, "with a small stack", 256 << 10);
      thread.setUncaughtExceptionHandler((which, thrown) -> failure.set(thrown));
      threads.add(thread);
      thread.start();
    }
    for (Thread thread : threads) {
      thread.join();
    }
    check(failure.get() == null, failure.get());
  }

  /** Returns what the process takes, with all of the heap, and what is in use of the heap, in kB. */
  private static long[] memory() throws IOException {
    System.gc();
    String status = Files.readString(Path.of("/proc/self/status"), StandardCharsets.UTF_8);
    Runtime runtime = Runtime.getRuntime();
    return new long[] {
      Long.parseLong(status.replaceAll("(?s).*VmRSS:\\s*(\\d+).*", "$1")),
      (runtime.totalMemory() - runtime.freeMemory()) / 1024
    };
  }

  private static void memoryDoesNotGrow(LlavaSession session) throws IOException {
    AskOptions options = options(100);
    options.newConversation = true;
    options.temperature = 5; // long answers of many pieces
    int[] argb = new int[300 * 300];
    long[] before = null;
    for (int i = 0; i < 400; ++i) {
      if (i == 100) {
        before = memory();
      }
      options.seed = (long) i;
      options.maxNewTokens = i % 50 == 0 ? 100 : 5;
      options.logprobs = i % 3 == 0 ? Integer.valueOf(i % 100) : null;
      if (i % 2 == 0) {
        session.addImage(scenes.get(i % 50).file);
      } else {
        session.addPixels(argb, 300, 300);
      }
      session.ask(scenes.get(i % 50).question, options, piece -> true);
      session.last();
    }
    long[] after = memory();
    System.out.println("memory before and after, in kB: " + Arrays.toString(before) + Arrays.toString(after));
    check(after[0] - before[0] < 6000 && after[1] - before[1] < 500);
  }
}
