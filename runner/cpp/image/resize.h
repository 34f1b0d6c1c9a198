// Bicubic resizing, byte for byte as Pillow does it.
#pragma once

#include "image/image.h"

namespace llava {

// Returns the image in another size, the width resized first. Antialiased: a kernel with a = -0.5 (Keys, 1981), as wide
// as an output pixel is in the input when that is smaller.
ImageHWC resize_bicubic(const ImageHWC& image, int width, int height);

}  // namespace llava
