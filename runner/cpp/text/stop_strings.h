// Texts that end an answer: it is shown up to the first of them. llava_runner/stop_strings.py is the same in Python.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace llava {

// The text of an answer on its way to the reader, who gets what stands before the first stop string. The token that
// completes a stop string is that of transformers' StopStringCriteria. Text that may be the beginning of a stop string
// is held back until this is known.
class StopStrings {
 public:
  // Throws PromptError for stop strings that are empty or not UTF-8, and for more than 16.
  explicit StopStrings(std::vector<std::string> stops);

  // Adds the text of one more token, and returns what can be shown by now. `hidden` comes before it: text that may be a
  // part of a stop string, but is not shown.
  std::string push(const std::string& text, const std::string& hidden = "");

  // Adds the last text, and returns all that is left to show.
  std::string finish(const std::string& text);

  // Returns whether a stop string is complete. Nothing is shown behind it.
  bool found() const { return found_; }

 private:
  size_t undecided() const;
  std::string release(size_t end);

  std::vector<std::string> stops_;
  std::string held_;   // the end of the text, as far as it is held back
  size_t hidden_ = 0;  // how many bytes at the beginning of it are never shown
  bool found_ = false;
};

}  // namespace llava
