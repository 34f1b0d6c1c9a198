// Tests attend() against attention as it is defined, over many shapes and starts, and a few queries against each of
// them alone: `attention_test [STEP]`. With a STEP only every STEP-th of them is tested, which is enough where an
// emulator would take long for all.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "ops/attention.h"

namespace {

using llava::AttentionShape;
using llava::BFloat16;

float widen(float value) {
  return value;
}

float widen(BFloat16 value) {
  return std::bit_cast<float>(uint32_t(value.bits) << 16);
}

void assign(float& to, float value) {
  to = value;
}

void assign(BFloat16& to, float value) {
  to.bits = uint16_t(std::bit_cast<uint32_t>(value) >> 16);
}

// Runs both halves on a thread of their own.
void in_halves(int64_t count, const std::function<void(int64_t, int64_t)>& body) {
  const int64_t half = count / 2;
  std::thread other([&] { body(0, half); });
  body(half, count);
  other.join();
}

void at_once(int64_t count, const std::function<void(int64_t, int64_t)>& body) {
  body(0, count);
}

template <typename Element>
std::vector<Element> random_elements(int64_t size, std::mt19937& random, float spread) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<Element> elements(size);
  for (Element& element : elements) {
    assign(element, normal(random));
  }
  return elements;
}

template <typename Element>
std::vector<double> by_definition(
    const std::vector<Element>& query,
    const std::vector<Element>& keys,
    const std::vector<Element>& values,
    const AttentionShape& shape,
    double scale) {
  const int64_t width = shape.head_dim, sharing = shape.heads / shape.key_value_heads;
  std::vector<double> out(query.size(), 0.0);
  for (int64_t t = 0; t < shape.queries; ++t) {
    for (int64_t head = 0; head < shape.heads; ++head) {
      const int64_t row = (t * shape.heads + head) * width;
      const auto cached = [&](int64_t j) { return (j * shape.key_value_heads + head / sharing) * width; };
      std::vector<double> weights;
      double largest = -1e300, sum = 0;
      for (int64_t j = 0; j <= shape.start + t; ++j) {
        double dot = 0;
        for (int64_t e = 0; e < width; ++e) {
          dot += double(widen(query[row + e])) * widen(keys[cached(j) + e]);
        }
        weights.push_back(dot * scale);
        largest = std::max(largest, weights.back());
      }
      for (double& weight : weights) {
        weight = std::exp(weight - largest);
        sum += weight;
      }
      for (size_t j = 0; j < weights.size(); ++j) {
        for (int64_t e = 0; e < width; ++e) {
          out[row + e] += weights[j] / sum * widen(values[cached(int64_t(j)) + e]);
        }
      }
    }
  }
  return out;
}

template <typename Element>
double largest_error(const AttentionShape& shape, std::mt19937& random, float spread) {
  const auto filled = [&](int64_t size) { return random_elements<Element>(size, random, spread); };
  // The cache has no spare positions, so that a sanitizer sees every read beyond its end.
  const int64_t cached = (shape.start + shape.queries) * shape.key_value_heads * shape.head_dim;
  const auto query = filled(shape.queries * shape.heads * shape.head_dim);
  const auto keys = filled(cached), values = filled(cached);
  std::vector<Element> out(query.size());
  const double scale = 1.0 / std::sqrt(double(shape.head_dim));
  llava::attend(query.data(), keys.data(), values.data(), out.data(), shape, float(scale), in_halves);
  const auto expected = by_definition(query, keys, values, shape, scale);
  double error = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const double difference = std::abs(widen(out[i]) - expected[i]);
    error = std::max(error, std::isfinite(difference) ? difference : 1e9);
  }
  return error;
}

int check(const AttentionShape& shape, std::mt19937& random, float spread) {
  const double plain = largest_error<float>(shape, random, spread);
  const double half = largest_error<BFloat16>(shape, random, spread);
  const bool fine = plain < 2e-5 * spread * spread && half < 0.02 * spread;
  if (!fine) {
    std::printf(
        "T %ld start %ld heads %ld/%ld head_dim %ld spread %g: errors %g (float32), %g (bfloat16)\n",
        long(shape.queries), long(shape.start), long(shape.heads), long(shape.key_value_heads), long(shape.head_dim),
        double(spread), plain, half);
  }
  return fine ? 0 : 1;
}

