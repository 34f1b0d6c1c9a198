// A hash table of numbers: where in a table of its owner something lies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace llava {

// Four bytes for each entry and the room between them, in one block.
class HashIndex {
 public:
  HashIndex() = default;

  // Makes room for so many entries.
  explicit HashIndex(size_t count) {
    size_t size = 2;
    while (2 * size < 3 * count) {
      size *= 2;
    }
    slots_.assign(size, -1);
  }

  // Returns the entry of this hash that `is_it` takes; -1 if there is none.
  template <typename Is>
  int32_t find(uint64_t hash, const Is& is_it) const {
    if (slots_.empty()) {
      return -1;
    }
    for (size_t slot = hash & (slots_.size() - 1);; slot = (slot + 1) & (slots_.size() - 1)) {
      if (slots_[slot] < 0 || is_it(slots_[slot])) {
        return slots_[slot];
      }
    }
  }

  // Adds an entry. There must be room for it.
  void add(uint64_t hash, int32_t entry) {
    size_t slot = hash & (slots_.size() - 1);
    while (slots_[slot] >= 0) {
      slot = (slot + 1) & (slots_.size() - 1);
    }
    slots_[slot] = entry;
  }

 private:
  std::vector<int32_t> slots_;  // a power of two
};

}  // namespace llava
