package org.llava;

/**
 * The native methods, in runner/cpp/engine/jni.cpp and jni_info.cpp. Texts are UTF-8: JNI's own strings hold emoji in
 * another way.
 */
final class Native {
  static {
    System.loadLibrary("llava_jni");
  }

  private Native() {}

  /** What gets the pieces of an answer. The native code finds it by its name. */
  interface Receiver {
    boolean receive(byte[] utf8);
  }

  static native byte[] version();

  static native long open(
      byte[] path, byte[] tokenizer, byte[] packedCache, int cpuThreads, boolean check, byte[] draftModel);

  static native void close(long session);

  static native void addImage(long session, byte[] file);

  static native void addArgb(long session, int[] argb, int width, int height);

  static native void addRgb(long session, byte[] rgb, int width, int height);

  static native void removeImages(long session);

  static native void readAhead(long session);

  static native void ask(
      long session,
      byte[] text,
      boolean newConversation,
      int maxNewTokens,
      int seqLen,
      boolean hasSeed,
      long seed,
      double temperature,
      double topP,
      int topK,
      double minP,
      double repetitionPenalty,
      byte[][] stops,
      boolean hasLogprobs,
      int logprobs,
      int draftMax,
      Receiver receiver);

  static native void cancel(long session);

  static native void reset(long session);

  static native void save(long session, byte[] path);

  static native void restore(long session, byte[] path);

  static native int countTokens(long session, byte[] text);

  static native int position(long session);

  static native int context(long session);

  /** Returns what {@link Answer} takes: the stop reason, then milliseconds and count of each stage, then the
   * tokens that were guessed, and those that were right. */
  static native double[] last(long session);

  static native int[] lastIds(long session);

  /** Returns, for each token, how many entries follow, then id and log probability of each: first of itself. */
  static native double[] lastLogprobs(long session);
}
