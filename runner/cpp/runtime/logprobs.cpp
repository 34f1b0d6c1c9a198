// The logarithm of softmax; see logprobs.h.
#include "runtime/logprobs.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace llava {

TokenLogprobs token_logprobs(std::span<const float> logits, int32_t id, int count) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) {
    sum += std::exp(logit - largest);
  }
  const double log_sum = std::log(sum);
  const auto logprob = [&](int32_t id) { return Logprob{id, logits[size_t(id)] - largest - log_sum}; };
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto end = ids.begin() + std::min(ptrdiff_t(count), ptrdiff_t(ids.size()));
  std::partial_sort(ids.begin(), end, ids.end(), [&](int32_t a, int32_t b) {
    return logits[size_t(a)] > logits[size_t(b)] || (logits[size_t(a)] == logits[size_t(b)] && a < b);
  });
  TokenLogprobs found{logprob(id), {}};
  for (auto it = ids.begin(); it != end && !std::isinf(logits[size_t(*it)]); ++it) {
    found.top.push_back(logprob(*it));
  }
  return found;
}

}  // namespace llava
