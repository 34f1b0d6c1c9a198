// Chooses the next token: greedily, or by temperature and nucleus sampling.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <vector>

namespace llava {

struct SamplingOptions {
  double temperature = 0;
  double top_p = 1;
  std::optional<uint64_t> seed;  // nullopt: every run differs
};

// At temperature 0 the most likely token is chosen. Above 0 one is sampled, from the nucleus if top_p is below 1.
class Sampler {
 public:
  // Throws PromptError for a temperature that is negative or not finite, or top_p outside (0, 1].
  explicit Sampler(const SamplingOptions& options);

  // Returns the token id that is chosen by logits [vocab_size].
  int32_t sample(std::span<const float> logits);

  // Returns the distribution [vocab_size] that is sampled from at a temperature above 0. Nucleus sampling as in
  // Holtzman et al. (2020): the unlikely tail whose total is at most 1 - top_p gets 0.
  std::vector<double> probabilities(std::span<const float> logits) const;

 private:
  SamplingOptions options_;
  std::mt19937_64 random_;
};

}  // namespace llava
