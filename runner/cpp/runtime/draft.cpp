// Prompt lookup, and how far to trust it.
#include "runtime/draft.h"

#include <algorithm>

namespace llava {
namespace {

constexpr size_t kLeastMatch = 2;  // tokens; what followed one alone says little of what will
constexpr size_t kMostMatch = 16;  // a longer one is no surer, and in a text of one token each place would take long
constexpr int kShortest = 2;       // guesses: the second row of a call costs most
constexpr int kLongestPause = 32;  // tokens

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
  const auto found = ids.subspan(follows, std::min(size - follows, size_t(most)));
  return {found.begin(), found.end()};
}

int DraftLength::next() {
  if (wait_ > 0) {
    --wait_;
    return 0;
  }
  return length_;
}

void DraftLength::record(int guessed, int right) {
  if (right == 0) {
    length_ = std::min(kShortest, most_);
    wait_ = pause_;
    pause_ = std::min(2 * pause_, kLongestPause);
    return;
  }
  pause_ = 1;
  const int length = right == guessed ? std::max(length_, 2 * guessed) : std::max(right + 1, kShortest);
  length_ = std::min(length, most_);
}

}  // namespace llava
