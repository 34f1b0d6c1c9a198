// The memory of a program's KV cache, as found by the operator that writes into it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace llava {

// The keys or the values of one layer: position after position, `position_bytes` each.
struct CacheTensor {
  uint8_t* bytes;
  size_t position_bytes;
  size_t positions;

  bool operator==(const CacheTensor&) const = default;
};

// While this is not null, the operator adds each tensor that it writes into, in their order. For the calling thread.
inline thread_local std::vector<CacheTensor>* found_caches = nullptr;

// Has the operator add to a list, unless that is null, as long as this lives.
class FindCaches {
 public:
  explicit FindCaches(std::vector<CacheTensor>* found) { found_caches = found; }
  ~FindCaches() { found_caches = nullptr; }
  FindCaches(const FindCaches&) = delete;
};

}  // namespace llava
