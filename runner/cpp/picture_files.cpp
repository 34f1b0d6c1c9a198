#include "picture_files.h"

// jpeglib.h needs size_t and FILE before it.
#include <cstddef>
#include <cstdio>

#include <jpeglib.h>
#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>
#include <memory>
#include <optional>
#include <string_view>

#include "errors.h"
#include "files.h"

namespace llava {
namespace {

constexpr int64_t kMaxPixels = int64_t(1024) * 1024 * 1024 / 4 / 3;  // Pillow's MAX_IMAGE_PIXELS
constexpr int kBackground = 255;                                     // what shows through: white, as in a browser

// Turned and mirrored as a camera says (EXIF 2.3, tag 0x0112); 1 is upright.
using Orientation = int;

[[noreturn]] void fail(const std::string& path, const std::string& why) {
  throw ImageError(path + " is not a picture that can be read: " + why);
}

void check_size(const std::string& path, int64_t width, int64_t height) {
  if (width < 1 || height < 1) {
    fail(path, "it has no pixels");
  }
  if (width * height > kMaxPixels) {
    throw ImageError(path + " is too large: " + std::to_string(width * height) + " pixels");
  }
}

// The orientation in a TIFF structure, as EXIF data is one; 1 where it says nothing.
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

Picture upright(Picture picture, Orientation orientation) {
  if (orientation == 1) {
    return picture;
  }
  const bool transposed = orientation >= 5;
  Picture out(transposed ? picture.height : picture.width, transposed ? picture.width : picture.height);
  for (int y = 0; y < out.height; ++y) {
    for (int x = 0; x < out.width; ++x) {
      int from_x = transposed ? y : x, from_y = transposed ? x : y;
      if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8) {
        from_x = picture.width - 1 - from_x;
      }
      if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7) {
        from_y = picture.height - 1 - from_y;
      }
      std::memcpy(out.row(y) + 3 * x, picture.row(from_y) + 3 * from_x, 3);
    }
  }
  return out;
}

// --- JPEG ----------------------------------------------------------------------------------------------------------

struct JpegErrors {
  jpeg_error_mgr manager;
  std::jmp_buf back;
  char message[JMSG_LENGTH_MAX];
  bool ends_early = false;
};

void throw_back(j_common_ptr info) {
  auto* errors = reinterpret_cast<JpegErrors*>(info->err);
  info->err->format_message(info, errors->message);
  std::longjmp(errors->back, 1);
}

void note_warning(j_common_ptr info, int level) {
  if (level < 0) {
    char message[JMSG_LENGTH_MAX];
    info->err->format_message(info, message);
    auto* errors = reinterpret_cast<JpegErrors*>(info->err);
    errors->ends_early = errors->ends_early || std::strstr(message, "remature end") != nullptr;
  }
}

std::optional<std::string_view> exif_of(const jpeg_decompress_struct& info) {
  constexpr std::string_view kHead("Exif\0\0", 6);
  for (const auto* marker = info.marker_list; marker; marker = marker->next) {
    const std::string_view data(reinterpret_cast<const char*>(marker->data), marker->data_length);
    if (marker->marker == JPEG_APP0 + 1 && data.substr(0, kHead.size()) == kHead) {
      return data.substr(kHead.size());
    }
  }
  return std::nullopt;
}

// Everything with a destructor lives outside: an error of the library jumps over them.
bool decode_jpeg(
    std::string_view content,
    jpeg_decompress_struct& info,
    JpegErrors& errors,
    Picture& picture,
    Orientation& orientation,
    std::vector<uint8_t>& row) {
  info.err = jpeg_std_error(&errors.manager);
  errors.manager.error_exit = throw_back;
  errors.manager.emit_message = note_warning;
  if (setjmp(errors.back)) {
    return false;
  }
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, reinterpret_cast<const unsigned char*>(content.data()), content.size());
  jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);
  jpeg_read_header(&info, TRUE);
  if (int64_t(info.image_width) * info.image_height > kMaxPixels) {
    picture.width = int(info.image_width);
    picture.height = int(info.image_height);
    return true;  // checked again by the caller
  }
  const bool is_cmyk = info.num_components == 4;
  info.out_color_space = is_cmyk ? JCS_CMYK : JCS_RGB;
  if (const auto exif = exif_of(info)) {
    orientation = orientation_in(*exif);
  }
  jpeg_start_decompress(&info);
  picture = Picture(int(info.output_width), int(info.output_height));
  row.resize(size_t(info.output_width) * info.output_components);
  while (info.output_scanline < info.output_height) {
    uint8_t* out = picture.row(int(info.output_scanline));
    uint8_t* rows[] = {is_cmyk ? row.data() : out};
    jpeg_read_scanlines(&info, rows, 1);
    for (int x = 0; is_cmyk && x < picture.width; ++x) {
      // Adobe's programs store ink inverted: 255 is none.
      const auto ink = [&](int i) { return info.saw_Adobe_marker ? 255 - row[4 * x + i] : row[4 * x + i]; };
      const int light = 255 - ink(3);
      for (int channel = 0; channel < 3; ++channel) {
        const int product = ink(channel) * light + 128;
        out[3 * x + channel] = uint8_t(std::max(0, light - ((product + (product >> 8)) >> 8)));
      }
    }
  }
  jpeg_finish_decompress(&info);
  return true;
}

