// Mistakes that a user can make. They are printed in one line, and the exit code is 2.
#pragma once

#include <algorithm>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace llava {

// Base class: the message says what is wrong, where, and what to do next.
class UserError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A program, tokenizer or manifest that is missing, damaged or does not belong together.
class PackageError : public UserError {
 public:
  using UserError::UserError;
};

// A file that is no image, or an image of a size that the model cannot see.
class ImageError : public UserError {
 public:
  using UserError::UserError;
};

// A prompt, or an option, that cannot be used.
class PromptError : public UserError {
 public:
  using UserError::UserError;
};

// Calls `work` and returns the exit code of the program: 0, or 2 after a UserError, which is printed.
template <typename Work>
int exit_cleanly(Work&& work) {
  try {
    work();
    return 0;
  } catch (const UserError& error) {
    std::string message = error.what();
    std::replace(message.begin(), message.end(), '\n', ' ');
    std::fprintf(stderr, "error: %s\n", message.c_str());
    return 2;
  }
}

}  // namespace llava
