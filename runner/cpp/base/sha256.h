// SHA-256 (FIPS 180-4), the checksum of a package's files.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

namespace llava {

class Sha256 {
 public:
  void add(std::span<const uint8_t> bytes);

  // Returns 64 hexadecimal digits. Nothing may be added after it.
  std::string digest();

 private:
  void compress(const uint8_t* block);

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> rest_;
  uint64_t size_ = 0;
};

// Returns 64 hexadecimal digits; an empty string where the file cannot be read to its end.
std::string sha256_of_file(const std::string& path);

}  // namespace llava
