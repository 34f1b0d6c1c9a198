// A digest that notices damage: fast, for gigabytes at every start, and no protection against forgery.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace llava {

// Of bytes in memory. Two that differ in one 64-bit word always have different digests.
uint64_t digest(std::span<const uint8_t> bytes, uint64_t seed = 0);

// Of the first `size` bytes of a file, read by several threads; 0 where it cannot be read to there.
uint64_t digest_of_file(const std::string& path, uint64_t size);

// As 16 digits.
std::string hexadecimal(uint64_t value);

}  // namespace llava
