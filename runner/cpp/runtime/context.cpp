// Keeps the list of what a KV cache holds.
#include "runtime/context.h"

#include <algorithm>

namespace llava {

void Context::add_tokens(std::span<const int32_t> ids) {
  for (const int32_t id : ids) {
    entries_.push_back({id});
  }
}

void Context::add_image(const Digest& image, int rows) {
  for (int row = 0; row < rows; ++row) {
    entries_.push_back({row, true, image});
  }
}

void Context::shorten(int position) {
  entries_.resize(std::min(entries_.size(), size_t(position)));
}

int Context::common_beginning(const Context& other) const {
  const auto& theirs = other.entries_;
  const auto differs = std::mismatch(entries_.begin(), entries_.end(), theirs.begin(), theirs.end());
  return int(differs.first - entries_.begin());
}

std::vector<int32_t> Context::ids() const {
  std::vector<int32_t> ids;
  for (const Entry& entry : entries_) {
    if (!entry.is_image) {
      ids.push_back(entry.number);
    }
  }
  return ids;
}

}  // namespace llava
