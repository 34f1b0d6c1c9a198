// Causal attention over a KV cache, on plain pointers, without ExecuTorch.
#pragma once

#include <cstdint>
#include <functional>

namespace llava {

// A number of 16 bits: the upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};

struct AttentionShape {
  int64_t queries;          // T, new positions
  int64_t start;            // positions before them
  int64_t heads;            // H
  int64_t key_value_heads;  // K, divides H: neighboring heads share one
  int64_t head_dim;         // E, at most kMaxHeadDim
};

constexpr int64_t kMaxHeadDim = 256;
constexpr int64_t kMaxDecodeQueries = 16;  // a new token and 15 guessed ones

// Runs body(begin, end) over parts of 0..count, on several threads where it can.
using ParallelFor = std::function<void(int64_t count, const std::function<void(int64_t begin, int64_t end)>& body)>;

// Computes softmax(q k^T * scale) v, where query t sees the cached positions up to start + t.
//
// `query` and `out` are [T, H, E]; `keys` and `values` [C, K, E] with C of at least start + T; all contiguous. The
// softmax is taken online (Milakov and Gimelshein, 2018), block by block, as in FlashAttention (Dao et al., 2022).
// Element is float or BFloat16.
//
// Up to kMaxDecodeQueries queries each get, bit for bit, what a call with that query alone gives, if `parallel_for`
// divides a count always in the same way. The cache is read from memory once for all of them, or twice where their
// positions are on both sides of a multiple of 32.
template <typename Element>
void attend(
    const Element* query,
    const Element* keys,
    const Element* values,
    Element* out,
    const AttentionShape& shape,
    float scale,
    const ParallelFor& parallel_for);

}  // namespace llava
