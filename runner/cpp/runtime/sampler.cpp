// The repetition penalty, and what narrows the tokens that are sampled from.
#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <sstream>

#include "base/errors.h"

namespace llava {
namespace {

std::string spelled(double value) {
  std::ostringstream out;
  out << value;
  return out.str();
}

// Gives weight 0 to all but the `count` tokens with the largest scores, and what is as large as the last of them.
void keep_top_k(std::vector<double>& weights, const std::vector<double>& scores, size_t count) {
  std::vector<double> largest(count);
  std::partial_sort_copy(scores.begin(), scores.end(), largest.begin(), largest.end(), std::greater<>());
  for (size_t id = 0; id < scores.size(); ++id) {
    if (scores[id] < largest.back()) {
      weights[id] = 0;
    }
  }
}

// Gives weight 0 to the least likely tokens, as many as have at most 1 - top_p together.
void keep_top_p(std::vector<double>& weights, double top_p) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<size_t> ascending;
  for (size_t id = 0; id < weights.size(); ++id) {
    if (weights[id] > 0) {
      ascending.push_back(id);
    }
  }
  std::stable_sort(ascending.begin(), ascending.end(), [&](size_t a, size_t b) { return weights[a] < weights[b]; });
  double tail = 0;
  for (size_t i = 0; i + 1 < ascending.size(); ++i) {  // the most likely token stays, however small top_p is
    tail += weights[ascending[i]] / sum;
    if (tail > 1 - top_p) {
      break;
    }
    weights[ascending[i]] = 0;
  }
}

}  // namespace

Sampler::Sampler(const SamplingOptions& options)
    : options_(options), random_(options.seed ? *options.seed : std::random_device()()) {
  // In the order and the words of llava_runner/sampler.py.
  if (options.top_k < 0) {
    throw PromptError("top_k " + std::to_string(options.top_k) + ": it must be at least 0");
  }
  if (!(options.temperature >= 0) || std::isinf(options.temperature)) {
    throw PromptError("temperature " + spelled(options.temperature) + ": it must be 0 (greedy) or more");
  }
  if (!(options.top_p > 0) || options.top_p > 1) {
    throw PromptError("top_p " + spelled(options.top_p) + ": it must be above 0 and at most 1");
  }
  if (!(options.min_p >= 0) || options.min_p > 1) {
    throw PromptError("min_p " + spelled(options.min_p) + ": it must be from 0 to 1");
  }
  if (!(options.repetition_penalty > 0) || std::isinf(options.repetition_penalty)) {
    throw PromptError("repetition_penalty " + spelled(options.repetition_penalty) + ": it must be above 0");
  }
}

int32_t Sampler::sample(std::span<const float> logits, std::span<const int32_t> context_ids) {
  if (options_.temperature == 0) {
    if (options_.repetition_penalty == 1) {
      return int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
    }
    const std::vector<double> penalized = scores(logits, context_ids);
    return int32_t(std::max_element(penalized.begin(), penalized.end()) - penalized.begin());
  }
  const std::vector<double> weights = probabilities(logits, context_ids);
  return std::discrete_distribution<int32_t>(weights.begin(), weights.end())(random_);
}

std::vector<double> Sampler::probabilities(std::span<const float> logits, std::span<const int32_t> context_ids) const {
  const std::vector<double> given = scores(logits, context_ids);
  // Relative to the maximum and in double precision, so that no temperature, however small, overflows.
  const double largest = *std::max_element(given.begin(), given.end());
  std::vector<double> weights(given.size());
  std::transform(given.begin(), given.end(), weights.begin(), [&](double score) {
    return std::exp((score - largest) / options_.temperature);
  });
  if (options_.top_k > 0 && size_t(options_.top_k) < weights.size()) {
    keep_top_k(weights, given, size_t(options_.top_k));
  }
  if (options_.top_p < 1) {
    keep_top_p(weights, options_.top_p);
  }
  for (double& weight : weights) {
    if (weight < options_.min_p) {  // the most likely token has weight 1
      weight = 0;
    }
  }
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (double& weight : weights) {
    weight /= sum;
  }
  return weights;
}

// Returns the logits with the repetition penalty.
std::vector<double> Sampler::scores(std::span<const float> logits, std::span<const int32_t> context_ids) const {
  std::vector<double> found(logits.begin(), logits.end());
  if (options_.repetition_penalty == 1) {
    return found;
  }
  for (const int32_t id : context_ids) {
    if (id < 0 || size_t(id) >= found.size()) {
      continue;
    }
    // From the logit, not from what is found: a token counts once, however often it comes.
    const double logit = logits[size_t(id)];
    const double penalized = logit < 0 ? logit * options_.repetition_penalty : logit / options_.repetition_penalty;
    found[size_t(id)] = std::min(penalized, std::numeric_limits<double>::max());  // infinity has no probability
  }
  return found;
}

}  // namespace llava
