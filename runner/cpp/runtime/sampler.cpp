// Greedy sampling, and nucleus sampling at a temperature.
#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
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

}  // namespace

Sampler::Sampler(const SamplingOptions& options)
    : options_(options), random_(options.seed ? *options.seed : std::random_device()()) {
  const auto [temperature, top_p, seed] = options;
  if (!(temperature >= 0) || std::isinf(temperature)) {
    throw PromptError("temperature " + spelled(temperature) + ": it must be 0 (greedy) or more");
  }
  if (!(top_p > 0) || top_p > 1) {
    throw PromptError("top_p " + spelled(top_p) + ": it must be above 0 and at most 1");
  }
}

int32_t Sampler::sample(std::span<const float> logits) {
  if (options_.temperature == 0) {
    return int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  const std::vector<double> weights = probabilities(logits);
  return std::discrete_distribution<int32_t>(weights.begin(), weights.end())(random_);
}

std::vector<double> Sampler::probabilities(std::span<const float> logits) const {
  // Relative to the maximum and in double precision, so that no temperature, however small, overflows.
  const double largest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> weights(logits.size());
  std::transform(logits.begin(), logits.end(), weights.begin(), [&](double logit) {
    return std::exp((logit - largest) / options_.temperature);
  });
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  for (double& weight : weights) {
    weight /= sum;
  }
  if (options_.top_p < 1) {
    std::vector<size_t> ascending(weights.size());
    std::iota(ascending.begin(), ascending.end(), 0);
    std::sort(ascending.begin(), ascending.end(), [&](size_t a, size_t b) { return weights[a] < weights[b]; });
    ascending.pop_back();  // the most likely token stays, however small top_p is
    double tail = 0;
    for (size_t id : ascending) {
      tail += weights[id];
      if (tail > 1 - options_.top_p) {
        break;
      }
      weights[id] = 0;
    }
  }
  return weights;
}

}  // namespace llava
