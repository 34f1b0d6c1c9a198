// The command line of llava_main.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "runtime/open_program.h"
#include "runtime/session.h"

namespace llava {

struct Options {
  ProgramOptions program;
  std::string tokenizer_path;
  std::vector<std::string> image_paths;
  std::string prompt;
  std::string image_aspect_ratio;
  AnswerOptions answer;
  bool interactive = false;
  bool json = false;
};

// Returns nullopt where --help or --version was asked for and is printed. Throws UserError for flags that do not exist,
// lack their value, or have one of the wrong kind.
std::optional<Options> parse_options(int argc, const char* const* argv);

}  // namespace llava
