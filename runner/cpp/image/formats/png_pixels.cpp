// Converts the samples of a PNG to RGB.
#include "image/formats/png_pixels.h"

#include <cstring>

#include "image/formats/formats.h"
#include "image/formats/pixels.h"

namespace llava {
namespace {

constexpr uint8_t kBackground = 255;  // what shows through: white, as in a browser

void lay_on_background(uint8_t* pixel, int alpha) {
  for (size_t i = 0; i < 3 && alpha < 255; ++i) {
    pixel[i] = over_white(pixel[i], alpha);
  }
}

}  // namespace

PngPixels::PngPixels(const std::string& path, const PngChunks& chunks) : depth_(chunks.depth()) {
  const int color = chunks.color();
  channels_ = color == 2 ? 3 : color == 4 ? 2 : color == 6 ? 4 : 1;
  is_gray_ = color == 0 || color == 4;
  is_gray16_ = color == 0 && depth_ == 16;
  has_alpha_ = color == 4 || color == 6;
  const auto transparency = chunks.transparency.value_or(std::string_view());
  if (color == 3) {
    read_palette(path, chunks.palette, transparency);
  } else if (depth_ < 8) {
    scale_ = 255 / ((1 << depth_) - 1);
  }
  has_key_ = !transparency.empty() && (color == 0 || color == 2);
  for (size_t i = 0; i < 3 && has_key_; ++i) {
    const size_t at = color == 2 ? 2 * i : 0;
    const int key = uint8_t(transparency[at]) << 8 | uint8_t(transparency[at + 1]);
    // Pillow compares the lower byte of a key with samples of 8 bits, and one of a single bit counts as 0 or 255.
    key_[i] = is_gray16_ ? key : depth_ == 1 ? (key ? 255 : 0) : key & 255;
  }
}

void PngPixels::unpack(const uint8_t* in, int count, uint8_t* out, int across) const {
  const size_t stride = bytes() * size_t(across), stored = stored_bits() / 8;
  for (int x = 0; x < count; ++x, out += stride) {
    if (depth_ < 8) {
      const int bit = x * depth_;
      *out = uint8_t(in[bit / 8] >> (8 - depth_ - bit % 8) & ((1 << depth_) - 1));
    } else if (depth_ == 8 || is_gray16_) {
      std::memcpy(out, in + stored * size_t(x), stored);
    } else {
      for (size_t i = 0; i < size_t(channels_); ++i) {
        out[i] = in[stored * size_t(x) + 2 * i];  // of a color the upper byte, as Pillow takes it
      }
    }
  }
}

void PngPixels::convert(const uint8_t* in, uint8_t* out, int width) const {
  for (int x = 0; x < width; ++x, in += bytes(), out += 3) {
    if (!palette_.empty()) {
      std::memcpy(out, palette_[*in].data(), 3);
      continue;
    }
    if (is_gray16_) {
      const int value = in[0] << 8 | in[1];
      std::memset(out, has_key_ && value == key_[0] ? kBackground : value / 257, 3);
      continue;
    }
    for (size_t i = 0; i < 3; ++i) {
      out[i] = uint8_t(in[is_gray_ ? 0 : i] * scale_);
    }
    const bool is_clear = has_key_ && out[0] == key_[0] && out[1] == key_[1] && out[2] == key_[2];
    lay_on_background(out, has_alpha_ ? in[channels_ - 1] : is_clear ? 0 : 255);
  }
}

// Pillow begins with black. Where exactly one color is transparent and the others are opaque, it keeps the number of
// that color alone.
void PngPixels::read_palette(const std::string& path, std::string_view colors, std::string_view alphas) {
  if (colors.size() / 3 > 256) {
    fail_to_read(path, "its palette is too long");
  }
  palette_.resize(256, Rgb{0, 0, 0});
  for (size_t i = 0; i < colors.size() / 3; ++i) {
    std::memcpy(palette_[i].data(), colors.data() + 3 * i, 3);
  }
  const std::string_view ended = alphas.ends_with('\n') ? alphas.substr(0, alphas.size() - 1) : alphas;
  const size_t clear = ended.find('\0');
  const bool is_one = clear != ended.npos && ended.find_first_not_of('\xFF', clear + 1) == ended.npos &&
                      ended.find_first_not_of('\xFF') == clear;
  if (is_one ? clear >= 256 : alphas.size() > 256) {
    fail_to_read(path, "its transparency is too long");
  }
  for (size_t i = 0; i < (is_one ? clear + 1 : alphas.size()); ++i) {
    lay_on_background(palette_[i].data(), uint8_t(alphas[i]));
  }
}

}  // namespace llava
