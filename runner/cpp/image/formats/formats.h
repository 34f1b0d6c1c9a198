// The file formats of images, and what they share.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "image/formats/orientation.h"
#include "image/image.h"

namespace llava {

// Each decodes the content of a file; `path` is for the message of the ImageError it throws.
ImageHWC read_jpeg(const std::string& path, std::string_view content);
ImageHWC read_png(const std::string& path, std::string_view content);
ImageHWC read_ppm(const std::string& path, std::string_view content);
ImageHWC read_bmp(const std::string& path, std::string_view content);
ImageHWC read_gif(const std::string& path, std::string_view content);   // the first frame
ImageHWC read_tiff(const std::string& path, std::string_view content);  // the first image
ImageHWC read_webp(const std::string& path, std::string_view content);  // the first frame

constexpr int64_t kMaxPixels = int64_t(1024) * 1024 * 1024 / 4 / 3;  // Pillow's MAX_IMAGE_PIXELS: 256 MiB in RGB

// Throws ImageError: the file is not an image that can be read.
[[noreturn]] void fail_to_read(const std::string& path, const std::string& why);

// Throws ImageError for a side below kMinImageSide.
void check_sides(const std::string& path, int64_t width, int64_t height);

// Throws ImageError for an image without pixels, for more than kMaxPixels, and as check_sides does.
void check_size(const std::string& path, int64_t width, int64_t height);

// Returns an image of black pixels. Throws ImageError where there is no memory for it.
ImageHWC new_image(const std::string& path, int width, int height);

}  // namespace llava
