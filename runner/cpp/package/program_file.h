// Checks of a program's file (.pte), before ExecuTorch maps it and trusts it.
#pragma once

#include <string>

#include "base/digest.h"

namespace llava {

// Returns the one .pte in the folder of a package, or the path itself if it is no folder. Throws PackageError.
std::string find_program(const std::string& package);

// Checks by size and first bytes alone that a file is a whole .pte: ExecuTorch maps it, and reading a map beyond the
// end of its file would kill the process. Throws PackageError.
void check_program_file(const std::string& path);

// Returns a digest of all that ExecuTorch interprets, which is everything but large data. Weights that XNNPACK packs
// are large data, but their names count, and they are the SHA-256 of their bytes. Throws PackageError for damaged
// files.
Digest digest_of_structure(const std::string& path);

// Compares the file with the SHA-256 in the manifest in its folder, if there is one. Throws PackageError.
void check_against_manifest(const std::string& path);

}  // namespace llava
