// The characters by which a tokenizer.json spells bytes: GPT-2's, in which a space is "Ġ".
#pragma once

#include <string>
#include <string_view>

namespace llava {

// Sets `bytes` to what a text of UTF-8 characters spells, and returns true. If a character stands for no byte, they are
// those of the text itself, and it returns false.
bool spelled_bytes(std::string_view text, std::string& bytes);

}  // namespace llava
