// Images in memory, by the layout of their bytes: as files decode to, and as the vision encoder reads them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace llava {

// The sides of what any vision encoder takes are at most this, in pixels. Image files may be larger: they are resized.
constexpr int kImageSideAtMost = 2048;

// uint8 [height, width, 3]: rows from the top, and a pixel's red, green and blue next to each other.
struct ImageHWC {
  int height = 0;
  int width = 0;
  std::vector<uint8_t> bytes;

  ImageHWC() = default;
  ImageHWC(int width, int height) : height(height), width(width), bytes(size_t(width) * height * 3) {}

  uint8_t* row(int y) { return bytes.data() + size_t(y) * width * 3; }
  const uint8_t* row(int y) const { return bytes.data() + size_t(y) * width * 3; }
};

// uint8 [3, height, width]: all of red, then all of green, then all of blue.
struct ImageCHW {
  int height = 0;
  int width = 0;
  std::vector<uint8_t> bytes;
};

}  // namespace llava
