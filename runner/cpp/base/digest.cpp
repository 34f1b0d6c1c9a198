#include "base/digest.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

namespace llava {
namespace {

constexpr uint64_t kPrime = 0x9E3779B185EBCA87;
constexpr size_t kLanes = 8;
constexpr size_t kBlock = kLanes * sizeof(uint64_t);
constexpr uint64_t kPart = 8 << 20;  // bytes that a thread reads at a time
constexpr unsigned kThreads = 4;     // enough for any disk

uint64_t mix(uint64_t state, uint64_t word) {
  // For a given state one to one, and for a given word too.
  return std::rotl(state ^ word, 29) * kPrime;
}

bool read_whole(int file, uint8_t* to, uint64_t size, uint64_t offset) {
  while (size > 0) {
    const ssize_t count = pread(file, to, size, off_t(offset));
    if (count <= 0) {
      return false;
    }
    to += count;
    size -= uint64_t(count);
    offset += uint64_t(count);
  }
  return true;
}

}  // namespace

uint64_t digest(std::span<const uint8_t> bytes, uint64_t seed) {
  std::array<uint64_t, kLanes> lanes;
  lanes.fill(seed);
  std::array<uint64_t, kLanes> words;
  for (; bytes.size() >= kBlock; bytes = bytes.subspan(kBlock)) {
    std::memcpy(words.data(), bytes.data(), kBlock);
    for (size_t i = 0; i < kLanes; ++i) {
      lanes[i] = mix(lanes[i], words[i]);
    }
  }
  words.fill(bytes.size());  // so that zeros at the end count
  std::memcpy(words.data(), bytes.data(), bytes.size());
  uint64_t state = seed;
  for (size_t i = 0; i < kLanes; ++i) {
    state = mix(state, mix(lanes[i], words[i]));
  }
  return mix(state, bytes.size());
}

uint64_t digest_of_file(const std::string& path, uint64_t size) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    return 0;
  }
  std::vector<uint64_t> parts((size + kPart - 1) / kPart);
  std::atomic<size_t> next = 0;
  std::atomic<bool> whole = true;
  const auto work = [&] {
    std::vector<uint8_t> bytes(kPart);
    for (size_t i; (i = next++) < parts.size();) {
      const uint64_t count = std::min(kPart, size - i * kPart);
      if (!read_whole(file, bytes.data(), count, i * kPart)) {
        whole = false;
        return;
      }
      parts[i] = digest({bytes.data(), count}, i + 1);
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 1; i < std::clamp(std::thread::hardware_concurrency(), 1u, kThreads); ++i) {
    threads.emplace_back(work);
  }
  work();
  for (std::thread& thread : threads) {
    thread.join();
  }
  close(file);
  return whole ? digest({reinterpret_cast<const uint8_t*>(parts.data()), parts.size() * sizeof(uint64_t)}) : 0;
}

std::string hexadecimal(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace llava
