// Walks the chunks of a PNG, as Pillow does.
#include "image/formats/png_chunks.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "image/formats/formats.h"
#include "image/formats/png_text.h"

namespace llava {
namespace {

constexpr size_t kSignature = 8;  // bytes

uint32_t number(std::string_view data, size_t at) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) {
    value = value << 8 | uint8_t(data[at + i]);
  }
  return value;
}

class Walk {
 public:
  Walk(const std::string& path, std::string_view content) : path_(path), content_(content) {}

  PngChunks chunks() {
    before_the_pixels();
    pixels();
    after_the_pixels();
    found_.metadata = texts_.metadata();
    return std::move(found_);
  }

 private:
  // Reads the head of a chunk. Returns whether it is sound.
  bool next() {
    if (content_.size() - at_ < 8) {
      return false;
    }
    length_ = number(content_, at_);
    kind_ = content_.substr(at_ + 4, 4);
    at_ += 8;
    return std::all_of(kind_.begin(), kind_.end(), [](uint8_t c) { return std::isalnum(c) || c == '_'; });
  }

  // Returns the data of the chunk, and goes to its checksum.
  std::string_view data() {
    if (content_.size() - at_ < length_) {
      fail_to_read(path_, "it is truncated");
    }
    at_ += length_;
    return content_.substr(at_ - length_, length_);
  }

  void skip_checksum() { at_ = std::min(at_ + 4, content_.size()); }

  void before_the_pixels() {
    for (;;) {
      if (!next()) {
        fail_to_read(path_, "its chunks are damaged");
      }
      if (kind_ == "IDAT" || kind_ == "IEND") {
        break;
      }
      const size_t start = at_ - 4;
      const std::string_view chunk = data();
      const auto bytes = reinterpret_cast<const Bytef*>(content_.data() + start);
      if (content_.size() - at_ < 4 || crc32(0, bytes, uInt(length_ + 4)) != number(content_, at_)) {
        fail_to_read(path_, "the checksum of its chunk " + std::string(kind_) + " is wrong");
      }
      if (kind_ == "IHDR") {
        header(chunk);
      } else if (kind_ == "PLTE" && is_known_ && found_.color() == 3) {
        found_.palette = chunk;
      }
      check(chunk);
      at_ += 4;
    }
    if (!is_known_ || kind_ == "IEND") {
      fail_to_read(path_, "it has no pixels");
    }
    is_animated_ = frames_ + (frames_ > 0 && !has_frame_ ? 1 : 0) > 1;
  }

  void pixels() {
    while (kind_ == "IDAT" || kind_ == "DDAT") {
      const size_t length = std::min<size_t>(length_, content_.size() - at_);
      found_.pixels.push_back(content_.substr(at_, length));
      found_.ends_in_pixels = length < length_;
      at_ += length;
      skip_checksum();
      if (!next()) {
        kind_ = "IEND";
      }
    }
  }

  void after_the_pixels() {
    while (kind_ != "IEND" && !(kind_ == "fcTL" && is_animated_)) {
      check(data());
      skip_checksum();
      if (!next()) {
        break;
      }
    }
  }

  void header(std::string_view chunk) {
    if (chunk.size() < 13 || chunk[11] != 0) {
      fail_to_read(path_, "its header is damaged");
    }
    found_.header = chunk.substr(0, 13);
    const int depth = found_.depth(), color = found_.color();
    const bool is_packed = depth == 1 || depth == 2 || depth == 4;
    // An unknown kind leaves a known one before it.
    is_known_ = is_known_ || ((color == 0 || color == 3) && is_packed) || (color == 3 && depth == 8) ||
                ((color == 0 || color == 2 || color == 4 || color == 6) && (depth == 8 || depth == 16));
  }

  // Takes what a chunk says of the pixels, or refuses it as Pillow does.
  void check(std::string_view chunk) {
    struct Least {
      std::string_view kind;
      size_t bytes;
    };
    constexpr std::array<Least, 7> kLeast = {
        {{"IHDR", 13}, {"gAMA", 4}, {"sRGB", 1}, {"pHYs", 9}, {"acTL", 8}, {"fcTL", 26}, {"fdAT", 4}}};
    for (const Least& least : kLeast) {
      if (kind_ == least.kind && chunk.size() < least.bytes) {
        fail();
      }
    }
    if (kind_ == "tRNS") {
      transparency(chunk);
    } else if (kind_ == "cHRM" && chunk.size() % 4 != 0) {
      fail();
    } else if (kind_ == "iCCP" || kind_ == "zTXt") {
      const size_t end = chunk.find('\0');
      const bool has_method = end != chunk.npos && end + 1 < chunk.size();
      // A profile has the number of a method; only a text may lack it.
      if (has_method ? chunk[end + 1] != 0 : kind_ == "iCCP") {
        fail();
      }
    } else if (kind_ == "acTL") {
      const uint32_t frames = number(chunk, 0);
      frames_ = frames_ == 0 && frames <= 0x80000000 ? frames : 0;
    } else if (kind_ == "fcTL" || kind_ == "fdAT") {
      frame(chunk);
    }
    if (kind_ == "tEXt" || kind_ == "zTXt" || kind_ == "iTXt" || kind_ == "eXIf") {
      texts_.add(kind_, chunk);
    }
  }

  void transparency(std::string_view chunk) {
    if (!is_known_ || found_.color() > 3) {
      return;
    }
    const size_t least = found_.color() == 3 ? 0 : found_.color() == 2 ? 6 : 2;
    if (chunk.size() < least) {
      fail();
    }
    found_.transparency = chunk;
  }

  // The frames of an animation are numbered, and lie within the image.
  void frame(std::string_view chunk) {
    if (int64_t(number(chunk, 0)) != sequence_ + 1 || (kind_ == "fdAT" && sequence_ < 0)) {
      fail();
    }
    ++sequence_;
    if (kind_ == "fcTL") {
      const auto at = [&](size_t place) { return uint64_t(number(chunk, place)); };
      const uint64_t width = is_known_ ? number(found_.header, 0) : 0,
                     height = is_known_ ? number(found_.header, 4) : 0;
      const bool is_first = found_.pixels.empty();
      // The pixels that come next are those of this frame.
      if (at(12) + at(4) > width || at(16) + at(8) > height || (is_first && (at(4) != width || at(8) != height))) {
        fail();
      }
      has_frame_ = has_frame_ || is_first;
    }
  }

  [[noreturn]] void fail() const { fail_to_read(path_, "its chunk " + std::string(kind_) + " is damaged"); }

  const std::string& path_;
  std::string_view content_;
  size_t at_ = kSignature;
  uint64_t length_ = 0;
  std::string_view kind_;
  bool is_known_ = false;     // a kind of image that exists
  bool is_animated_ = false;  // the texts after its first frame do not count
  bool has_frame_ = false;    // the pixels are the first frame of the animation
  uint64_t frames_ = 0;
  int64_t sequence_ = -1;
  PngTexts texts_;
  PngChunks found_;
};

}  // namespace

PngChunks read_png_chunks(const std::string& path, std::string_view content) {
  return Walk(path, content).chunks();
}

}  // namespace llava
