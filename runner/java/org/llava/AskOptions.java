package org.llava;

/** How a turn is taken. Fields that are left as they are have their defaults. */
public final class AskOptions {
  /**
   * False: the text is the next question, whatever is in it. True: it begins a new conversation, and may be a whole
   * prompt, with {@code <image>} in it or the assistant's cue.
   */
  public boolean newConversation;

  /** The most tokens of the answer; 0: as many as the context has room for. */
  public int maxNewTokens;

  /** The most positions of the conversation with its answer; 0: the context. */
  public int seqLen;

  /** Repeats the choices of sampling; null: they are always new. */
  public Long seed;

  /** 0: the most likely token is taken. */
  public double temperature;

  /** Tokens are sampled from the most likely ones, whose probabilities add up to this; 0: 1, which means all. */
  public double topP;
}
