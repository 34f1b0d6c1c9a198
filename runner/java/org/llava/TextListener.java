package org.llava;

/** Gets an answer while it is made. */
public interface TextListener {
  /**
   * Takes the next piece of the text. It may call {@link LlavaSession#cancel}; all other calls for its session are
   * refused.
   *
   * @return whether the answer goes on
   */
  boolean onText(String piece);
}
