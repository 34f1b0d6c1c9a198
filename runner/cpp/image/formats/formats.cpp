// What the image formats share: limits, error messages, and turning an image upright.
#include "image/formats/formats.h"

#include <cstring>
#include <optional>
#include <utility>

#include "base/errors.h"

namespace llava {

void fail_to_read(const std::string& path, const std::string& why) {
  throw ImageError(path + " is not an image that can be read: " + why);
}

void check_size(const std::string& path, int64_t width, int64_t height) {
  if (width < 1 || height < 1) {
    fail_to_read(path, "it has no pixels");
  }
  if (width * height > kMaxPixels) {
    throw ImageError(path + " is too large: " + std::to_string(width * height) + " pixels");
  }
}

Orientation orientation_in(std::string_view tiff) {
  if (tiff.size() < 8) {
    return 1;
  }
  const bool little = tiff.substr(0, 2) == "II";
  const auto number = [&](size_t at, size_t length) -> std::optional<uint32_t> {
    if (at > tiff.size() || tiff.size() - at < length) {
      return std::nullopt;
    }
    uint32_t value = 0;
    for (size_t i = 0; i < length; ++i) {
      value = value << 8 | uint8_t(tiff[at + (little ? length - 1 - i : i)]);
    }
    return value;
  };
  const uint32_t directory = *number(4, 4);
  const auto count = number(directory, 2);
  for (uint32_t i = 0; count && i < *count; ++i) {
    const size_t entry = size_t(directory) + 2 + 12 * size_t(i);
    const auto tag = number(entry, 2), type = number(entry + 2, 2), value = number(entry + 8, 2);
    if (!value) {
      break;
    }
    if (*tag == 0x0112 && *type == 3 && *value >= 1 && *value <= 8) {
      return Orientation(*value);
    }
  }
  return 1;
}

ImageHWC upright(ImageHWC image, Orientation orientation) {
  if (orientation == 1) {
    return image;
  }
  const bool transposed = orientation >= 5;
  ImageHWC out(transposed ? image.height : image.width, transposed ? image.width : image.height);
  for (int y = 0; y < out.height; ++y) {
    for (int x = 0; x < out.width; ++x) {
      int from_x = transposed ? y : x, from_y = transposed ? x : y;
      if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8) {
        from_x = image.width - 1 - from_x;
      }
      if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7) {
        from_y = image.height - 1 - from_y;
      }
      std::memcpy(out.row(y) + 3 * x, image.row(from_y) + 3 * from_x, 3);
    }
  }
  return out;
}

}  // namespace llava
