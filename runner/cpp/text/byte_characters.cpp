// See byte_characters.h.
#include "text/byte_characters.h"

#include <array>
#include <cstdint>

namespace llava {
namespace {

constexpr int kCharacters = 256 + 68;  // code points; 68 bytes have one of their own

// Printable characters of Latin-1 stand for themselves. The other bytes, in order, have those from U+0100 on.
constexpr std::array<int16_t, kCharacters> byte_of_characters() {
  std::array<int16_t, kCharacters> bytes{};
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool is_printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    if (!is_printable) {
      bytes[byte] = -1;
      bytes[next++] = int16_t(byte);
    } else {
      bytes[byte] = int16_t(byte);
    }
  }
  return bytes;
}

constexpr auto kByteOf = byte_of_characters();

}  // namespace

bool spelled_bytes(std::string_view text, std::string& bytes) {
  bytes.clear();
  for (size_t at = 0; at < text.size(); ++at) {
    unsigned point = uint8_t(text[at]);
    if (point >= 0xC0 && at + 1 < text.size()) {  // of two bytes, as all of them are; others become too large
      point = (point & 0x3F) << 6 | (uint8_t(text[++at]) & 0x3F);
    }
    if (point >= kByteOf.size() || kByteOf[point] < 0) {
      bytes = text;
      return false;
    }
    bytes += char(kByteOf[point]);
  }
  return true;
}

}  // namespace llava
