// Tells image files apart and has each decoded.
#include "image/read_image.h"

#include <new>
#include <string_view>

#include "base/errors.h"
#include "image/formats/formats.h"
#include "image/formats/known_formats.h"
#include "image/formats/tensor_file.h"
#include "image/image_file.h"

namespace llava {
namespace {

ImageHWC decoded(const std::string& path, std::string_view bytes) {
  if (bytes.substr(0, 3) == "\xFF\xD8\xFF") {
#ifdef LLAVA_JPEG
    return read_jpeg(path, bytes);
#else
    fail_to_read(path, "this runner was built without libjpeg; convert it to PPM, or use image.pt");
#endif
  }
  if (bytes.substr(0, 8) == "\x89PNG\r\n\x1A\n") {
#ifdef LLAVA_ZLIB
    return read_png(path, bytes);
#else
    fail_to_read(path, "this runner was built without zlib; convert it to PPM, or use image.pt");
#endif
  }
  if (bytes.substr(0, 1) == "P") {
    return read_ppm(path, bytes);
  }
  if (bytes.starts_with("RIFF")) {
#ifdef LLAVA_WEBP
    return read_webp(path, bytes);
#else
    fail_to_read(path, "this runner was built without WebP; save the image as JPEG or PNG");
#endif
  }
  if (bytes.starts_with("GIF8")) {
    return read_gif(path, bytes);
  }
  if (bytes.starts_with("BM")) {
    return read_bmp(path, bytes);
  }
  return read_tiff(path, bytes);
}

// A file with a tensor is known by its name.
bool has_tensor_name(const std::string& path) {
  return path.size() > 3 && path[path.size() - 3] == '.' && (path[path.size() - 2] | 32) == 'p' &&
         (path.back() | 32) == 't';
}

// Returns what `read` returns. Throws ImageError where there is no memory for it.
template <typename Read>
Image within_memory(const std::string& name, Read&& read) {
  try {
    return read();
  } catch (const std::bad_alloc&) {
    throw ImageError(name + ": there is not enough memory for it");
  }
}

}  // namespace

Image read_image(const std::string& path) {
  return within_memory(path, [&]() -> Image {
    if (has_tensor_name(path)) {
      check_image_path(path);
      ImageCHW tensor = read_tensor_file(path);
      check_sides(path, tensor.width, tensor.height);
      return tensor;
    }
    return decoded(path, read_image_file(path));
  });
}

Image read_image_bytes(const std::string& name, std::string_view content) {
  return within_memory(name, [&] {
    check_format(name, content.substr(0, kHeadBytes));
    return decoded(name, content);
  });
}

}  // namespace llava
