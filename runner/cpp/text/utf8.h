// What a tokenizer must know about UTF-8.
#pragma once

#include <stddef.h>

#include <string_view>

namespace llava {

constexpr size_t kInvalid = 0;
constexpr size_t kIncomplete = size_t(-1);

// Returns how many bytes the first character of `text` has, 1 to 4; kInvalid where no character begins, kIncomplete
// where the text ends within one. Surrogates, overlong forms and code points beyond U+10FFFF are invalid. `text` is not
// empty.
size_t character_length(std::string_view text);

}  // namespace llava