// Returns whether queries computed together are, bit for bit, what calls with one after the other give.
template <typename Element>
bool same_as_alone(const AttentionShape& shape, std::mt19937& random, const llava::ParallelFor& parallel_for) {
  const int64_t width = shape.heads * shape.head_dim;
  const int64_t cached = (shape.start + shape.queries) * shape.key_value_heads * shape.head_dim;
  const auto query = random_elements<Element>(shape.queries * width, random, 1.0f);
  const auto keys = random_elements<Element>(cached, random, 1.0f);
  const auto values = random_elements<Element>(cached, random, 1.0f);
  std::vector<Element> together(query.size()), alone(query.size());
  llava::attend(query.data(), keys.data(), values.data(), together.data(), shape, 0.1f, parallel_for);
  AttentionShape one = shape;
  one.queries = 1;
  for (int64_t row = 0; row < shape.queries * width; row += width, ++one.start) {
    llava::attend(query.data() + row, keys.data(), values.data(), alone.data() + row, one, 0.1f, parallel_for);
  }
  return std::memcmp(together.data(), alone.data(), alone.size() * sizeof(Element)) == 0;
}

// Returns how many numbers of queries, from this start on, are not as they are alone.
int count_unlike_alone(const AttentionShape& shape, std::mt19937& random) {
  int unlike = 0;
  for (AttentionShape few = shape; few.queries <= llava::kMaxDecodeQueries; ++few.queries) {
    for (const auto& parallel_for : {at_once, in_halves}) {
      if (!same_as_alone<float>(few, random, parallel_for) || !same_as_alone<BFloat16>(few, random, parallel_for)) {
        std::printf(
            "T %ld start %ld heads %ld/%ld head_dim %ld, %s: not the same as alone\n", long(few.queries),
            long(few.start), long(few.heads), long(few.key_value_heads), long(few.head_dim),
            parallel_for == at_once ? "one thread" : "two threads");
        ++unlike;
      }
    }
  }
  return unlike;
}

}  // namespace

int main(int argc, char** argv) {
  const int step = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1;
  std::mt19937 random(0);
  int failures = 0, shapes = 0, skipped = 0;
  for (int64_t head_dim : {64, 80, 96, 128}) {
    for (const auto& [heads, key_value_heads] : {std::pair<int64_t, int64_t>{1, 1}, {4, 4}, {8, 2}, {6, 1}}) {
      for (int64_t queries : {1, 2, 4, 5, 31, 32, 33, 70}) {
        for (int64_t start : {0, 1, 31, 32, 63, 100}) {
          if ((shapes + skipped) % step != 0) {
            ++skipped;
            continue;
          }
          failures += check({queries, start, heads, key_value_heads, head_dim}, random, 1.0f);
          ++shapes;
        }
      }
    }
  }
  // Long ones, odd sizes of a head, and scores so far apart that all but one weight vanish.
  for (const AttentionShape& shape : std::vector<AttentionShape>{
           {700, 0, 2, 2, 64}, {1, 700, 2, 1, 128}, {300, 400, 2, 2, 80}, {7, 9, 3, 3, 2}, {40, 3, 2, 1, 256}}) {
    failures += check(shape, random, 1.0f) + check(shape, random, 8.0f);
    shapes += 2;
  }
  std::printf("%d of %d shapes failed\n", failures, shapes);
  int unlike = 0, tried = 0;
  for (int64_t head_dim : {64, 80, 128}) {
    for (const auto& [heads, key_value_heads] : {std::pair<int64_t, int64_t>{2, 2}, {6, 2}}) {
      for (int64_t start : {0, 1, 15, 16, 17, 30, 31, 32, 33, 63, 64, 95, 200}) {
        if (tried++ % step == 0) {
          unlike += count_unlike_alone({1, start, heads, key_value_heads, head_dim}, random);
        }
      }
    }
  }
  return failures + unlike ? 1 : 0;
}
