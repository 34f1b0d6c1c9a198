// Tells image files apart and has each decoded.
#include "image/read_image.h"

#include <algorithm>
#include <string_view>

#include "base/errors.h"
#include "base/files.h"
#include "image/formats/formats.h"
#include "image/formats/tensor_file.h"

namespace llava {
namespace {

ImageHWC decoded(const std::string& path) {
  const std::string content = read_file<ImageError>(path);
  const std::string_view bytes = content;
  if (bytes.substr(0, 2) == "\xFF\xD8") {
#ifdef LLAVA_JPEG
    return read_jpeg(path, bytes);
#else
    fail_to_read(path, "this program was built without libjpeg; convert it to PPM, or use image.pt");
#endif
  }
  if (bytes.substr(0, 8) == "\x89PNG\r\n\x1A\n") {
#ifdef LLAVA_PNG
    return read_png(path, bytes);
#else
    fail_to_read(path, "this program was built without libpng; convert it to PPM, or use image.pt");
#endif
  }
  if (bytes.substr(0, 2) == "P6") {
    return read_ppm(path, bytes);
  }
  fail_to_read(path, "it is neither JPEG nor PNG nor binary PPM");
}

template <typename AnyImage>
AnyImage checked(const std::string& path, AnyImage image) {
  if (std::min(image.width, image.height) < kMinImageSide) {
    throw ImageError(
        path + ": " + std::to_string(image.width) + "x" + std::to_string(image.height) +
        " pixels is too small; each side needs at least " + std::to_string(kMinImageSide));
  }
  return image;
}

}  // namespace

Image read_image(const std::string& path) {
  if (path.ends_with(".pt")) {
    return checked(path, read_tensor_file(path));
  }
  return checked(path, decoded(path));
}

}  // namespace llava
