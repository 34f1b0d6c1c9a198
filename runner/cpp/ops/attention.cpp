// Attention in vectorized loops: one way for a few new positions, another for many.
#include "ops/attention.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "ops/multiply_add.h"
#include "ops/online_softmax.h"

namespace llava {
namespace {

constexpr int64_t kBlock = 32;      // cached positions at a time
constexpr int64_t kQueries = 32;    // new positions that share a block of packed keys
constexpr int64_t kTogether = 4;    // cached positions that a few new ones are computed with side by side
constexpr int64_t kAhead = 8192;    // bytes, see fetch_ahead
constexpr int64_t kCacheLine = 64;  // bytes

// Asks for memory that will be read a little later. Processors foresee by themselves that memory is read in order, but
// only up to the end of a page, and a row of keys often fills one.
template <typename Element>
LLAVA_INLINE void fetch_ahead(const Element* row, int64_t head_dim) {
  const char* bytes = reinterpret_cast<const char*>(row) + kAhead;
  for (int64_t at = 0; at < head_dim * int64_t(sizeof(Element)); at += kCacheLine) {
    __builtin_prefetch(bytes + at);
  }
}

// What a few queries have seen of a part of the cached positions, in every head.
struct Partial {
  std::vector<float> sums;       // of values, [queries, heads, head_dim]; empty: the part is another's
  std::vector<Softmax> softmax;  // [queries, heads]
};

// Computes the scores of a query with the keys of `count` positions, `stride` elements from one to the next.
template <int64_t count, typename Element>
LLAVA_INLINE void score(const float* query, const Element* key, int64_t stride, int64_t head_dim, float* scores) {
  float dots[count] = {};
  for (int64_t e = 0; e < head_dim; ++e) {
    for (int64_t j = 0; j < count; ++j) {
      dots[j] += query[e] * widen(key[j * stride + e]);
    }
  }
  std::copy(dots, dots + count, scores);
}

// Adds the values of `count` positions, each with its weight.
template <int64_t count, typename Element>
LLAVA_INLINE void add_values(
    const float* weights, const Element* value, int64_t stride, int64_t head_dim, float* sums) {
  for (int64_t e = 0; e < head_dim; ++e) {
    float sum = sums[e];
    for (int64_t j = 0; j < count; ++j) {
      sum += weights[j] * widen(value[j * stride + e]);
    }
    sums[e] = sum;
  }
}

// Reads the positions [first, last) for a few queries, in every head; each of them sees some of every block. Positions
// are the outer loop, so that memory is read in order, and once for all queries. No query's sums depend on the others.
// Loops over a head are shorter where its size is known when this is compiled: `known_dim`, or 0.
template <int64_t known_dim, typename Element>
LLAVA_INLINE void attend_part_body(
    const Element* query,
    const Element* keys,
    const Element* values,
    Partial& partial,
    const AttentionShape& shape,
    float scale,
    int64_t first,
    int64_t last) {
  const int64_t head_dim = known_dim ? known_dim : shape.head_dim;
  const int64_t stride = shape.key_value_heads * head_dim;
  const int64_t sharing = shape.heads / shape.key_value_heads;
  const int64_t rows = shape.queries * shape.heads;
  std::vector<float> queries(rows * head_dim);
  std::vector<float> scores(shape.heads * kBlock);  // of one query
  partial.sums.assign(rows * head_dim, 0.0f);
  partial.softmax.assign(rows, Softmax());
  for (int64_t i = 0; i < rows * head_dim; ++i) {
    queries[i] = widen(query[i]) * scale;
  }
  // Calls work(head, j, row, together) for every head and the positions j of a block, kTogether at a time.
  const auto for_rows = [&](const Element* rows, int64_t count, const auto& work) LLAVA_INLINED {
    for (int64_t j = 0, together; j < count; j += together) {
      together = count - j < kTogether ? 1 : kTogether;
      for (int64_t head = 0; head < shape.heads; ++head) {
        const Element* row = rows + j * stride + head / sharing * head_dim;
        for (int64_t k = 0; k < together && head % sharing == 0; ++k) {
          fetch_ahead(row + k * stride, head_dim);
        }
        work(head, j, row, together);
      }
    }
  };
  // All queries go over a block before the next one: only the first of them reads it from memory.
  for (int64_t block = first; block < last; block += kBlock) {
    for (int64_t t = 0; t < shape.queries; ++t) {
      const int64_t count = std::min(kBlock, shape.start + t + 1 - block);
      const float* scaled = queries.data() + t * shape.heads * head_dim;
      float* sums = partial.sums.data() + t * shape.heads * head_dim;
      for_rows(
          keys + block * stride, count,
          [&](int64_t head, int64_t j, const Element* key, int64_t together) LLAVA_INLINED {
            const float* q = scaled + head * head_dim;
            float* found = scores.data() + head * kBlock + j;
            together == 1 ? score<1>(q, key, stride, head_dim, found)
                          : score<kTogether>(q, key, stride, head_dim, found);
          });
      for (int64_t head = 0; head < shape.heads; ++head) {
        Softmax& softmax = partial.softmax[t * shape.heads + head];
        const float correction = absorb(softmax, scores.data() + head * kBlock, count);
        float* sum = sums + head * head_dim;
        for (int64_t e = 0; e < head_dim; ++e) {
          sum[e] *= correction;
        }
      }
      for_rows(
          values + block * stride, count,
          [&](int64_t head, int64_t j, const Element* value, int64_t together) LLAVA_INLINED {
            const float* weights = scores.data() + head * kBlock + j;
            float* sum = sums + head * head_dim;
            together == 1 ? add_values<1>(weights, value, stride, head_dim, sum)
                          : add_values<kTogether>(weights, value, stride, head_dim, sum);
          });
    }
  }
}

// Merges what was seen of the parts, as if they had been one, and writes it to `out`.
template <typename Element>
void merge(const std::vector<Partial>& partials, Element* out, const AttentionShape& shape) {
  const int64_t head_dim = shape.head_dim;
  std::vector<float> sums(head_dim);
  for (int64_t i = 0; i < shape.queries * shape.heads; ++i) {
    Softmax all;
    for (const Partial& partial : partials) {
      if (!partial.sums.empty()) {
        all.largest = std::max(all.largest, partial.softmax[i].largest);
      }
    }
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (const Partial& partial : partials) {
      if (partial.sums.empty()) {
        continue;
      }
      const float share = exp_negative(partial.softmax[i].largest - all.largest);
      all.sum += share * partial.softmax[i].sum;
      for (int64_t e = 0; e < head_dim; ++e) {
        sums[e] += share * partial.sums[i * head_dim + e];
      }
    }
    for (int64_t e = 0; e < head_dim; ++e) {
      narrow(sums[e] / all.sum, out[i * head_dim + e]);
    }
  }
}

// Which queries a tile has: `count` of one head, from the new position `first` on.
struct TileQueries {
  int64_t head;
  int64_t first;
  int64_t count;
};

// Up to kQueries queries of one head. Keys are packed transposed, so that scores are computed a vector of positions at
// a time and never summed across one.
struct Tile {
  float queries[kQueries][kMaxHeadDim];
  float keys[kMaxHeadDim][kBlock];
  float values[kBlock][kMaxHeadDim];
  float scores[kQueries][kBlock];
  float sums[kQueries][kMaxHeadDim];
  Softmax softmax[kQueries];
};

template <typename Registers, typename Element>
LLAVA_INLINE void attend_tile_body(
    const Element* query,
    const Element* keys,
    const Element* values,
    Element* out,
    const AttentionShape& shape,
    float scale,
    const TileQueries& queries,
    Tile& tile) {
  const auto [head, first, num_queries] = queries;
  const int64_t head_dim = shape.head_dim;
  const int64_t stride = shape.key_value_heads * head_dim;
  const int64_t of_head = head / (shape.heads / shape.key_value_heads) * head_dim;
  for (int64_t t = 0; t < kQueries; ++t) {
    for (int64_t e = 0; e < head_dim; ++e) {
      const int64_t from = ((first + std::min(t, num_queries - 1)) * shape.heads + head) * head_dim + e;
      tile.queries[t][e] = widen(query[from]) * scale;
    }
    std::memset(tile.sums[t], 0, head_dim * sizeof(float));
    tile.softmax[t] = Softmax();
  }
  const int64_t positions = shape.start + first + num_queries;
  for (int64_t block = 0; block < positions; block += kBlock) {
    const int64_t count = std::min(kBlock, positions - block);
    for (int64_t j = 0; j < kBlock; ++j) {
      const int64_t from = (block + std::min(j, count - 1)) * stride + of_head;
      for (int64_t e = 0; e < head_dim; ++e) {
        tile.keys[e][j] = widen(keys[from + e]);
        tile.values[j][e] = widen(values[from + e]);
      }
    }
    std::memset(tile.scores, 0, sizeof(tile.scores));
    for (int64_t t = 0; t < kQueries; t += kRows) {
      multiply_add_wide<Registers>(
          tile.queries[t], kMaxHeadDim, tile.keys[0], kBlock, head_dim, tile.scores[t], kBlock, kBlock);
    }
    for (int64_t t = 0; t < num_queries; ++t) {
      const int64_t visible = std::clamp<int64_t>(shape.start + first + t + 1 - block, 0, count);
      const float correction = visible ? absorb(tile.softmax[t], tile.scores[t], visible) : 1.0f;
      std::fill(tile.scores[t] + visible, tile.scores[t] + kBlock, 0.0f);
      for (int64_t e = 0; e < head_dim; ++e) {
        tile.sums[t][e] *= correction;
      }
    }
    for (int64_t t = 0; t < kQueries; t += kRows) {
      multiply_add_wide<Registers>(
          tile.scores[t], kBlock, tile.values[0], kMaxHeadDim, count, tile.sums[t], kMaxHeadDim, head_dim);
    }
  }
  for (int64_t t = 0; t < num_queries; ++t) {
    for (int64_t e = 0; e < head_dim; ++e) {
      narrow(tile.sums[t][e] / tile.softmax[t].sum, out[((first + t) * shape.heads + head) * head_dim + e]);
    }
  }
}

// The loops above as they are compiled for a processor.
#define LLAVA_LOOPS_FOR(Processor, attribute, lanes, side_by_side)                                             \
  template <typename Element>                                                                                  \
  struct Processor {                                                                                           \
    attribute static void part(                                                                                \
        const Element* query,                                                                                  \
        const Element* keys,                                                                                   \
        const Element* values,                                                                                 \
        Partial& partial,                                                                                      \
        const AttentionShape& shape,                                                                           \
        float scale,                                                                                           \
        int64_t first,                                                                                         \
        int64_t last) {                                                                                        \
      switch (shape.head_dim) {                                                                                \
        case 64:                                                                                               \
          return attend_part_body<64>(query, keys, values, partial, shape, scale, first, last);                \
        case 128:                                                                                              \
          return attend_part_body<128>(query, keys, values, partial, shape, scale, first, last);               \
        default:                                                                                               \
          attend_part_body<0>(query, keys, values, partial, shape, scale, first, last);                        \
      }                                                                                                        \
    }                                                                                                          \
    attribute static void tile(                                                                                \
        const Element* query,                                                                                  \
        const Element* keys,                                                                                   \
        const Element* values,                                                                                 \
        Element* out,                                                                                          \
        const AttentionShape& shape,                                                                           \
        float scale,                                                                                           \
        const TileQueries& queries,                                                                            \
        Tile& tile) {                                                                                          \
      attend_tile_body<Registers<lanes, side_by_side>>(query, keys, values, out, shape, scale, queries, tile); \
    }                                                                                                          \
  };
#if defined(__x86_64__)
LLAVA_LOOPS_FOR(Avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,bmi2"))), 16, 2)
LLAVA_LOOPS_FOR(Avx2, __attribute__((target("avx2,fma,bmi2"))), 8, 2)
LLAVA_LOOPS_FOR(Any, , 4, 2)
#else
LLAVA_LOOPS_FOR(Any, , 4, 4)  // NEON is part of every 64-bit ARM, and has twice as many registers
#endif
#undef LLAVA_LOOPS_FOR

template <typename Element>
struct Loops {
  decltype(&Any<Element>::part) attend_part;
  decltype(&Any<Element>::tile) attend_tile;
};

// Returns the best loops for the processor that this runs on.
template <typename Element>
Loops<Element> loops() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
      return {Avx512<Element>::part, Avx512<Element>::tile};
    }
    return {Avx2<Element>::part, Avx2<Element>::tile};
  }
#endif
  return {Any<Element>::part, Any<Element>::tile};
}

}  // namespace

