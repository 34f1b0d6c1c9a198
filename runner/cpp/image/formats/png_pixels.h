// The pixels of a PNG: from the samples of its many kinds to RGB, as Pillow makes it.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "image/formats/png_chunks.h"

namespace llava {

class PngPixels {
 public:
  // Throws ImageError for a palette that is too long.
  PngPixels(const std::string& path, const PngChunks& chunks);

  // The size of a pixel: in the file, and unpacked.
  size_t stored_bits() const { return size_t(channels_ * depth_); }
  size_t bytes() const { return is_gray16_ ? 2 : size_t(channels_); }

  // Unpacks samples to a byte each; gray of 16 bits keeps two. `across` is the distance of the pixels in `out`.
  void unpack(const uint8_t* in, int count, uint8_t* out, int across) const;

  // Makes a row of RGB from unpacked samples: transparent pixels are laid on white.
  void convert(const uint8_t* in, uint8_t* out, int width) const;

 private:
  using Rgb = std::array<uint8_t, 3>;

  void read_palette(const std::string& path, std::string_view colors, std::string_view alphas);

  int depth_, channels_;
  bool is_gray16_, is_gray_, has_alpha_, has_key_ = false;
  int scale_ = 1;
  std::array<int, 3> key_{};
  std::vector<Rgb> palette_;
};

}  // namespace llava
