// Resizing, byte for byte as Pillow does it.
#pragma once

#include <array>
#include <string>

#include "image/image.h"

namespace llava {

// How one side is resized: `total` pixels become `size`, and `keep` of these are wanted, from `first` on. The image
// begins `before` pixels into the total. What lies outside of it is padding, which is never stored.
struct Side {
  int total;
  int size;
  int keep;
  int before = 0;
  int first = 0;
};

// Returns the image in another size, the width resized first; padding has the color. `resample` is one of kResamples.
ImageHWC resize(
    const ImageHWC& image,
    const Side& width,
    const Side& height,
    const std::string& resample,
    const std::array<uint8_t, 3>& color);

}  // namespace llava
