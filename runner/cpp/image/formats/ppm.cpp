// Decodes PPM, PGM and PBM files, binary and plain (P1 to P6), as Pillow does.
#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <optional>
#include <vector>

#include "image/formats/formats.h"

namespace llava {
namespace {

constexpr size_t kLongestToken = 10;  // characters
constexpr size_t kBlockBytes = size_t(1) << 20;

bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

class Reader {
 public:
  Reader(const std::string& path, std::string_view content) : path_(path), content_(content) {
    kind_ = content_[1] - '0';
    at_ = 3;  // after the one white space
    width_ = header_number();
    height_ = header_number();
    const bool is_bits = kind_ == 1 || kind_ == 4;
    largest_ = is_bits ? 1 : int(std::min<int64_t>(header_number(), 65536));
    if (largest_ < 1 || largest_ > 65535) {
      fail_to_read(path_, "its largest value is not from 1 to 65535");
    }
    channels_ = kind_ == 3 || kind_ == 6 ? 3 : 1;
    // Gray of more than 8 bits is scaled to 16 and then to 8.
    const int scale = channels_ == 1 && largest_ > 255 ? 65535 : 255;
    const size_t values = largest_ > 255 ? 65536 : 256;
    for (size_t value = 0; value < values; ++value) {
      const double scaled = std::nearbyint(double(value) / largest_ * scale);
      const int sample = int(std::min(scaled, double(scale)));
      table_.push_back(uint8_t(scale == 255 ? sample : sample / 257));
    }
  }

  ImageHWC image() {
    begin_ = at_;
    check_size(path_, width_, height_);
    ImageHWC image = new_image(path_, int(width_), int(height_));
    for (int y = 0; y < image.height; ++y) {
      uint8_t* out = image.row(y);
      for (int x = 0; x < image.width; ++x, out += 3) {
        for (int channel = 0; channel < channels_; ++channel) {
          out[channel] = kind_ == 4 ? bit(x) : kind_ == 1 ? digit() : table_[size_t(kind_ > 3 ? binary() : number())];
        }
        for (int channel = channels_; channel < 3; ++channel) {
          out[channel] = out[0];
        }
      }
      if (kind_ == 4) {
        at_ += size_t(width_ + 7) / 8;
      }
    }
    check_rest_of_bits();
    return image;
  }

 private:
  // Pillow looks at a mebibyte of plain bits at once, also at those after the last.
  void check_rest_of_bits() {
    const size_t end = begin_ + (at_ - begin_ + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
    while (kind_ == 1 && at_ < std::min(end, content_.size())) {
      if (next_plain(true) != '\0') {
        digit();
      }
    }
  }

  // Returns the next number of the header. A comment may stand anywhere, also within the number.
  int64_t header_number() {
    std::string token;
    while (token.size() <= kLongestToken && at_ < content_.size()) {
      const char c = content_[at_++];
      if (c == '#') {
        skip_comment();
      } else if (!is_space(c)) {
        token += c;
      } else if (!token.empty()) {
        break;
      }
    }
    const size_t sign = token.starts_with('+') ? 1 : 0;
    if (token.size() == sign || token.size() > kLongestToken ||
        !std::all_of(token.begin() + int(sign), token.end(), [](uint8_t c) { return std::isdigit(c); })) {
      fail_to_read(path_, "its header is damaged");
    }
    return std::stoll(token);
  }

  // Goes over a comment and the end of its line.
  void skip_comment() { at_ = std::min(content_.find_first_of("\r\n", at_), content_.size() - 1) + 1; }

  int binary() {
    const size_t length = largest_ > 255 ? 2 : 1;
    if (content_.size() - at_ < length) {
      fail_to_read(path_, "it is truncated");
    }
    const int first = uint8_t(content_[at_]);
    const int value = length == 1 ? first : first << 8 | uint8_t(content_[at_ + 1]);
    at_ += length;
    return value;
  }

  uint8_t bit(int x) const {
    const size_t at = at_ + size_t(x) / 8;
    if (at >= content_.size()) {
      fail_to_read(path_, "it is truncated");
    }
    return uint8_t(content_[at]) >> (7 - x % 8) & 1 ? 0 : 255;
  }

  // Goes to the next character of a plain file that is neither space nor comment. In there a comment separates nothing.
  char next_plain(bool skip_spaces) {
    while (at_ < content_.size() && (content_[at_] == '#' || (skip_spaces && is_space(content_[at_])))) {
      content_[at_] == '#' ? skip_comment() : void(++at_);
    }
    return at_ < content_.size() ? content_[at_] : '\0';
  }

  uint8_t digit() {
    const char c = next_plain(true);
    if (c != '0' && c != '1') {
      fail_to_read(path_, at_ < content_.size() ? "it has other digits than 0 and 1" : "it is truncated");
    }
    ++at_;
    return c == '0' ? 255 : 0;
  }

  int number() {
    std::string token;
    for (char c = next_plain(true); at_ < content_.size() && !is_space(c); c = next_plain(false)) {
      token += c;
      ++at_;
      if (token.size() > kLongestToken) {
        break;
      }
    }
    if (token.empty()) {
      fail_to_read(path_, "it is truncated");
    }
    const bool is_number = token.size() <= kLongestToken &&
                           std::all_of(token.begin(), token.end(), [](uint8_t c) { return std::isdigit(c); });
    if (!is_number || std::stoll(token) > largest_) {
      fail_to_read(path_, "it has a value that is not from 0 to its largest");
    }
    return int(std::stoll(token));
  }

  const std::string& path_;
  std::string_view content_;
  size_t at_ = 0;
  size_t begin_ = 0;  // of the pixels
  int kind_ = 0;
  int64_t width_ = 0, height_ = 0;
  int largest_ = 1;
  int channels_ = 1;
  std::vector<uint8_t> table_;
};

}  // namespace

ImageHWC read_ppm(const std::string& path, std::string_view content) {
  return Reader(path, content).image();
}

}  // namespace llava
