// What the image formats share: limits and error messages.
#include "image/formats/formats.h"

#include <algorithm>
#include <new>

#include "base/errors.h"
#include "image/read_image.h"

namespace llava {

namespace {

std::string size_of(int64_t width, int64_t height) {
  return std::to_string(width) + "x" + std::to_string(height);
}

}  // namespace

void fail_to_read(const std::string& path, const std::string& why) {
  throw ImageError(path + " is not an image that can be read: " + why);
}

void check_sides(const std::string& path, int64_t width, int64_t height) {
  if (std::min(width, height) < kMinImageSide) {
    throw ImageError(
        path + ": " + size_of(width, height) + " pixels is too small; each side needs at least " +
        std::to_string(kMinImageSide));
  }
}

void check_size(const std::string& path, int64_t width, int64_t height) {
  if (width < 1 || height < 1) {
    fail_to_read(path, "it has no pixels");
  }
  if (width > kMaxPixels / height) {
    throw ImageError(
        path + " is too large: " + size_of(width, height) + " pixels; at most " + std::to_string(kMaxPixels) +
        " are read");
  }
  check_sides(path, width, height);
}

ImageHWC new_image(const std::string& path, int width, int height) {
  try {
    return {width, height};
  } catch (const std::bad_alloc&) {
    throw ImageError(path + ": there is not enough memory for " + size_of(width, height) + " pixels");
  }
}

}  // namespace llava
