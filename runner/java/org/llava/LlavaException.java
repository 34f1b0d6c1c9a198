package org.llava;

/** What went wrong in a call: the message says in one line what, where, and what to do next. */
public final class LlavaException extends RuntimeException {
  private static final long serialVersionUID = 1;

  /** The kind of a mistake, in the order of llava_status in llava.h. */
  public enum Status {
    /** A file of the package is missing or damaged, or they do not belong together. */
    PACKAGE,
    /** What was given is no image, or one that the model cannot see. */
    IMAGE,
    /** A text or an option that cannot be used. */
    PROMPT,
    /** A saved conversation is missing, damaged or of another program, or cannot be written. */
    STATE,
    /** An argument that is null or of a wrong size, or a session that is closed. */
    MISUSE,
    /** A listener called its own session; it may only cancel. */
    BUSY,
    /** Memory has run out. */
    NO_MEMORY,
    /** A mistake in the engine; please report it. */
    BUG
  }

  private static final int FIRST = 2; // LLAVA_PACKAGE_ERROR

  private final Status status;

  LlavaException(Status status, String message) {
    super(message);
    this.status = status;
  }

  /** What the native code calls. */
  LlavaException(int status, byte[] message) {
    this(Status.values()[status - FIRST], LlavaSession.text(message));
  }

  /** Returns the kind of the mistake. */
  public Status status() {
    return status;
  }
}
