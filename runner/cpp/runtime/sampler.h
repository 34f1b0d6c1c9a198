// Choosing the next token: greedy, or by temperature and nucleus sampling.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <vector>

namespace llava {

// Temperature 0 takes the most likely token; otherwise one is drawn, from the nucleus if top_p is below 1.
class Sampler {
 public:
  // Throws PromptError for a temperature that is negative or not finite, or top_p outside (0, 1]. Without a seed every
  // run differs.
  Sampler(double temperature, double top_p, std::optional<uint64_t> seed);

  // Logits [vocab_size] to a token id.
  int32_t sample(std::span<const float> logits);

  // The distribution that is drawn from at a temperature above 0. Nucleus sampling as in Holtzman et al. (2020): the
  // unlikely tail whose total is at most 1 - top_p goes.
  std::vector<double> probabilities(std::span<const float> logits) const;

 private:
  double temperature_;
  double top_p_;
  std::mt19937_64 random_;
};

}  // namespace llava
