// Decodes the compressed pixels of TIFF files.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "image/formats/tiff_pixels.h"

namespace llava {

// What of a TIFF file is decoded to samples of 8 bits: those that TiffPixels keeps, one pixel after the other.
struct TiffImage {
  std::string_view content;
  int64_t width = 0;
  int64_t height = 0;
  TiffPixels pixels;
  std::vector<uint8_t> samples;

  uint8_t* at(int64_t x, int64_t y) { return samples.data() + (y * width + x) * pixels.kept(); }
};

// Decodes the image's samples, by libtiff. Throws ImageError for what is damaged.
void decode_compressed(const std::string& path, TiffImage& image);

}  // namespace llava
