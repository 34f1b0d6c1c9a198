package org.llava;

import java.util.ArrayList;
import java.util.List;

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

  /** A token, and the natural logarithm of its probability by the model's own logits. */
  public static final class Logprob {
    public final int id;
    public final double logprob;

    private Logprob(double[] numbers, int at) {
      id = (int) numbers[at];
      logprob = numbers[at + 1];
    }
  }

  /** How likely a token of the answer was, and the tokens that were the most likely in its place. */
  public static final class TokenLogprobs {
    public final Logprob chosen;

    /** The most likely first. */
    public final List<Logprob> top;

    private TokenLogprobs(List<Logprob> found) {
      chosen = found.get(0);
      top = List.copyOf(found.subList(1, found.size()));
    }
  }

  public final StopReason stopReason;

  /** Ids of its tokens, with the one that ends it. */
  public final int[] tokenIds;

  /** For each token, if {@link AskOptions#logprobs} asked for it; otherwise none. */
  public final List<TokenLogprobs> logprobs;

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

  /** Tokens that were guessed. */
  public final int drafted;

  /** Those of them that were right. */
  public final int accepted;

  Answer(double[] numbers, int[] tokenIds, double[] logprobs) {
    this.tokenIds = tokenIds;
    this.logprobs = tokens(logprobs);
    stopReason = StopReason.values()[(int) numbers[0]];
    load = new Stage(numbers, 0);
    image = new Stage(numbers, 1);
    prompt = new Stage(numbers, 2);
    sample = new Stage(numbers, 3);
    eval = new Stage(numbers, 4);
    drafted = (int) numbers[11];
    accepted = (int) numbers[12];
  }

  /** Returns what {@link Native#lastLogprobs} has found. */
  private static List<TokenLogprobs> tokens(double[] numbers) {
    List<TokenLogprobs> tokens = new ArrayList<>();
    for (int at = 0; at < numbers.length; ) {
      List<Logprob> found = new ArrayList<>();
      int end = at + 1 + 2 * (int) numbers[at];
      for (++at; at < end; at += 2) {
        found.add(new Logprob(numbers, at));
      }
      tokens.add(new TokenLogprobs(found));
    }
    return List.copyOf(tokens);
  }
}
