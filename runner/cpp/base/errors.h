// Mistakes that a user can make. A program prints them in one line, and its exit code is 2: see base/exit.h.
#pragma once

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

// A saved conversation that cannot be written or read, is damaged, or is of another program.
class StateError : public UserError {
 public:
  using UserError::UserError;
};

// A prompt, or an option, that cannot be used.
class PromptError : public UserError {
 public:
  using UserError::UserError;
};

}  // namespace llava
