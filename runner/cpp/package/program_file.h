// What a program's file (.pte) is, before ExecuTorch maps it and trusts it.
#pragma once

#include <string>

namespace llava {

constexpr char kXnnpack[] = "XnnpackBackend";  // as programs name it
constexpr char kVisionEncoder[] = "vision_encoder";

// Returns the one .pte in the folder of a package, or the path itself if it is no folder. Throws PackageError.
std::string find_program(const std::string& package);

// Returns the path of the tokenizer beside a program: tokenizer.bin, or tokenizer.json where that one alone is there.
std::string find_tokenizer(const std::string& program);

// Checks by size and first bytes alone that a file is a whole .pte: ExecuTorch maps it, and reading a map beyond the
// end of its file would kill the process. Throws PackageError.
void check_program_file(const std::string& path);

// A program without its weights, read once. All of it throws PackageError for damaged files.
class ProgramStructure {
 public:
  explicit ProgramStructure(const std::string& path);

  // Returns the SHA-256 of all that ExecuTorch interprets: the flatbuffer, then the segments that hold no weights. A
  // program names the weights by the SHA-256 of their bytes, so it covers what they must be. 64 hexadecimal digits.
  const std::string& digest() const { return digest_; }

  // Returns whether XNNPACK computes a part of the program.
  bool uses_xnnpack() const;

  // Returns whether the program has a vision encoder.
  bool sees_images() const;

 private:
  std::string path_;
  std::string flatbuffer_;
  std::string digest_;
};

}  // namespace llava
