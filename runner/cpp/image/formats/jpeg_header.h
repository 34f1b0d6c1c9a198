// What stands in a JPEG before its pixels.
#pragma once

#include <string>
#include <string_view>

#include "image/formats/orientation.h"

namespace llava {

struct JpegHeader {
  int64_t width = 0;
  int64_t height = 0;
  int scale = 1;  // the image is decoded at 1/scale of its size, so that it is not too large
  Metadata metadata;
};

// Reads the header. Throws ImageError for what Pillow refuses by it, and for more scans or more memory than a sound
// image takes.
JpegHeader read_jpeg_header(const std::string& path, std::string_view content);

}  // namespace llava
