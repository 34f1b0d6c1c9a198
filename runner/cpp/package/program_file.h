// A .pte as a file: what can be known of it before ExecuTorch maps and trusts it.
#pragma once

#include <string>

#include "base/digest.h"

namespace llava {

// Throws PackageError for what is not a whole .pte, by its size and first bytes alone: reading a map beyond the end of
// its file would kill the process.
void check_program_file(const std::string& path);

// A digest of all that ExecuTorch interprets, which is everything but large data. That is named by the SHA-256 of its
// bytes, where it is weights that XNNPACK packs. Throws PackageError for damaged files.
Digest digest_of_structure(const std::string& path);

// Compares the file with the SHA-256 in the manifest beside it, if there is one. Throws PackageError.
void check_against_manifest(const std::string& path);

}  // namespace llava
