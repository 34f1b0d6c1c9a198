// The ways in which Pillow resamples: the weights of the samples that each sample of a resized side is made of.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace llava {

// Weights are integers with this many bits after the point: sums of 8-bit samples then fit into 32 bits.
constexpr int kPrecisionBits = 32 - 8 - 2;

// The weights of one sample, for the samples of the side from `first` on.
struct Weights {
  int first = 0;
  std::vector<int32_t> integers;
};

// Returns the weights of `keep` samples, from `first` on, of those that `total` samples become when they are resized to
// `size`. `resample` is one of kResamples. "nearest" takes one sample. The others are kernels, as wide as a new sample
// is in the old ones when that is more than one.
std::vector<Weights> weights_along(const std::string& resample, int total, int size, int first, int keep);

}  // namespace llava
