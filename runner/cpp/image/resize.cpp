// Bicubic resizing in Pillow's integer arithmetic.
#include "image/resize.h"

#include <algorithm>
#include <cmath>

namespace llava {
namespace {

// Weights are integers with this many bits after the point: sums of 8-bit samples then fit into 32 bits.
constexpr int kPrecisionBits = 32 - 8 - 2;
constexpr double kSupport = 2.0;  // half the width of the kernel, in pixels

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) {
    return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  }
  if (x < 2.0) {
    return (((x - 5) * x + 8) * x - 4) * a;
  }
  return 0.0;
}

// The weights of one output sample along a side, for the samples of the image from `first` on, and what the padding
// weighs together.
struct Taps {
  int first = 0;
  std::vector<int32_t> weights;
  int32_t padding = 0;
};

std::vector<Taps> taps_along(const Side& side, int length) {
  const double scale = double(side.total) / side.size;
  const double stretch = std::max(scale, 1.0);
  const double support = kSupport * stretch;
  std::vector<Taps> all(side.keep);
  std::vector<double> weights;
  for (int out = 0; out < side.keep; ++out) {
    const double center = (side.first + out + 0.5) * scale;
    const int first = std::max(int(center - support + 0.5), 0);
    const int end = std::min(int(center + support + 0.5), side.total);
    weights.clear();
    double sum = 0.0;
    for (int in = first; in < end; ++in) {
      // Multiplied by the reciprocal, as Pillow does: the rounding has to come out the same.
      weights.push_back(bicubic((in - center + 0.5) * (1.0 / stretch)));
      sum += weights.back();
    }
    Taps& taps = all[out];
    taps.first = std::clamp(first - side.before, 0, length);
    for (int in = first; in < end; ++in) {
      const double weight = weights[size_t(in - first)];
      const double scaled = (sum != 0.0 ? weight / sum : weight) * (1 << kPrecisionBits);
      const auto integer = int32_t(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
      if (in >= side.before && in < side.before + length) {
        taps.weights.push_back(integer);
      } else {
        taps.padding += integer;
      }
    }
  }
  return all;
}

uint8_t rounded(int32_t sum) {
  return uint8_t(std::clamp(sum >> kPrecisionBits, 0, 255));
}

constexpr int32_t kHalf = 1 << (kPrecisionBits - 1);

ImageHWC resize_width(const ImageHWC& image, const Side& side, const std::array<uint8_t, 3>& color) {
  const std::vector<Taps> all = taps_along(side, image.width);
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

ImageHWC resize_height(const ImageHWC& image, const Side& side, const std::array<uint8_t, 3>& color) {
  const std::vector<Taps> all = taps_along(side, image.height);
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

ImageHWC resize_bicubic(
    const ImageHWC& image, const Side& width, const Side& height, const std::array<uint8_t, 3>& color) {
  return resize_height(resize_width(image, width, color), height, color);  // rounded to 8 bits in between
}

}  // namespace llava
