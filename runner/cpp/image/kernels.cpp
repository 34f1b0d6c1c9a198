// Sources: Resample.c of Pillow, and for "nearest" its Geometry.c. The arithmetic is theirs, so the rounding is, too.
#include "image/kernels.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace llava {
namespace {

constexpr double kPi = 3.14159265358979323846;

double box(double x) {
  return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
}

double bilinear(double x) {
  return std::max(1.0 - std::abs(x), 0.0);
}

double hamming(double x) {
  x = std::abs(x);
  if (x == 0.0 || x >= 1.0) {
    return x == 0.0 ? 1.0 : 0.0;
  }
  x *= kPi;
  return std::sin(x) / x * (0.54f + 0.46f * std::cos(x));  // in single precision, as in Pillow's source
}

double bicubic(double x) {
  constexpr double a = -0.5;  // Keys, 1981
  x = std::abs(x);
  if (x < 1.0) {
    return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  }
  if (x < 2.0) {
    return (((x - 5) * x + 8) * x - 4) * a;
  }
  return 0.0;
}

double sinc(double x) {
  if (x == 0.0) {
    return 1.0;
  }
  x *= kPi;
  return std::sin(x) / x;
}

double lanczos(double x) {
  return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
}

struct Kernel {
  double support;  // half the width, in samples
  double (*at)(double);
};

const std::map<std::string, Kernel> kKernels{
    {"box", {0.5, box}},         {"bilinear", {1.0, bilinear}}, {"hamming", {1.0, hamming}},
    {"bicubic", {2.0, bicubic}}, {"lanczos", {3.0, lanczos}},
};

std::vector<Weights> nearest(int total, int size, int first, int keep) {
  const double scale = double(total) / size;
  std::vector<Weights> all;
  double at = scale * 0.5;
  for (int out = 0; out < first + keep; ++out) {
    if (out >= first) {
      all.push_back({std::min(int(at), total - 1), {1 << kPrecisionBits}});
    }
    at += scale;  // Pillow adds up the positions one after the other
  }
  return all;
}

}  // namespace

std::vector<Weights> weights_along(const std::string& resample, int total, int size, int first, int keep) {
  if (resample == "nearest") {
    return nearest(total, size, first, keep);
  }
  const Kernel& kernel = kKernels.at(resample);
  const double scale = double(total) / size;
  const double stretch = std::max(scale, 1.0);
  const double support = kernel.support * stretch;
  std::vector<Weights> all(keep);
  std::vector<double> values;
  for (int out = 0; out < keep; ++out) {
    const double center = (first + out + 0.5) * scale;
    const int begin = std::max(int(center - support + 0.5), 0);
    const int end = std::min(int(center + support + 0.5), total);
    values.clear();
    double sum = 0.0;
    for (int in = begin; in < end; ++in) {
      // Multiplied by the reciprocal, as Pillow does: the rounding has to come out the same.
      values.push_back(kernel.at((in - center + 0.5) * (1.0 / stretch)));
      sum += values.back();
    }
    all[out].first = begin;
    for (const double value : values) {
      const double scaled = (sum != 0.0 ? value / sum : value) * (1 << kPrecisionBits);
      all[out].integers.push_back(int32_t(scaled < 0 ? scaled - 0.5 : scaled + 0.5));
    }
  }
  return all;
}

}  // namespace llava
