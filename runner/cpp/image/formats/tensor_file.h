// Reads image.pt: a uint8 [3, H, W] tensor that torch.save has written.
#pragma once

#include <string>

#include "image/image.h"

namespace llava {

// Returns the tensor as an image. Throws ImageError for files that are missing, damaged, or hold anything else.
ImageCHW read_tensor_file(const std::string& path);

}  // namespace llava
