// Mistakes a user can make; llava_main prints them in one line and exits with code 2.
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

// A file that is not a picture, or one whose size no model can see.
class ImageError : public UserError {
 public:
  using UserError::UserError;
};

// A prompt, or an option, that cannot be used.
class PromptError : public UserError {
 public:
  using UserError::UserError;
};

}  // namespace llava
