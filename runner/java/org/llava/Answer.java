package org.llava;

/** An answer as far as it has come: what was computed, and in which time. */
public final class Answer {
  /** Why an answer has ended, in the order of llava_stop_reason in llava.h. */
  public enum StopReason {
    /** It has not, or there was none. */
    NOT_STOPPED,
    /** The model has said all. */
    EOS,
    /** The most tokens or positions that were allowed are reached. */
    LENGTH,
    /** The context is full. */
    CONTEXT,
    /** By {@link LlavaSession#cancel}, or by the listener. */
    CANCELLED,
    /** A stop string has come. */
    STRING
  }

  /** Milliseconds, and how much was done in them. */
  public static final class Stage {
    public final double ms;
    public final int count;

    private Stage(double[] numbers, int stage) {
      ms = numbers[1 + 2 * stage];
      count = (int) numbers[2 + 2 * stage];
    }
  }

  public final StopReason stopReason;

  /** Ids of its tokens, with the one that ends it. */
  public final int[] tokenIds;

  /** Loading the package. */
  public final Stage load;

  /** Encoding images, in positions. */
  public final Stage image;

  /** Reading, in positions, images' among them; not those that the KV cache had already. */
  public final Stage prompt;

  /** Choosing tokens. */
  public final Stage sample;

  /** Computing tokens. */
  public final Stage eval;

  Answer(double[] numbers, int[] tokenIds) {
    this.tokenIds = tokenIds;
    stopReason = StopReason.values()[(int) numbers[0]];
    load = new Stage(numbers, 0);
    image = new Stage(numbers, 1);
    prompt = new Stage(numbers, 2);
    sample = new Stage(numbers, 3);
    eval = new Stage(numbers, 4);
  }
}
