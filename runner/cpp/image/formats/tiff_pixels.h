// The pixels of TIFF files: which kinds there are, and how their rows are read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "image/formats/tiff_directory.h"

namespace llava {

enum class TiffColor { kGray, kIndex, kRgb, kCmyk };
enum class TiffAlpha { kNone, kStraight, kPremultiplied };

// How the samples of a pixel are stored, and what they mean.
struct TiffPixels {
  TiffColor color = TiffColor::kGray;
  TiffAlpha alpha = TiffAlpha::kNone;
  int bits = 8;              // a sample
  int samples = 1;           // a pixel, those that are passed over included
  int described = 1;         // of them, those whose meaning the tags give
  bool is_inverted = false;  // 0 is white
  bool is_signed = false;
  bool is_big_endian = false;
  bool is_reversed = false;  // the lowest bit of a byte comes first

  // The samples that are kept of each pixel, 8 bits each: its color, and alpha.
  int kept() const {
    return (color == TiffColor::kRgb ? 3 : color == TiffColor::kCmyk ? 4 : 1) + (has_alpha() ? 1 : 0);
  }
  bool has_alpha() const { return alpha != TiffAlpha::kNone; }
  int64_t row_bytes(int64_t width) const { return (width * bits * samples + 7) / 8; }
};

// Returns the kind of the pixels that the tags describe. Throws ImageError for those that Pillow does not read, and for
// those that have no set range.
TiffPixels pixels_of(const std::string& path, const TiffDirectory& directory, int64_t photometric);

// Reads `width` pixels of a row to `out`, whose pixels are `out_samples` bytes apart. Of pixels stored in separate
// planes, a row has one sample each.
void read_row(const TiffPixels& pixels, const uint8_t* row, int64_t width, uint8_t* out, int out_samples);

// Returns the color that premultiplied color and alpha stand for, in place.
void divide_by_alpha(uint8_t* pixel);

}  // namespace llava
