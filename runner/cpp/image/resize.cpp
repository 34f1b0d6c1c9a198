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

// The weights of one output sample along an axis, for the inputs from `first` on.
struct Taps {
  int first;
  std::vector<int32_t> weights;
};

std::vector<Taps> taps_along(int in_size, int out_size) {
  const double scale = double(in_size) / out_size;
  const double stretch = std::max(scale, 1.0);
  const double support = kSupport * stretch;
  std::vector<Taps> all(out_size);
  std::vector<double> weights;
  for (int out = 0; out < out_size; ++out) {
    const double center = (out + 0.5) * scale;
    const int first = std::max(int(center - support + 0.5), 0);
    const int end = std::min(int(center + support + 0.5), in_size);
    weights.clear();
    double sum = 0.0;
    for (int in = first; in < end; ++in) {
      // Multiplied by the reciprocal, as Pillow does: the rounding has to come out the same.
      weights.push_back(bicubic((in - center + 0.5) * (1.0 / stretch)));
      sum += weights.back();
    }
    all[out].first = first;
    for (double weight : weights) {
      const double scaled = (sum != 0.0 ? weight / sum : weight) * (1 << kPrecisionBits);
      all[out].weights.push_back(int32_t(scaled < 0 ? scaled - 0.5 : scaled + 0.5));
    }
  }
  return all;
}

// Returns the weighted sum of samples `stride` bytes apart from `in` on.
uint8_t weighted(const Taps& taps, const uint8_t* in, size_t stride) {
  int32_t sum = 1 << (kPrecisionBits - 1);
  in += taps.first * stride;
  for (int32_t weight : taps.weights) {
    sum += weight * *in;
    in += stride;
  }
  return uint8_t(std::clamp(sum >> kPrecisionBits, 0, 255));
}

ImageHWC resize_width(const ImageHWC& image, int width) {
  const std::vector<Taps> taps = taps_along(image.width, width);
  ImageHWC out(width, image.height);
  for (int y = 0; y < out.height; ++y) {
    const uint8_t* in_row = image.row(y);
    uint8_t* out_row = out.row(y);
    for (int x = 0; x < width; ++x) {
      for (int channel = 0; channel < 3; ++channel) {
        out_row[3 * x + channel] = weighted(taps[x], in_row + channel, 3);
      }
    }
  }
  return out;
}

ImageHWC resize_height(const ImageHWC& image, int height) {
  const std::vector<Taps> taps = taps_along(image.height, height);
  const size_t row_bytes = size_t(image.width) * 3;
  ImageHWC out(image.width, height);
  for (int y = 0; y < height; ++y) {
    uint8_t* out_row = out.row(y);
    for (size_t i = 0; i < row_bytes; ++i) {
      out_row[i] = weighted(taps[y], image.bytes.data() + i, row_bytes);
    }
  }
  return out;
}

}  // namespace

ImageHWC resize_bicubic(const ImageHWC& image, int width, int height) {
  // Rounded to 8 bits in between; an axis that keeps its size is left alone.
  ImageHWC out = width == image.width ? image : resize_width(image, width);
  return height == out.height ? out : resize_height(out, height);
}

}  // namespace llava
