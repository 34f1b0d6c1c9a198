// Resizing in Pillow's integer arithmetic.
#include "image/resize.h"

#include <algorithm>
#include <utility>

#include "image/kernels.h"

namespace llava {
namespace {

// The weights of one output sample along a side, for the samples of the image from `first` on, and what the padding
// weighs together.
struct Taps {
  int first = 0;
  std::vector<int32_t> weights;
  int32_t padding = 0;
};

std::vector<Taps> taps_along(const Side& side, int length, const std::string& resample) {
  std::vector<Taps> all;
  for (const Weights& weights : weights_along(resample, side.total, side.size, side.first, side.keep)) {
    Taps taps;
    taps.first = std::clamp(weights.first - side.before, 0, length);
    for (size_t i = 0; i < weights.integers.size(); ++i) {
      const int in = weights.first + int(i);
      if (in >= side.before && in < side.before + length) {
        taps.weights.push_back(weights.integers[i]);
      } else {
        taps.padding += weights.integers[i];
      }
    }
    all.push_back(std::move(taps));
  }
  return all;
}

uint8_t rounded(int32_t sum) {
  return uint8_t(std::clamp(sum >> kPrecisionBits, 0, 255));
}

constexpr int32_t kHalf = 1 << (kPrecisionBits - 1);

using Color = std::array<uint8_t, 3>;

ImageHWC resize_width(const ImageHWC& image, const Side& side, const std::string& resample, const Color& color) {
  const std::vector<Taps> all = taps_along(side, image.width, resample);
  ImageHWC out(side.keep, image.height);
  for (int y = 0; y < out.height; ++y) {
    uint8_t* out_pixel = out.row(y);
    for (const Taps& taps : all) {
      int32_t sums[3];
      for (int channel = 0; channel < 3; ++channel) {
        sums[channel] = kHalf + taps.padding * color[channel];
      }
      const uint8_t* in = image.row(y) + 3 * size_t(taps.first);
      for (const int32_t weight : taps.weights) {
        sums[0] += weight * in[0];
        sums[1] += weight * in[1];
        sums[2] += weight * in[2];
        in += 3;
      }
      for (int channel = 0; channel < 3; ++channel) {
        *out_pixel++ = rounded(sums[channel]);
      }
    }
  }
  return out;
}

ImageHWC resize_height(const ImageHWC& image, const Side& side, const std::string& resample, const Color& color) {
  const std::vector<Taps> all = taps_along(side, image.height, resample);
  const size_t row_bytes = size_t(image.width) * 3;
  ImageHWC out(image.width, side.keep);
  std::vector<int32_t> sums(row_bytes);
  for (int y = 0; y < out.height; ++y) {
    const Taps& taps = all[y];
    for (size_t i = 0; i < row_bytes; ++i) {
      sums[i] = kHalf + taps.padding * color[i % 3];
    }
    for (size_t tap = 0; tap < taps.weights.size(); ++tap) {
      const uint8_t* in = image.row(taps.first + int(tap));
      for (size_t i = 0; i < row_bytes; ++i) {
        sums[i] += taps.weights[tap] * in[i];
      }
    }
    uint8_t* out_row = out.row(y);
    for (size_t i = 0; i < row_bytes; ++i) {
      out_row[i] = rounded(sums[i]);
    }
  }
  return out;
}

}  // namespace

ImageHWC resize(
    const ImageHWC& image,
    const Side& width,
    const Side& height,
    const std::string& resample,
    const std::array<uint8_t, 3>& color) {
  // Rounded to 8 bits in between.
  return resize_height(resize_width(image, width, resample, color), height, resample, color);
}

}  // namespace llava
