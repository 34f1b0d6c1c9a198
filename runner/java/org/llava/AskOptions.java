package org.llava;

import java.util.List;

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

  /** Tokens are sampled from so many of the most likely ones; 0: from all. */
  public int topK;

  /** Tokens are sampled from those that are at least so many times as likely as the most likely one. */
  public double minP;

  /** Above 1, tokens that the conversation has are less likely; 0: 1, which changes nothing. */
  public double repetitionPenalty;

  /** The answer ends before the first of these texts. */
  public List<String> stops = List.of();

  /** Keeps how likely each token was, and so many of the most likely ones in its place, at most 100; null: neither. */
  public Integer logprobs;

  /**
   * Up to so many tokens are guessed at a time, at most 15, and checked at once; no choice depends on it. 0: 7; negative:
   * none are.
   */
  public int draftMax;
}
