// Prompt lookup, and how far to trust it.
#include "runtime/draft.h"

#include <algorithm>

namespace llava {
namespace {

constexpr size_t kLeastMatch = 3;  // tokens; what followed fewer says little of what will
constexpr size_t kMostMatch = 16;  // a longer one is no surer, and in a text of one token each place would take long
constexpr int kTried = 2;          // guesses of a draft that does not pay, to see if it does now
constexpr int kLongestPause = 64;  // tokens
constexpr double kFaded = 0.9, kRemembered = 10;  // of what was known, so much counts: a share, and so many tokens
// What a guess costs, in calls without one: the first, and each further one (docs/BENCHMARKS.md, "Guessed tokens").
constexpr double kFirstCost = 0.3, kFurtherCost = 0.045;

}  // namespace

std::vector<int32_t> look_up(std::span<const int32_t> ids, int most) {
  if (most <= 0) {
    return {};
  }
  const size_t size = ids.size();
  size_t longest = kLeastMatch - 1, follows = 0;
  for (size_t end = size - std::min<size_t>(size, 1); end >= kLeastMatch && longest < kMostMatch; --end) {
    size_t length = 0;
    while (length < std::min(end, kMostMatch) && ids[end - 1 - length] == ids[size - 1 - length]) {
      ++length;
    }
    if (length > longest) {
      longest = length;
      follows = end;
    }
  }
  if (follows == 0) {
    return {};
  }
  std::vector<int32_t> guess;
  for (size_t i = 0; i < size_t(most); ++i) {
    guess.push_back(ids[follows + i % (size - follows)]);
  }
  return guess;
}

int DraftLength::next() {
  if (wait_ > 0) {
    --wait_;
    return 0;
  }
  return std::max(best(), std::min(kTried, most_));
}

void DraftLength::record(int guessed, int right) {
  const double kept = std::min(kFaded, kRemembered / checked_);
  checked_ = checked_ * kept + right + (right < guessed ? 1 : 0);
  right_ = right_ * kept + right;
  if (best() > 0) {
    pause_ = kShortestPause;
    return;
  }
  wait_ = pause_;
  pause_ = std::min(4 * pause_, kLongestPause);
}

// Returns how many guesses give most tokens for their cost; 0 if none pays.
int DraftLength::best() const {
  const double chance = right_ / checked_;  // that one is right, if those before it were
  double all_right = 1, tokens = 1, most_for_cost = 1;
  int length = 0;
  for (int guessed = 1; guessed <= most_; ++guessed) {
    all_right *= chance;
    tokens += all_right;
    const double for_cost = tokens / (1 + kFirstCost + kFurtherCost * (guessed - 1));
    if (for_cost > most_for_cost) {
      most_for_cost = for_cost;
      length = guessed;
    }
  }
  return length;
}

}  // namespace llava
