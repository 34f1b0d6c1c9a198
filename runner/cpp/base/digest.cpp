// XXH3 over memory and, by several threads, over files.
#include "base/digest.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <exception>
#include <functional>
#include <thread>
#include <vector>

#include "base/files.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace llava {
namespace {

constexpr uint64_t kPart = 8 << 20;  // bytes that a thread reads at a time
constexpr unsigned kThreads = 4;     // enough for any disk

}  // namespace

Digest digest(std::span<const uint8_t> bytes) {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  return {hash.high64, hash.low64};
}

Digest digest(std::span<const Digest> parts) {
  return digest({reinterpret_cast<const uint8_t*>(parts.data()), parts.size_bytes()});
}

std::optional<Digest> digest_of_file(int file, uint64_t size) {
  std::vector<Digest> parts((size + kPart - 1) / kPart);
  std::atomic<size_t> next = 0;
  std::atomic<bool> whole = true;
  std::vector<uint8_t> own_bytes(std::min(kPart, size));
  const auto work = [&](std::vector<uint8_t>& bytes) {
    for (size_t i; (i = next++) < parts.size();) {
      const uint64_t count = std::min(kPart, size - i * kPart);
      if (!read_at(file, bytes.data(), count, i * kPart)) {
        whole = false;
        return;
      }
      parts[i] = digest({bytes.data(), count});
    }
  };
  std::array<std::thread, kThreads - 1> threads;
  std::array<std::vector<uint8_t>, kThreads - 1> bytes;
  const size_t helpers = std::min<size_t>(std::clamp(std::thread::hardware_concurrency(), 1u, kThreads), parts.size());
  try {
    for (size_t i = 0; i + 1 < helpers; ++i) {
      bytes[i].resize(kPart);
      threads[i] = std::thread(work, std::ref(bytes[i]));
    }
  } catch (const std::exception&) {
    // No more threads, or no more memory, are to be had here: those that run, this one among them, do all the work.
  }
  work(own_bytes);
  for (std::thread& thread : threads) {
    if (thread.joinable()) {
      thread.join();
    }
  }
  return whole ? std::optional(digest(parts)) : std::nullopt;
}

Digest digest_as_file(std::span<const uint8_t> bytes) {
  std::vector<Digest> parts;
  for (; !bytes.empty(); bytes = bytes.subspan(std::min<size_t>(kPart, bytes.size()))) {
    parts.push_back(digest(bytes.first(std::min<size_t>(kPart, bytes.size()))));
  }
  return digest(parts);
}

std::string hexadecimal(const Digest& digest) {
  char text[33];
  std::snprintf(
      text, sizeof(text), "%016llx%016llx", static_cast<unsigned long long>(digest.high),
      static_cast<unsigned long long>(digest.low));
  return text;
}

}  // namespace llava
