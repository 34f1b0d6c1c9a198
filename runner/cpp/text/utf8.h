// What a tokenizer must know about UTF-8 and Unicode.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string_view>

namespace llava {

constexpr size_t kInvalid = 0;
constexpr size_t kIncomplete = size_t(-1);

// Returns how many bytes the first character of `text` has, 1 to 4; kInvalid where no character begins, kIncomplete
// where the text ends within one. Surrogates, overlong forms and code points beyond U+10FFFF are invalid. `text` is not
// empty.
size_t character_length(std::string_view text);

// Returns the code point of a character of UTF-8: `text` is that character alone.
uint32_t code_point(std::string_view text);

// Returns how many bytes at the beginning of `text`, where no whole character is, begin a character together: what
// Unicode calls a maximal subpart, and decoders replace by one U+FFFD. At least 1.
size_t invalid_length(std::string_view text);

// Returns how many bytes at the beginning, or at the end, of a text are spaces. These are Unicode's (White_Space).
size_t spaces_at_start(std::string_view text);
size_t spaces_at_end(std::string_view text);

// Returns a text without the spaces at both ends that a chat template's `trim` removes: Unicode's, and U+001C to
// U+001F.
std::string_view trimmed(std::string_view text);

}  // namespace llava
