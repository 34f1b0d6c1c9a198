// Guesses of the next tokens of an answer, and how many to make; see speculative_decoding.h.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "package/model_card.h"

namespace llava {

constexpr int kDraftMax = 7;  // tokens; with the newest one eight rows, as many as processors compute at a time
constexpr int kDraftMaxAtMost = kMaxLogitsToKeep - 1;

// Returns `most` tokens that are likely to follow `ids`, but often none: those that followed the longest end of them,
// of three tokens or more, that occurred before; the newest time, if there were several. Where too few followed, they
// repeat. This is prompt lookup decoding (Saxena, 2023).
std::vector<int32_t> look_up(std::span<const int32_t> ids, int most);

// How many tokens to guess: as many as pay by what was right lately. A draft that does not pay is tried again after
// pauses that become longer.
class DraftLength {
 public:
  // At most `most` tokens are guessed at a time.
  explicit DraftLength(int most) : most_(most) {}

  // Returns how many tokens to guess before the next one is computed.
  int next();

  // Says how many of a guess, which was not empty, were right.
  void record(int guessed, int right);

 private:
  static constexpr int kShortestPause = 2;  // tokens

  int best() const;

  int most_;
  double checked_ = 2;          // tokens that were guessed, the newer the more they count
  double right_ = 1;            // and came. At first one of two, which is better than nothing
  int wait_ = 0;                // tokens before the next guess
  int pause_ = kShortestPause;  // tokens to wait after the next guess that shows that none pays
};

}  // namespace llava
