// Unicode's normalization form C.
#pragma once

#include <string>
#include <string_view>

namespace llava {

// Returns a text of UTF-8 characters in normalization form C: composed where there is a composed character.
std::string nfc(std::string_view text);

}  // namespace llava
