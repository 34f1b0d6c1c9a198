// Decodes the first image of a GIF file, as Pillow does. Where Pillow goes on reading behind a slip, so does this.
#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <vector>

#include "image/formats/bytes.h"
#include "image/formats/formats.h"
#include "image/formats/pixels.h"

namespace llava {
namespace {

using Color = std::array<uint8_t, 3>;
using Colors = std::array<Color, 256>;

struct Gif {
  int64_t width = 0;
  int64_t height = 0;
  int64_t left = 0, top = 0, right = 0, bottom = 0;  // of the first image on the screen
  bool is_interlaced = false;
  int transparent = -1;  // the index of pixels that show what is behind; -1 for none
  Colors colors;
  int bits = 0;             // of the first codes
  std::string_view blocks;  // the compressed pixels, and what follows them
};

// Returns a palette of grays.
Colors grays() {
  Colors colors;
  for (size_t i = 0; i < colors.size(); ++i) {
    colors[i] = {uint8_t(i), uint8_t(i), uint8_t(i)};
  }
  return colors;
}

class Parser {
 public:
  Parser(const std::string& path, std::string_view content) : path_(path), rest_(content) {}

  Gif first_image() {
    const std::string_view screen = take(13);
    Gif gif{.width = number(screen, 6), .height = number(screen, 8), .colors = grays(), .blocks = {}};
    std::optional<Colors> global;
    if (uint8_t(screen[10]) & 0x80) {
      global = palette(uint8_t(screen[10]));
    }
    for (;;) {
      const char kind = take(1)[0];
      if (kind == ';') {
        fail_to_read(path_, "it has no image");
      } else if (kind == '!') {
        read_extension(gif);
      } else if (kind == ',') {
        read_description(gif, global);
        return gif;
      }
    }
  }

 private:
  [[noreturn]] void fail() const { fail_to_read(path_, "it is truncated"); }

  std::string_view take(size_t count) {
    if (rest_.size() < count) {
      fail();
    }
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }

  int64_t number(std::string_view bytes, size_t at) const {
    const auto value = number_in(bytes, at, 2);
    return value ? int64_t(*value) : (fail(), 0);
  }

  // Returns the next sub-block; an empty one ends an extension.
  std::string_view sub_block() { return take(uint8_t(take(1)[0])); }

  // Returns the palette with a size as `flags` say, unless its colors are the grays in order.
  std::optional<Colors> palette(uint8_t flags) {
    const size_t count = size_t(2) << (flags & 7);
    const std::string_view bytes = take(3 * count);
    Colors colors{};
    std::memcpy(colors.data(), bytes.data(), bytes.size());
    const Colors gray = grays();
    return std::equal(colors.begin(), colors.begin() + count, gray.begin()) ? std::nullopt : std::optional(colors);
  }

  void read_extension(Gif& gif) {
    const auto label = uint8_t(take(1)[0]);
    std::string_view block = sub_block();
    if (label == 0xFE) {  // a comment
      while (!block.empty()) {
        block = sub_block();
      }
      return;
    }
    if (label == 0xF9 && !block.empty()) {  // how the next image is shown
      number(block, 1);
      if (block[0] & 1) {
        gif.transparent = block.size() > 3 ? uint8_t(block[3]) : (fail(), 0);
      }
    } else if (label == 0xFF && block.starts_with("NETSCAPE2.0")) {
      sub_block();
    }
    while (!sub_block().empty()) {
    }
  }

  void read_description(Gif& gif, const std::optional<Colors>& global) {
    const std::string_view description = take(9);
    gif.left = number(description, 0);
    gif.top = number(description, 2);
    gif.right = gif.left + number(description, 4);
    gif.bottom = gif.top + number(description, 6);
    gif.width = std::max(gif.width, gif.right);
    gif.height = std::max(gif.height, gif.bottom);
    check_size(path_, gif.width, gif.height);
    if (gif.left == gif.right || gif.top == gif.bottom) {
      fail_to_read(path_, "its first image has no pixels");
    }
    const auto flags = uint8_t(description[8]);
    gif.is_interlaced = flags & 0x40;
    std::optional<Colors> chosen = global;
    if (flags & 0x80) {
      const auto local = palette(flags);
      chosen = local ? local : global;
    }
    gif.colors = chosen.value_or(grays());
    gif.bits = uint8_t(take(1)[0]);
    if (gif.bits > 12) {
      fail_to_read(path_, "its compression is damaged");
    }
    gif.blocks = rest_;
  }

  const std::string& path_;
  std::string_view rest_;
};

// The codes of a GIF, which are of 1 to 13 bits and lie across the bounds of blocks.
class Codes {
 public:
  explicit Codes(std::string_view blocks) : rest_(blocks) {}

