// From the pixels that files hold to red, green and blue, by Pillow's integer arithmetic.
#pragma once

#include <algorithm>
#include <cstdint>

namespace llava {

// Returns a channel laid on white, as Pillow's alpha_composite does for an opaque background.
inline uint8_t over_white(int value, int alpha) {
  constexpr int kWhite = 255;
  if (alpha == 0) {
    return kWhite;
  }
  const uint32_t coefficient = uint32_t(alpha) * 128;
  const uint32_t sum = uint32_t(value) * coefficient + kWhite * (255 * 128 - coefficient) + (0x80 << 7);
  return uint8_t((((sum >> 8) + sum) >> 8) >> 7);
}

// Returns a channel printed with `ink` and `black`: 0 is none.
inline uint8_t printed(int ink, int black) {
  const int light = 255 - black;
  const int product = ink * light + 128;
  return uint8_t(std::max(0, light - ((product + (product >> 8)) >> 8)));
}

}  // namespace llava
