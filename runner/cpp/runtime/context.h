// What a KV cache holds: which token, or which row of which image, is at each position.
#pragma once

#include <compare>
#include <cstdint>
#include <span>
#include <vector>

#include "base/digest.h"

namespace llava {

// One position. An image's rows are told apart by the image's digest.
struct Entry {
  int32_t number = 0;  // of the token, or of the row in its image
  bool is_image = false;
  Digest image = {};

  bool operator==(const Entry&) const = default;
};

class Context {
 public:
  void add_tokens(std::span<const int32_t> ids);
  void add_image(const Digest& image, int rows);

  // Forgets everything from a position on.
  void shorten(int position);

  int size() const { return int(entries_.size()); }
  const std::vector<Entry>& entries() const { return entries_; }

  // Returns how many positions from the first on are the same in both.
  int common_beginning(const Context& other) const;

  // Returns the ids of the tokens in their order, without the images.
  std::vector<int32_t> ids() const;

 private:
  std::vector<Entry> entries_;
};

}  // namespace llava
