// Opens the program that a command line names, with the weights that an earlier start has packed.
#pragma once

#include <string>

#include "runtime/program.h"

namespace llava {

constexpr const char* kNoPackedCache = "off";

struct ProgramOptions {
  std::string model_path;
  std::string packed_cache_path;  // a folder, or kNoPackedCache; empty: the program's folder
  LoadOptions load;
};

// Returns the loaded program. Throws PackageError as Program does.
Program open_program(const ProgramOptions& options);

}  // namespace llava
