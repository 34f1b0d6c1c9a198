// Decoding with guesses ahead: one call of the decoder computes a token and checks several (Leviathan et al., 2023).
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "runtime/draft.h"
#include "runtime/program.h"

namespace llava {

class SpeculativeDecoding {
 public:
  // Returns at most `most` tokens that may follow the newest one.
  using Guess = std::function<std::vector<int32_t>(int most)>;

  // At most `draft_max` tokens are guessed at a time.
  explicit SpeculativeDecoding(int draft_max) : length_(draft_max) {}

  // Returns the logits [vocab_size] after a token whose place is `position`, the caller's until the next call. If the
  // token was guessed, they were computed before. Otherwise the decoder reads it, and behind it what `guess` returns:
  // no more than `room` tokens.
  std::span<float> logits_after(Program& program, int32_t id, int position, int room, const Guess& guess);

  // The tokens of the guess that may still come. The KV cache has them behind the newest token.
  std::span<const int32_t> ahead() const { return is_wrong_ ? std::span<const int32_t>() : rest(); }

  int drafted() const { return drafted_; }    // tokens that were guessed
  int accepted() const { return accepted_; }  // and came

 private:
  std::span<const int32_t> rest() const { return std::span(ids_).subspan(size_t(right_)); }

  DraftLength length_;
  std::vector<int32_t> ids_;  // of the newest guess
  std::span<float> logits_;   // after each of them, [ids, vocab_size]
  int right_ = 0;             // how many of them have come
  bool is_wrong_ = false;     // another token has come
  int drafted_ = 0;
  int accepted_ = 0;
};

}  // namespace llava
