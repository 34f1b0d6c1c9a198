// Decodes JPEG files, by libjpeg.

// jpeglib.h needs size_t and FILE before it.
#include <cstddef>
#include <cstdio>

#include <jpeglib.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "image/formats/formats.h"

namespace llava {
namespace {

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

// Decodes into `image`. Returns false after an error. Whatever has a destructor belongs to the caller, because an error
// of the library leaves this function by a jump, which runs no destructors.
bool decode_jpeg(
    std::string_view content,
    jpeg_decompress_struct& info,
    JpegErrors& errors,
    ImageHWC& image,
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
    image.width = int(info.image_width);
    image.height = int(info.image_height);
    return true;  // checked again by the caller
  }
  const bool is_cmyk = info.num_components == 4;
  info.out_color_space = is_cmyk ? JCS_CMYK : JCS_RGB;
  if (const auto exif = exif_of(info)) {
    orientation = orientation_in(*exif);
  }
  jpeg_start_decompress(&info);
  image = ImageHWC(int(info.output_width), int(info.output_height));
  row.resize(size_t(info.output_width) * info.output_components);
  while (info.output_scanline < info.output_height) {
    uint8_t* out = image.row(int(info.output_scanline));
    uint8_t* rows[] = {is_cmyk ? row.data() : out};
    jpeg_read_scanlines(&info, rows, 1);
    for (int x = 0; is_cmyk && x < image.width; ++x) {
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

}  // namespace

ImageHWC read_jpeg(const std::string& path, std::string_view content) {
  jpeg_decompress_struct info{};
  JpegErrors errors{};
  ImageHWC image;
  Orientation orientation = 1;
  std::vector<uint8_t> row;
  const bool decoded = decode_jpeg(content, info, errors, image, orientation, row);
  jpeg_destroy_decompress(&info);
  if (!decoded) {
    fail_to_read(path, errors.message);
  }
  check_size(path, image.width, image.height);
  if (errors.ends_early) {
    fail_to_read(path, "it is truncated");
  }
  return upright(std::move(image), orientation);
}

}  // namespace llava
