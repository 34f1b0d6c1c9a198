package org.llava;

import java.nio.charset.StandardCharsets;
import java.util.concurrent.atomic.AtomicBoolean;

/**
 * A loaded package and one conversation with its model. docs/guides/embed.md shows how to use it.
 *
 * <p>Every method may be called from any thread. Calls for one session take turns: one that computes makes the others
 * wait. Only {@link #cancel} never waits. What goes wrong is a {@link LlavaException}. After a mistake in a question,
 * an image or an option the conversation is as before.
 */
public final class LlavaSession implements AutoCloseable {
  private final long number;
  private final AtomicBoolean closed = new AtomicBoolean();

  private LlavaSession(long number) {
    this.number = number;
  }

  /** Returns the version of the engine, such as "1.0.0". */
  public static String version() {
    return text(Native.version());
  }

  /** Opens a package, its folder or its .pte, with the default options. */
  public static LlavaSession open(String path) {
    return open(path, null);
  }

  /** Opens a package. Options that are null are the default ones. */
  public static LlavaSession open(String path, OpenOptions options) {
    OpenOptions chosen = options == null ? new OpenOptions() : options;
    return new LlavaSession(
        Native.open(
            bytes(path),
            bytes(chosen.tokenizerPath),
            bytes(chosen.packedCachePath),
            chosen.cpuThreads,
            chosen.check,
            bytes(chosen.draftModelPath)));
  }

  /** Ends the answer that is being made, and frees the memory. A second call does nothing. */
  @Override
  public void close() {
    if (!closed.getAndSet(true)) {
      try {
        Native.close(number);
      } catch (LlavaException error) { // from the listener, for example
        closed.set(false);
        throw error;
      }
    }
  }

  /** Adds an image to the next turn: the content of an image file. */
  public void addImage(byte[] file) {
    Native.addImage(number, file);
  }

  /** Adds an image to the next turn: ARGB pixels, as Android's Bitmap.getPixels gives them. What is clear is white. */
  public void addPixels(int[] argb, int width, int height) {
    Native.addArgb(number, argb, width, height);
  }

  /** Adds an image to the next turn: RGB pixels, 3 bytes each. */
  public void addPixels(byte[] rgb, int width, int height) {
    Native.addRgb(number, rgb, width, height);
  }

  /** Forgets the images that were added since the last turn. */
  public void removeImages() {
    Native.removeImages(number);
  }

  /** Reads the added images now, while the user still types: then the next turn begins sooner. */
  public void readAhead() {
    Native.readAhead(number);
  }

  /** Asks about the added images, and returns the answer. */
  public String ask(String question) {
    return ask(question, null, null);
  }

  /**
   * Asks about the added images, and returns the answer as far as it came. Options that are null are the default ones.
   *
   * @param listener gets each piece of the answer in the calling thread; it may be null. What it throws ends the answer
   *     and reaches the caller.
   */
  public String ask(String question, AskOptions options, TextListener listener) {
    AskOptions chosen = options == null ? new AskOptions() : options;
    Pieces pieces = new Pieces(listener);
    Native.ask(
        number,
        bytes(question),
        chosen.newConversation,
        chosen.maxNewTokens,
        chosen.seqLen,
        chosen.seed != null,
        chosen.seed == null ? 0 : chosen.seed,
        chosen.temperature,
        chosen.topP,
        chosen.topK,
        chosen.minP,
        chosen.repetitionPenalty,
        chosen.stops.stream().map(LlavaSession::bytes).toArray(byte[][]::new),
        chosen.logprobs != null,
        chosen.logprobs == null ? 0 : chosen.logprobs,
        chosen.draftMax,
        pieces);
    return pieces.answer.toString();
  }

  /** Ends the answer that is being made, from any thread, after the token or the prompt that is being computed. */
  public void cancel() {
    Native.cancel(number);
  }

  /** Forgets the conversation, its answer and the added images. */
  public void reset() {
    Native.reset(number);
  }

  /** Keeps the conversation in a file. One that exists is replaced once the new one is whole. */
  public void save(String path) {
    Native.save(number, bytes(path));
  }

  /** Goes on with a conversation that was saved by a session of the same program, in any process. */
  public void restore(String path) {
    Native.restore(number, bytes(path));
  }

  /** Returns how many tokens a text has. */
  public int countTokens(String text) {
    return Native.countTokens(number, bytes(text));
  }

  /** Returns how many positions the conversation takes: tokens, and parts of images. */
  public int position() {
    return Native.position(number);
  }

  /** Returns how many positions there are. */
  public int context() {
    return Native.context(number);
  }

  /** Returns token ids, stop reason, timings and perhaps log probabilities of the newest answer. */
  public Answer last() {
    return new Answer(Native.last(number), Native.lastIds(number), Native.lastLogprobs(number));
  }

  /** Returns UTF-8, or null for null: the engine names the argument. */
  private static byte[] bytes(String text) {
    if (text == null) {
      return null;
    }
    if (text.indexOf('\0') >= 0) { // C takes it for the end
      throw new LlavaException(
          LlavaException.Status.PROMPT, "a zero character cannot be in a text or a path; remove it");
    }
    return text.getBytes(StandardCharsets.UTF_8);
  }

  static String text(byte[] utf8) {
    return new String(utf8, StandardCharsets.UTF_8);
  }

  /** What the native code gives pieces of an answer to, each with whole characters. */
  private static final class Pieces implements Native.Receiver {
    final StringBuilder answer = new StringBuilder();
    final TextListener listener;

    Pieces(TextListener listener) {
      this.listener = listener;
    }

    @Override
    public boolean receive(byte[] utf8) {
      String piece = text(utf8);
      answer.append(piece);
      return listener == null || listener.onText(piece);
    }
  }
}
