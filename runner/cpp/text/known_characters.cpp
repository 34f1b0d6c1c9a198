// See known_characters.h.
#include "text/known_characters.h"

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "text/utf8.h"

namespace llava {
namespace {

constexpr std::string_view kLetter3 = "\u4E00", kLetter4 = "\U00020000", kNumber4 = "\U0001D7CE";
constexpr std::string_view kOther3 = "\u200B";  // neither a letter, a number nor a space

struct Range {
  uint32_t first;
  uint32_t last;
  std::string_view as;
};

// What is new in Unicode 15 and 16, which a PCRE2 before 10.45 does not know; and U+180E, which it takes for a space.
constexpr Range kUnknown[] = {{0x180E, 0x180E, kOther3},    {0x1C89, 0x1C8A, kLetter3},   {0xA7CB, 0xA7CD, kLetter3},
                              {0xA7DA, 0xA7DC, kLetter3},   {0x105C0, 0x105F3, kLetter4}, {0x10D40, 0x10D49, kNumber4},
                              {0x10D4A, 0x10D65, kLetter4}, {0x10D6F, 0x10D85, kLetter4}, {0x10EC2, 0x10EC4, kLetter4},
                              {0x1123F, 0x11240, kLetter4}, {0x11380, 0x11389, kLetter4}, {0x1138B, 0x1138B, kLetter4},
                              {0x1138E, 0x1138E, kLetter4}, {0x11390, 0x113B5, kLetter4}, {0x113B7, 0x113B7, kLetter4},
                              {0x113D1, 0x113D1, kLetter4}, {0x113D3, 0x113D3, kLetter4}, {0x116D0, 0x116E3, kNumber4},
                              {0x11BC0, 0x11BE0, kLetter4}, {0x11BF0, 0x11BF9, kNumber4}, {0x11F02, 0x11F02, kLetter4},
                              {0x11F04, 0x11F10, kLetter4}, {0x11F12, 0x11F33, kLetter4}, {0x11F50, 0x11F59, kNumber4},
                              {0x1342F, 0x1342F, kLetter4}, {0x13441, 0x13446, kLetter4}, {0x13460, 0x143FA, kLetter4},
                              {0x16100, 0x1611D, kLetter4}, {0x16130, 0x16139, kNumber4}, {0x16D40, 0x16D6C, kLetter4},
                              {0x16D70, 0x16D79, kNumber4}, {0x18CFF, 0x18CFF, kLetter4}, {0x1B132, 0x1B132, kLetter4},
                              {0x1B155, 0x1B155, kLetter4}, {0x1CCF0, 0x1CCF9, kNumber4}, {0x1D2C0, 0x1D2D3, kNumber4},
                              {0x1DF25, 0x1DF2A, kLetter4}, {0x1E030, 0x1E06D, kLetter4}, {0x1E4D0, 0x1E4EB, kLetter4},
                              {0x1E4F0, 0x1E4F9, kNumber4}, {0x1E5D0, 0x1E5ED, kLetter4}, {0x1E5F0, 0x1E5F0, kLetter4},
                              {0x1E5F1, 0x1E5FA, kNumber4}, {0x2B739, 0x2B739, kLetter4}, {0x2EBF0, 0x2EE5D, kLetter4},
                              {0x31350, 0x323AF, kLetter4}};

}  // namespace

std::string with_known_characters(std::string_view text) {
  std::string known(text);
  for (size_t at = 0, length; at < text.size(); at += length) {
    length = character_length(text.substr(at));
    if (length < kOther3.size()) {
      continue;
    }
    const uint32_t point = code_point(text.substr(at, length));
    const Range* next = std::upper_bound(
        std::begin(kUnknown), std::end(kUnknown), point,
        [](uint32_t p, const Range& range) { return p < range.first; });
    if (next != std::begin(kUnknown) && point <= std::prev(next)->last) {
      known.replace(at, length, std::prev(next)->as);
    }
  }
  return known;
}

}  // namespace llava
