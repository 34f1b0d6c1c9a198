// The chunks of a PNG that its pixels need, told apart and checked as Pillow does it.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "image/formats/orientation.h"

namespace llava {

struct PngChunks {
  std::string_view header;                       // IHDR, of 13 bytes
  std::string_view palette;                      // red, green, blue
  std::optional<std::string_view> transparency;  // tRNS, long enough for the kind of the image
  std::vector<std::string_view> pixels;          // deflated
  bool ends_in_pixels = false;                   // the last piece of them is cut short
  Metadata metadata;

  int depth() const { return uint8_t(header[8]); }
  int color() const { return uint8_t(header[9]); }
  int64_t width() const { return number(0); }
  int64_t height() const { return number(4); }
  bool is_interlaced() const { return header[12] != 0; }

 private:
  int64_t number(size_t at) const {
    int64_t value = 0;
    for (size_t i = 0; i < 4; ++i) {
      value = value << 8 | uint8_t(header[at + i]);
    }
    return value;
  }
};

// Throws ImageError for a damaged file. Checksums are compared only before the pixels; the end may be missing.
PngChunks read_png_chunks(const std::string& path, std::string_view content);

}  // namespace llava
