// Opens the program that a command line names, with the weights that an earlier start has packed.
#pragma once

#include <string>

#include "runtime/program.h"

namespace llava {

constexpr const char* kNoPackedCache = "off";

struct ProgramOptions {
  std::string model_path;
  std::string draft_model_path;   // of a model that guesses tokens, see DraftModel; empty: prompt lookup guesses
  std::string packed_cache_path;  // a folder, or kNoPackedCache; empty: the program's folder
  bool check = false;             // compare all of the program with its manifest first
  LoadOptions load;
};

// Packs the weights of a program into a file where there is none, for an open_program that comes when another program
// is loaded and so cannot. Where one was loaded already, nothing happens. Throws PackageError for a damaged program.
void pack_weights(const ProgramOptions& options);

// Returns the loaded program. What ExecuTorch interprets of it is compared with the manifest first. Throws PackageError
// for a damaged program, and as Program does.
Program open_program(const ProgramOptions& options);

}  // namespace llava
