// How likely the tokens of an answer were for the model.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace llava {

constexpr int kLogprobsAtMost = 100;  // of the likeliest tokens in each place of an answer

// A token and the natural logarithm of its probability.
struct Logprob {
  int32_t id;
  double logprob;
};

// A token of an answer, and the tokens that were the most likely in its place, the most likely first.
struct TokenLogprobs {
  Logprob chosen;
  std::vector<Logprob> top;
};

// Returns how likely a token was by the model's own logits [vocab_size], and the `count` most likely ones. Tokens
// without any probability are left out of the latter.
TokenLogprobs token_logprobs(std::span<const float> logits, int32_t id, int count);

}  // namespace llava