  // Returns the next code; nullopt where the blocks end, or one is not complete.
  std::optional<int> next(int bits) {
    while (filled_ < bits) {
      if (block_.empty()) {
        const size_t length = rest_.empty() ? 1 : size_t(uint8_t(rest_[0]));
        if (rest_.size() < 1 + length) {
          return std::nullopt;
        }
        block_ = rest_.substr(1, length);
        rest_.remove_prefix(1 + length);
        continue;
      }
      buffer_ |= uint32_t(uint8_t(block_[0])) << filled_;
      filled_ += 8;
      block_.remove_prefix(1);
    }
    const int code = int(buffer_ & ((1u << bits) - 1));
    buffer_ >>= bits;
    filled_ -= bits;
    return code;
  }

 private:
  std::string_view rest_;
  std::string_view block_;
  uint32_t buffer_ = 0;
  int filled_ = 0;  // bits in the buffer
};

// Decodes LZW and gives each index to `put`, until that returns false. Returns whether it did before the codes ended.
template <typename Put>
bool decode_lzw(std::string_view blocks, int bits, const Put& put) {
  constexpr int kMaxCodes = 4096;
  constexpr int kMaxBits = 12;
  struct Entry {
    int prefix;  // a code
    uint8_t last;
  };
  std::vector<Entry> entries(kMaxCodes);
  std::vector<uint8_t> reversed;
  const int clear = 1 << bits, end = clear + 1;
  int code_bits = bits + 1, next = end + 1, previous = -1;
  uint8_t first = 0;  // of the indices of `previous`
  Codes codes(blocks);
  while (const auto read = codes.next(code_bits)) {
    int code = *read;
    if (code == clear) {
      code_bits = bits + 1;
      next = end + 1;
      previous = -1;
      continue;
    }
    if (code == end || code > next || (previous < 0 && code > clear)) {
      return false;
    }
    if (previous < 0) {
      previous = code;
      first = uint8_t(code);
      if (!put(first)) {
        return true;
      }
      continue;
    }
    reversed.clear();
    if (code == next) {
      reversed.push_back(first);
      code = previous;
    }
    while (code > clear) {
      if (code >= kMaxCodes) {
        return false;
      }
      reversed.push_back(entries[size_t(code)].last);
      code = entries[size_t(code)].prefix;
    }
    first = uint8_t(code);
    reversed.push_back(first);
    for (auto index = reversed.rbegin(); index != reversed.rend(); ++index) {
      if (!put(*index)) {
        return true;
      }
    }
    if (next < kMaxCodes) {
      entries[size_t(next)] = {previous, first};
      if (next == (1 << code_bits) - 1 && code_bits < kMaxBits) {
        ++code_bits;
      }
      ++next;
    }
    previous = *read;
  }
  return false;
}

// The rows of an image in the order in which they are stored.
class Rows {
 public:
  Rows(int64_t count, bool is_interlaced) : count_(count), is_interlaced_(is_interlaced) {}

  int64_t row() const { return row_; }

  // Goes on to the next row. Returns false behind the last.
  bool advance() {
    constexpr int kStarts[] = {0, 4, 2, 1}, kSteps[] = {8, 8, 4, 2};
    row_ += is_interlaced_ ? kSteps[pass_] : 1;
    while (row_ >= count_) {
      if (!is_interlaced_ || pass_ == 3) {
        return false;
      }
      row_ = kStarts[++pass_];
    }
    return true;
  }

 private:
  int64_t count_;
  bool is_interlaced_;
  int64_t row_ = 0;
  int pass_ = 0;
};

}  // namespace

ImageHWC read_gif(const std::string& path, std::string_view content) {
  const Gif gif = Parser(path, content).first_image();
  // What the first image leaves free shows through, or has the first color.
  const size_t pixels = size_t(gif.width) * size_t(gif.height);
  std::vector<uint8_t> indices(pixels, uint8_t(std::max(gif.transparent, 0)));
  Rows rows(gif.bottom - gif.top, gif.is_interlaced);
  int64_t x = gif.left;
  const bool is_complete = decode_lzw(gif.blocks, gif.bits, [&](uint8_t index) {
    indices[size_t((gif.top + rows.row()) * gif.width + x)] = index;
    if (++x < gif.right) {
      return true;
    }
    x = gif.left;
    return rows.advance();
  });
  if (!is_complete) {
    fail_to_read(path, "it is truncated or damaged");
  }
  ImageHWC image(int(gif.width), int(gif.height));
  for (size_t i = 0; i < pixels; ++i) {
    const uint8_t index = indices[i];
    for (size_t channel = 0; channel < 3; ++channel) {
      image.bytes[3 * i + channel] = index == gif.transparent ? over_white(0, 0) : gif.colors[index][channel];
    }
  }
  return image;
}

}  // namespace llava
