package org.llava;

/** How a package is opened. Fields that are left as they are have their defaults. */
public final class OpenOptions {
  /** The tokenizer's file; null: tokenizer.bin or tokenizer.json in the program's folder. */
  public String tokenizerPath;

  /** The folder of packed weights; null: the program's folder; "off": none. */
  public String packedCachePath;

  /** Threads for the whole process, to be chosen before the first session is opened; 0: ExecuTorch chooses. */
  public int cpuThreads;

  /** Whether all of the program is compared with its manifest first. */
  public boolean check;

  /**
   * The package of a small model that guesses tokens for this one, its folder or its .pte. It must have the same
   * tokenizer; no answer depends on it. Null: tokens are guessed by what was said before.
   */
  public String draftModelPath;
}
