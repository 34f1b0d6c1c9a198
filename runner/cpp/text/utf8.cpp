// Finds the ends of UTF-8 characters.
#include "text/utf8.h"

#include <cstdint>

namespace llava {

size_t character_length(std::string_view text) {
  const auto byte = [&](size_t i) { return uint8_t(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) {
    return 1;
  }
  const size_t length = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  if (length == 0) {
    return kInvalid;
  }
  // The second byte is bounded further after four of the lead bytes (Unicode standard, table 3-7).
  const uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < length; ++i) {
    if (i == text.size()) {
      return kIncomplete;
    }
    if (byte(i) < (i == 1 ? low : 0x80) || byte(i) > (i == 1 ? high : 0xBF)) {
      return kInvalid;
    }
  }
  return length;
}

uint32_t code_point(std::string_view text) {
  uint32_t point = text.size() == 1 ? uint8_t(text[0]) : uint8_t(text[0]) & (0x7F >> text.size());
  for (const char byte : text.substr(1)) {
    point = point << 6 | (uint8_t(byte) & 0x3F);
  }
  return point;
}

size_t invalid_length(std::string_view text) {
  size_t length = 1;
  while (length < text.size() && character_length(text.substr(0, length + 1)) == kIncomplete) {
    ++length;
  }
  return length;
}

namespace {

constexpr std::string_view kUnicodeSpaces[] = {"\t",     "\n",     "\v",     "\f",     "\r",     " ",      "\u0085",
                                               "\u00A0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003", "\u2004",
                                               "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200A", "\u2028",
                                               "\u2029", "\u202F", "\u205F", "\u3000"};
constexpr std::string_view kSeparators[] = {"\x1C", "\x1D", "\x1E", "\x1F"};

// Removes a space of a set from the start of a text, or from its end. Returns whether there was one.
template <size_t N>
bool remove_space(std::string_view& text, const std::string_view (&spaces)[N], bool at_end) {
  for (const std::string_view space : spaces) {
    if (at_end ? text.ends_with(space) : text.starts_with(space)) {
      at_end ? text.remove_suffix(space.size()) : text.remove_prefix(space.size());
      return true;
    }
  }
  return false;
}

size_t spaces(std::string_view text, bool at_end) {
  std::string_view rest = text;
  while (remove_space(rest, kUnicodeSpaces, at_end)) {
  }
  return text.size() - rest.size();
}

}  // namespace

size_t spaces_at_start(std::string_view text) {
  return spaces(text, false);
}

size_t spaces_at_end(std::string_view text) {
  return spaces(text, true);
}

std::string_view trimmed(std::string_view text) {
  for (const bool at_end : {false, true}) {
    while (remove_space(text, kUnicodeSpaces, at_end) || remove_space(text, kSeparators, at_end)) {
    }
  }
  return text;
}

}  // namespace llava
