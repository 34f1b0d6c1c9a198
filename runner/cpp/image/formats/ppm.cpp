// Decodes binary PPM files (P6).
#include <algorithm>
#include <cctype>
#include <cstring>

#include "image/formats/formats.h"

namespace llava {

ImageHWC read_ppm(const std::string& path, std::string_view content) {
  size_t at = 2;
  const auto next_number = [&] {
    while (at < content.size() && (std::isspace(uint8_t(content[at])) || content[at] == '#')) {
      at = content[at] == '#' ? std::min(content.find('\n', at), content.size()) : at + 1;
    }
    int value = 0;
    const size_t first = at;
    while (at < content.size() && std::isdigit(uint8_t(content[at])) && value < 1'000'000) {
      value = 10 * value + content[at++] - '0';
    }
    if (at == first) {
      fail_to_read(path, "its header is damaged");
    }
    return value;
  };
  const int width = next_number(), height = next_number(), largest = next_number();
  check_size(path, width, height);
  if (largest != 255) {
    fail_to_read(path, "only 8 bits a channel are supported");
  }
  ++at;  // the one white space after the header
  ImageHWC image(width, height);
  if (at > content.size() || content.size() - at < image.bytes.size()) {
    fail_to_read(path, "it is truncated");
  }
  std::memcpy(image.bytes.data(), content.data() + at, image.bytes.size());
  return image;
}

}  // namespace llava
