// Characters that PCRE2 takes for others than the library tokenizers, whose Oniguruma knows Unicode 16.
#pragma once

#include <string>
#include <string_view>

namespace llava {

// Returns a text, of UTF-8 characters, with each such character replaced by one of the same kind (letter, number or
// neither) and as many bytes that both know.
std::string with_known_characters(std::string_view text);

}  // namespace llava
