// Numbers in files, read within bounds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace llava {

// Returns the unsigned number of `length` bytes at `at`, the least significant byte first unless `big_endian`; nullopt
// where the bytes end before it does.
inline std::optional<uint64_t> number_in(std::string_view bytes, uint64_t at, size_t length, bool big_endian = false) {
  if (at > bytes.size() || bytes.size() - at < length) {
    return std::nullopt;
  }
  uint64_t value = 0;
  for (size_t i = 0; i < length; ++i) {
    value = value << 8 | uint8_t(bytes[at + (big_endian ? i : length - 1 - i)]);
  }
  return value;
}

}  // namespace llava
