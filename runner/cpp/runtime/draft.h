// Guesses of the next tokens of an answer, and how many to make; see speculative_decoding.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace llava {

constexpr int kDraftMax = 7;  // tokens; with the newest one eight rows, as many as processors compute at a time
constexpr int kDraftMaxAtMost = 15;

// Returns at most `most` tokens that are likely to follow `ids`: those that followed the longest end of them, of two
// tokens or more, that occurred before; the newest time, if there were several. Often there are none. This is prompt
// lookup decoding (Saxena, 2023).
std::vector<int32_t> look_up(std::span<const int32_t> ids, int most);

// How many tokens to guess. To check a wrong guess costs time, so it depends on how many were right lately, and after
// wrong ones none is guessed for a while.
class DraftLength {
 public:
  // `most` tokens are guessed at a time.
  explicit DraftLength(int most) : most_(most), length_(std::min(most, 3)) {}

  // Returns how many tokens to guess before the next one is computed.
  int next();

  // Says how many of a guess, which was not empty, were right.
  void record(int guessed, int right);

 private:
  int most_;
  int length_;     // of the next guess
  int wait_ = 0;   // tokens before it
  int pause_ = 1;  // tokens to wait after the next wrong guess
};

}  // namespace llava
