// Decodes JPEG files, by libjpeg.

// jpeglib.h needs size_t and FILE before it.
#include <cstddef>
#include <cstdio>

#include <jpeglib.h>
// The numbers of messages need jpeglib.h before them.
#include <jerror.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "image/formats/formats.h"
#include "image/formats/jpeg_header.h"
#include "image/formats/pixels.h"

namespace llava {
namespace {

struct JpegErrors {
  jpeg_error_mgr manager;
  std::jmp_buf back;
  char message[JMSG_LENGTH_MAX];
  bool has_all_rows = false;
  bool has_ended = false;  // the file, before what is read of it
};

void throw_back(j_common_ptr info) {
  auto* errors = reinterpret_cast<JpegErrors*>(info->err);
  info->err->format_message(info, errors->message);
  std::longjmp(errors->back, 1);
}

void note_warning(j_common_ptr info, int level) {
  if (level < 0 && info->err->msg_code == JWRN_JPEG_EOF) {
    reinterpret_cast<JpegErrors*>(info->err)->has_ended = true;
  }
}

// Decodes into `image`. Returns false after an error. Whatever has a destructor belongs to the caller, because an error
// of the library leaves this function by a jump, which runs no destructors.
bool decode_jpeg(
    std::string_view content,
    int scale,
    jpeg_decompress_struct& info,
    JpegErrors& errors,
    ImageHWC& image,
    std::vector<uint8_t>& row) {
  info.err = jpeg_std_error(&errors.manager);
  errors.manager.error_exit = throw_back;
  errors.manager.emit_message = note_warning;
  if (setjmp(errors.back)) {
    return errors.has_all_rows && errors.has_ended;
  }
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, reinterpret_cast<const unsigned char*>(content.data()), content.size());
  while (jpeg_read_header(&info, FALSE) == JPEG_HEADER_TABLES_ONLY) {
  }
  const bool is_cmyk = info.num_components == 4;
  info.out_color_space = is_cmyk ? JCS_CMYK : JCS_RGB;
  info.scale_denom = unsigned(scale);
  jpeg_start_decompress(&info);
  if (int(info.output_width) != image.width || int(info.output_height) != image.height) {
    std::strcpy(errors.message, "its header is damaged");
    return false;
  }
  while (info.output_scanline < info.output_height && !errors.has_ended) {
    uint8_t* out = image.row(int(info.output_scanline));
    uint8_t* rows[] = {is_cmyk ? row.data() : out};
    jpeg_read_scanlines(&info, rows, 1);
    for (int x = 0; is_cmyk && x < image.width; ++x) {
      // Ink is stored inverted, as Adobe's programs do it: 255 is none.
      const uint8_t* stored = row.data() + 4 * size_t(x);
      for (size_t channel = 0; channel < 3; ++channel) {
        out[3 * size_t(x) + channel] = printed(255 - stored[channel], 255 - stored[3]);
      }
    }
  }
  if (errors.has_ended) {
    std::strcpy(errors.message, "it is truncated");
    return false;
  }
  errors.has_all_rows = true;  // what follows may be missing, but not be damaged
  jpeg_finish_decompress(&info);
  return true;
}

}  // namespace

ImageHWC read_jpeg(const std::string& path, std::string_view content) {
  const JpegHeader header = read_jpeg_header(path, content);
  const auto reduced = [&](int64_t side) { return (side + header.scale - 1) / header.scale; };
  check_size(path, reduced(header.width), reduced(header.height));
  jpeg_decompress_struct info{};
  JpegErrors errors{};
  ImageHWC image = new_image(path, int(reduced(header.width)), int(reduced(header.height)));
  std::vector<uint8_t> row(size_t(image.width) * 4);
  const bool decoded = decode_jpeg(content, header.scale, info, errors, image, row);
  const bool has_no_memory = !decoded && errors.manager.msg_code == JERR_OUT_OF_MEMORY;
  jpeg_destroy_decompress(&info);
  if (has_no_memory) {
    throw std::bad_alloc();
  }
  if (!decoded) {
    fail_to_read(path, errors.message);
  }
  return upright(std::move(image), orientation_of(header.metadata));
}

}  // namespace llava
