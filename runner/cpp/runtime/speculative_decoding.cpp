// Checks guesses of tokens in calls of the decoder.
#include "runtime/speculative_decoding.h"

#include <algorithm>
#include <utility>

namespace llava {

std::span<float> SpeculativeDecoding::logits_after(
    Program& program, int32_t id, int position, int room, const Guess& guess) {
  const size_t width = size_t(program.card().vocab_size);
  if (!ahead().empty()) {
    const bool is_right = ids_[size_t(right_)] == id;
    is_wrong_ = !is_right;
    right_ += is_right ? 1 : 0;
    if (ahead().empty()) {
      length_.record(int(ids_.size()), right_);
    }
    if (is_right) {
      ++accepted_;
      return logits_.subspan(size_t(right_ - 1) * width, width);
    }
  }
  is_wrong_ = true;  // where the call fails, nothing is ahead
  const int room_of_call = std::min(room, program.card().logits_to_keep - 1);
  const int most = room_of_call > 0 ? std::min(room_of_call, length_.next()) : 0;
  std::vector<int32_t> ids = {id}, guessed = most > 0 ? guess(most) : std::vector<int32_t>();
  ids.insert(ids.end(), guessed.begin(), guessed.end());
  const std::span<float> logits = program.verify(program.embed(ids), position);
  drafted_ += int(guessed.size());
  ids_ = std::move(guessed);
  logits_ = logits.subspan(width);
  right_ = 0;
  is_wrong_ = false;
  return logits.first(width);
}

}  // namespace llava
