// Reads pictures as Pillow does: upright, 8-bit RGB, transparency laid on white.
#pragma once

#include <string>

#include "image/resize.h"

namespace llava {

// JPEG, PNG and binary PPM, told apart by their content. Throws ImageError for files that are missing, damaged, of
// another kind, or of more pixels than Pillow takes without a warning.
Picture read_picture(const std::string& path);

}  // namespace llava
