// Chooses the next token: the most likely one, or a sample. Order and arithmetic are those of transformers.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <span>
#include <vector>

namespace llava {

struct SamplingOptions {
  double temperature = 0;         // 0: always the most likely token
  double top_p = 1;               // keeps the most likely tokens that have this probability together
  int top_k = 0;                  // keeps so many of the most likely tokens; 0: all
  double min_p = 0;               // keeps tokens that are at least so many times as likely as the most likely one
  double repetition_penalty = 1;  // above 1 makes tokens less likely that the conversation has; at temperature 0, too
  std::optional<uint64_t> seed;   // nullopt: every run differs
};

// The penalty comes first (Keskar et al., 2019). Above temperature 0, top_k, top_p (Holtzman et al., 2020) and min_p
// (Nguyen et al., 2024) narrow what is sampled from, one after the other.
class Sampler {
 public:
  // Throws PromptError for a temperature that is negative or not finite, top_p outside (0, 1], a negative top_k, min_p
  // outside [0, 1], and a repetition_penalty that is not above 0 or not finite.
  explicit Sampler(const SamplingOptions& options);

  // Returns the token id that is chosen by logits [vocab_size] after the tokens of a conversation.
  int32_t sample(std::span<const float> logits, std::span<const int32_t> context_ids);

  // Returns the distribution [vocab_size] that is sampled from at a temperature above 0.
  std::vector<double> probabilities(std::span<const float> logits, std::span<const int32_t> context_ids) const;

 private:
  std::vector<double> scores(std::span<const float> logits, std::span<const int32_t> context_ids) const;

  SamplingOptions options_;
  std::mt19937_64 random_;
};

}  // namespace llava
