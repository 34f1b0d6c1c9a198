// The file formats of images, and what they share.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "image/image.h"

namespace llava {

// Each decodes the content of a file; `path` is for the message of the ImageError it throws.
ImageHWC read_jpeg(const std::string& path, std::string_view content);
ImageHWC read_png(const std::string& path, std::string_view content);
ImageHWC read_ppm(const std::string& path, std::string_view content);

constexpr int64_t kMaxPixels = int64_t(1024) * 1024 * 1024 / 4 / 3;  // Pillow's MAX_IMAGE_PIXELS

// Throws ImageError: the file is not an image that can be read.
[[noreturn]] void fail_to_read(const std::string& path, const std::string& why);

// Throws ImageError for an image without pixels, and for more than kMaxPixels.
void check_size(const std::string& path, int64_t width, int64_t height);

// How a camera was held, as it notes it (EXIF 2.3, tag 0x0112); 1 is upright.
using Orientation = int;

// Returns the orientation in EXIF data, which is a TIFF structure; 1 where it has none.
Orientation orientation_in(std::string_view tiff);

// Returns the image turned and mirrored so that it is upright.
ImageHWC upright(ImageHWC image, Orientation orientation);

}  // namespace llava
