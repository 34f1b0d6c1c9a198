// The arithmetic of attention for one query and head: 16-bit numbers, exponentials, the softmax taken block by block.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "ops/attention.h"

// Inlined into every caller, so that it is compiled for the processor that the caller is compiled for.
#define LLAVA_INLINED __attribute__((always_inline))
#define LLAVA_INLINE inline LLAVA_INLINED

namespace llava {

LLAVA_INLINE float widen(float value) {
  return value;
}

LLAVA_INLINE float widen(BFloat16 value) {
  return std::bit_cast<float>(uint32_t(value.bits) << 16);
}

LLAVA_INLINE void narrow(float value, float& out) {
  out = value;
}

LLAVA_INLINE void narrow(float value, BFloat16& out) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  out.bits = uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);  // to the nearest, ties to even
}

// e^x for x <= 0, to float32's precision: 2^n by the exponent's bits, the rest by a polynomial (Cephes, expf).
LLAVA_INLINE float exp_negative(float x) {
  x = std::max(x, -87.0f);
  const float n = std::floor(x * 1.44269504f + 0.5f);
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * std::bit_cast<float>(uint32_t(int32_t(n) + 127) << 23);
}

// The running softmax of one query and head: the largest score so far, and the sum relative to it.
struct Softmax {
  float largest = -std::numeric_limits<float>::infinity();
  float sum = 0.0f;
};

// Turns the scores of one block into weights; returns what the sum of values so far is to be multiplied with.
LLAVA_INLINE float absorb(Softmax& softmax, float* scores, int64_t count) {
  float largest = softmax.largest;
  for (int64_t j = 0; j < count; ++j) {
    largest = std::max(largest, scores[j]);
  }
  const float correction = softmax.sum == 0.0f ? 0.0f : exp_negative(softmax.largest - largest);
  float sum = 0.0f;
  for (int64_t j = 0; j < count; ++j) {
    scores[j] = exp_negative(scores[j] - largest);
    sum += scores[j];
  }
  softmax.largest = largest;
  softmax.sum = softmax.sum * correction + sum;
  return correction;
}

}  // namespace llava