Picture read_jpeg(const std::string& path, std::string_view content) {
  jpeg_decompress_struct info{};
  JpegErrors errors{};
  Picture picture;
  Orientation orientation = 1;
  std::vector<uint8_t> row;
  const bool decoded = decode_jpeg(content, info, errors, picture, orientation, row);
  jpeg_destroy_decompress(&info);
  if (!decoded) {
    fail(path, errors.message);
  }
  check_size(path, picture.width, picture.height);
  if (errors.ends_early) {
    fail(path, "it is truncated");
  }
  return upright(std::move(picture), orientation);
}

// --- PNG -----------------------------------------------------------------------------------------------------------

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

// As with JPEG, nothing in here has a destructor.
bool decode_png(png_structp png, png_infop info, std::string_view& rest, PngImage& image) {
  if (setjmp(png_jmpbuf(png))) {
    return false;
  }
  png_set_read_fn(png, &rest, read_png_bytes);
  png_read_info(png, info);
  image.width = int(png_get_image_width(png, info));
  image.height = int(png_get_image_height(png, info));
  if (int64_t(image.width) * image.height > kMaxPixels) {
    return true;  // checked again by the caller
  }
  const int color = png_get_color_type(png, info);
  image.is_gray16 = color == PNG_COLOR_TYPE_GRAY && png_get_bit_depth(png, info) == 16;
  if (!image.is_gray16) {
    png_set_strip_16(png);  // of a color the upper byte, as Pillow takes it
    png_set_expand(png);    // palettes, few bits and transparent colors to 8 bits a channel
    png_set_gray_to_rgb(png);
  }
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  const size_t row_bytes = png_get_rowbytes(png, info);
  image.bytes_per_pixel = int(row_bytes / size_t(image.width));
  image.bytes.resize(row_bytes * size_t(image.height));
  image.rows.resize(size_t(image.height));
  for (int y = 0; y < image.height; ++y) {
    image.rows[size_t(y)] = image.bytes.data() + row_bytes * size_t(y);
  }
  png_read_image(png, image.rows.data());
  png_read_end(png, info);
#ifdef PNG_eXIf_SUPPORTED
  png_bytep exif = nullptr;
  png_uint_32 exif_length = 0;
  if (png_get_eXIf_1(png, info, &exif_length, &exif)) {
    image.orientation = orientation_in({reinterpret_cast<const char*>(exif), exif_length});
  }
#endif
  return true;
}

// A channel over the background, by Pillow's integer arithmetic (alpha_composite) for an opaque background.
uint8_t over_background(int value, int alpha) {
  if (alpha == 0) {
    return kBackground;
  }
  const uint32_t coefficient = uint32_t(alpha) * 255 * 255 * 128 / (255 * 255);
  const uint32_t sum = uint32_t(value) * coefficient + kBackground * (255 * 128 - coefficient) + (0x80 << 7);
  return uint8_t((((sum >> 8) + sum) >> 8) >> 7);
}

Picture read_png(const std::string& path, std::string_view content) {
  PngErrors errors;
  PngImage image;
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &errors, throw_png, ignore_png_warning);
  png_infop info = png_create_info_struct(png);
  const bool decoded = decode_png(png, info, content, image);
  png_destroy_read_struct(&png, &info, nullptr);
  if (!decoded) {
    fail(path, errors.message);
  }
  check_size(path, image.width, image.height);
  Picture picture(image.width, image.height);
  for (size_t i = 0; i < picture.pixels.size(); ++i) {
    const uint8_t* pixel = image.bytes.data() + i / 3 * size_t(image.bytes_per_pixel);
    if (image.is_gray16) {
      picture.pixels[i] = uint8_t((pixel[0] << 8 | pixel[1]) / 257);
    } else {
      picture.pixels[i] = image.bytes_per_pixel == 4 ? over_background(pixel[i % 3], pixel[3]) : pixel[i % 3];
    }
  }
  return upright(std::move(picture), image.orientation);
}

// --- PPM -----------------------------------------------------------------------------------------------------------

Picture read_ppm(const std::string& path, std::string_view content) {
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
      fail(path, "its header is damaged");
    }
    return value;
  };
  const int width = next_number(), height = next_number(), largest = next_number();
  check_size(path, width, height);
  if (largest != 255) {
    fail(path, "only 8 bits a channel are supported");
  }
  ++at;  // the one white space after the header
  Picture picture(width, height);
  if (at > content.size() || content.size() - at < picture.pixels.size()) {
    fail(path, "it is truncated");
  }
  std::memcpy(picture.pixels.data(), content.data() + at, picture.pixels.size());
  return picture;
}

}  // namespace

Picture read_picture(const std::string& path) {
  const std::string content = read_file<ImageError>(path);
  const std::string_view bytes = content;
  if (bytes.substr(0, 2) == "\xFF\xD8") {
    return read_jpeg(path, bytes);
  }
  if (bytes.substr(0, 8) == "\x89PNG\r\n\x1A\n") {
    return read_png(path, bytes);
  }
  if (bytes.substr(0, 2) == "P6") {
    return read_ppm(path, bytes);
  }
  fail(path, "it is neither JPEG nor PNG nor binary PPM");
}

}  // namespace llava
