// Sums of products in the registers of a processor.
#pragma once

#include <cstdint>

#include "ops/online_softmax.h"

namespace llava {

constexpr int64_t kRows = 4;  // rows of sums that are in registers together

// A register of so many floats. Compilers put vectors that are wider than a register into memory, which takes ten times
// as long.
template <int lanes>
struct Register;
template <>
struct Register<4> {
  typedef float Vector __attribute__((vector_size(16), aligned(4), may_alias));
};
template <>
struct Register<8> {
  typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));
};
template <>
struct Register<16> {
  typedef float Vector __attribute__((vector_size(64), aligned(4), may_alias));
};

// The registers of a processor, and how many are side by side so that there is room for kRows sums of each.
template <int lanes, int side_by_side>
struct Registers {
  using Vector = typename Register<lanes>::Vector;
  static_assert(sizeof(Vector) == lanes * sizeof(float));
  static constexpr int64_t kLanes = lanes;
  static constexpr int64_t kVectors = side_by_side;
};

// Adds to the sums of kRows queries, from `out` on: for each of `count` steps, a factor times a row of vectors.
//   out[row][lane] += sum over step of factors[row][step] * rows[step][lane]
// The strides are the floats from one row of each to the next.
template <typename Registers, int64_t vectors>
LLAVA_INLINE void multiply_add(
    const float* factors,
    int64_t factors_stride,
    const float* rows,
    int64_t rows_stride,
    int64_t count,
    float* out,
    int64_t out_stride) {
  using Vector = typename Registers::Vector;
  Vector sums[kRows][vectors];
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t v = 0; v < vectors; ++v) {
      sums[row][v] = *reinterpret_cast<const Vector*>(out + row * out_stride + v * Registers::kLanes);
    }
  }
  for (int64_t step = 0; step < count; ++step) {
    for (int64_t v = 0; v < vectors; ++v) {
      const Vector values = *reinterpret_cast<const Vector*>(rows + step * rows_stride + v * Registers::kLanes);
      for (int64_t row = 0; row < kRows; ++row) {
        sums[row][v] += factors[row * factors_stride + step] * values;
      }
    }
  }
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t v = 0; v < vectors; ++v) {
      *reinterpret_cast<Vector*>(out + row * out_stride + v * Registers::kLanes) = sums[row][v];
    }
  }
}

// Does the same for `width` floats of each row.
template <typename Registers>
LLAVA_INLINE void multiply_add_wide(
    const float* factors,
    int64_t factors_stride,
    const float* rows,
    int64_t rows_stride,
    int64_t count,
    float* out,
    int64_t out_stride,
    int64_t width) {
  constexpr int64_t kLanes = Registers::kLanes;
  constexpr int64_t kWide = kLanes * Registers::kVectors;
  int64_t at = 0;
  for (; at + kWide <= width; at += kWide) {
    multiply_add<Registers, Registers::kVectors>(
        factors, factors_stride, rows + at, rows_stride, count, out + at, out_stride);
  }
  for (; at + kLanes <= width; at += kLanes) {
    multiply_add<Registers, 1>(factors, factors_stride, rows + at, rows_stride, count, out + at, out_stride);
  }
  for (; at < width; ++at) {
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t step = 0; step < count; ++step) {
        out[row * out_stride + at] += factors[row * factors_stride + step] * rows[step * rows_stride + at];
      }
    }
  }
}

}  // namespace llava
