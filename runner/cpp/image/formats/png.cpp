// Decodes PNG files, by libpng.
#include <png.h>

#include <csetjmp>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "image/formats/formats.h"

namespace llava {
namespace {

constexpr int kBackground = 255;  // what shows through: white, as in a browser

struct PngErrors {
  char message[256] = "";
};

void throw_png(png_structp png, png_const_charp message) {
  auto* errors = static_cast<PngErrors*>(png_get_error_ptr(png));
  std::snprintf(errors->message, sizeof(errors->message), "%s", message);
  png_longjmp(png, 1);
}

void ignore_png_warning(png_structp, png_const_charp) {}

void read_png_bytes(png_structp png, png_bytep out, size_t length) {
  auto* rest = static_cast<std::string_view*>(png_get_io_ptr(png));
  if (rest->size() < length) {
    png_error(png, "it is truncated");
  }
  std::memcpy(out, rest->data(), length);
  rest->remove_prefix(length);
}

struct PngImage {
  int width = 0;
  int height = 0;
  int bytes_per_pixel = 0;
  bool is_gray16 = false;
  Orientation orientation = 1;
  std::vector<uint8_t> bytes;
  std::vector<png_bytep> rows;
};

// Decodes into `source`. Returns false after an error. As with JPEG, nothing in here has a destructor.
bool decode_png(png_structp png, png_infop info, std::string_view& rest, PngImage& source) {
  if (setjmp(png_jmpbuf(png))) {
    return false;
  }
  png_set_read_fn(png, &rest, read_png_bytes);
  png_read_info(png, info);
  source.width = int(png_get_image_width(png, info));
  source.height = int(png_get_image_height(png, info));
  if (int64_t(source.width) * source.height > kMaxPixels) {
    return true;  // checked again by the caller
  }
  const int color = png_get_color_type(png, info);
  source.is_gray16 = color == PNG_COLOR_TYPE_GRAY && png_get_bit_depth(png, info) == 16;
  if (!source.is_gray16) {
    png_set_strip_16(png);  // of a color the upper byte, as Pillow takes it
    png_set_expand(png);    // palettes, few bits and transparent colors to 8 bits a channel
    png_set_gray_to_rgb(png);
  }
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  const size_t row_bytes = png_get_rowbytes(png, info);
  source.bytes_per_pixel = int(row_bytes / size_t(source.width));
  source.bytes.resize(row_bytes * size_t(source.height));
  source.rows.resize(size_t(source.height));
  for (int y = 0; y < source.height; ++y) {
    source.rows[size_t(y)] = source.bytes.data() + row_bytes * size_t(y);
  }
  png_read_image(png, source.rows.data());
  png_read_end(png, info);
#ifdef PNG_eXIf_SUPPORTED
  png_bytep exif = nullptr;
  png_uint_32 exif_length = 0;
  if (png_get_eXIf_1(png, info, &exif_length, &exif)) {
    source.orientation = orientation_in({reinterpret_cast<const char*>(exif), exif_length});
  }
#endif
  return true;
}

// Returns a channel laid on the background, by Pillow's integer arithmetic (alpha_composite) for an opaque one.
uint8_t over_background(int value, int alpha) {
  if (alpha == 0) {
    return kBackground;
  }
  const uint32_t coefficient = uint32_t(alpha) * 255 * 255 * 128 / (255 * 255);
  const uint32_t sum = uint32_t(value) * coefficient + kBackground * (255 * 128 - coefficient) + (0x80 << 7);
  return uint8_t((((sum >> 8) + sum) >> 8) >> 7);
}

}  // namespace

ImageHWC read_png(const std::string& path, std::string_view content) {
  PngErrors errors;
  PngImage source;
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &errors, throw_png, ignore_png_warning);
  png_infop info = png_create_info_struct(png);
  const bool decoded = decode_png(png, info, content, source);
  png_destroy_read_struct(&png, &info, nullptr);
  if (!decoded) {
    fail_to_read(path, errors.message);
  }
  check_size(path, source.width, source.height);
  ImageHWC image(source.width, source.height);
  for (size_t i = 0; i < image.bytes.size(); ++i) {
    const uint8_t* pixel = source.bytes.data() + i / 3 * size_t(source.bytes_per_pixel);
    if (source.is_gray16) {
      image.bytes[i] = uint8_t((pixel[0] << 8 | pixel[1]) / 257);
    } else {
      image.bytes[i] = source.bytes_per_pixel == 4 ? over_background(pixel[i % 3], pixel[3]) : pixel[i % 3];
    }
  }
  return upright(std::move(image), source.orientation);
}

}  // namespace llava
