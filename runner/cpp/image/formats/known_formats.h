// The file formats that people try, known by their first bytes.
#pragma once

#include <string>
#include <string_view>

namespace llava {

constexpr size_t kHeadBytes = 64;  // that a format is known by

// Throws ImageError for a file that begins as no image does that a runner reads; the message names what it is.
void check_format(const std::string& path, std::string_view head);

}  // namespace llava
