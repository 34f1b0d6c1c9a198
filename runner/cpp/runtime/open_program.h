// From what a command line says of a model to the loaded program, with the weights packed earlier where there are any.
#pragma once

#include <string>

#include "runtime/program.h"

namespace llava {

constexpr const char* kNoPackedCache = "off";

struct ProgramOptions {
  std::string model_path;
  std::string packed_cache_path;  // a folder, kNoPackedCache, or empty: beside the program
  LoadOptions load;
};

// Throws PackageError as Program does.
Program open_program(const ProgramOptions& options);

}  // namespace llava
