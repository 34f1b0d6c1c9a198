// Reads an image file without knowing the model, so that a broken one is noticed before a model is loaded.
#pragma once

#include <string>
#include <string_view>
#include <variant>

#include "image/image.h"

namespace llava {

constexpr int kMinImageSide = 2;  // pixels

// The content of an image file, or of a file with a tensor (.pt).
using Image = std::variant<ImageHWC, ImageCHW>;

// Reads a .pt file by its name, and JPEG, PNG, and PPM with PGM and PBM by their content: as Pillow does, upright,
// 8-bit RGB, transparency laid on white. A JPEG of more pixels than Pillow takes without a warning is reduced. Throws
// ImageError for files that are missing, damaged, of another kind, smaller than kMinImageSide, or too large.
Image read_image(const std::string& path);

// As read_image, of the content of an image file. Messages call it `name`.
Image read_image_bytes(const std::string& name, std::string_view content);

}  // namespace llava