template <typename Element>
void attend(
    const Element* query,
    const Element* keys,
    const Element* values,
    Element* out,
    const AttentionShape& shape,
    float scale,
    const ParallelFor& parallel_for) {
  static const Loops<Element> best = loops<Element>();
  if (shape.queries <= kMaxDecodeQueries) {
    AttentionShape group = shape;
    for (int64_t t = 0; t < shape.queries; t += group.queries) {
      // How threads share the positions decides how sums are rounded, and depends on the number of blocks. So queries
      // go together that see the same number of blocks: each is computed as it would be alone.
      group.start = shape.start + t;
      group.queries = std::min(shape.queries - t, kBlock - group.start % kBlock);
      const int64_t row = t * shape.heads * shape.head_dim;
      std::vector<Partial> partials(group.start / kBlock + 1);
      // Threads share the positions, not the heads: each then reads memory from one end to the other.
      parallel_for(int64_t(partials.size()), [&](int64_t begin, int64_t end) {
        if (begin < end) {
          const int64_t last = std::min(end * kBlock, group.start + group.queries);
          best.attend_part(query + row, keys, values, partials[begin], group, scale, begin * kBlock, last);
        }
      });
      merge(partials, out + row, group);
    }
    return;
  }
  const int64_t tiles = (shape.queries + kQueries - 1) / kQueries;
  parallel_for(shape.heads * tiles, [&](int64_t begin, int64_t end) {
    const auto tile = std::make_unique<Tile>();
    for (int64_t i = begin; i < end; ++i) {
      // Tiles innermost: late ones see more positions than early ones, and so every part gets some of both.
      const int64_t first = i % tiles * kQueries;
      const TileQueries queries{i / tiles, first, std::min(kQueries, shape.queries - first)};
      best.attend_tile(query, keys, values, out, shape, scale, queries, *tile);
    }
  });
}

template void attend<float>(
    const float*, const float*, const float*, float*, const AttentionShape&, float, const ParallelFor&);
template void attend<BFloat16>(
    const BFloat16*, const BFloat16*, const BFloat16*, BFloat16*, const AttentionShape&, float, const ParallelFor&);

}  // namespace llava
