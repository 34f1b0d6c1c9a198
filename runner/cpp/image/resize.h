// Bicubic resizing, byte for byte as Pillow does it.
#pragma once

#include <stddef.h>

#include <cstdint>
#include <vector>

namespace llava {

// RGB, rows from the top, 3 bytes a pixel.
struct Picture {
  int width = 0;
  int height = 0;
  std::vector<uint8_t> pixels;

  Picture() = default;
  Picture(int width, int height) : width(width), height(height), pixels(size_t(width) * height * 3) {}

  uint8_t* row(int y) { return pixels.data() + size_t(y) * width * 3; }
  const uint8_t* row(int y) const { return pixels.data() + size_t(y) * width * 3; }
};

// Antialiased: a kernel with a = -0.5 (Keys, 1981), as wide as an output pixel is in the input when that is smaller.
Picture resize_bicubic(const Picture& picture, int width, int height);

}  // namespace llava
