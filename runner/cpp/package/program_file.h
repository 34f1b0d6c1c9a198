// What a program's file (.pte) is, before ExecuTorch maps it and trusts it.
#pragma once

#include <string>

namespace llava {

constexpr char kXnnpack[] = "XnnpackBackend";  // as programs name it

// Returns the one .pte in the folder of a package, or the path itself if it is no folder. Throws PackageError.
std::string find_program(const std::string& package);

// Returns the path of the tokenizer beside a program: tokenizer.bin, or tokenizer.json where that one alone is there.
std::string find_tokenizer(const std::string& program);

// Checks by size and first bytes alone that a file is a whole .pte: ExecuTorch maps it, and reading a map beyond the
// end of its file would kill the process. Throws PackageError.
void check_program_file(const std::string& path);

// Returns the SHA-256 of all that ExecuTorch interprets: the flatbuffer, then the segments that hold no weights. A
// program names the weights by the SHA-256 of their bytes, so it covers what they must be. 64 hexadecimal digits.
// Throws PackageError for damaged files.
std::string digest_of_structure(const std::string& path);

// Returns whether XNNPACK computes a part of a program. Throws PackageError for damaged files.
bool uses_xnnpack(const std::string& path);

}  // namespace llava
