// Image files as bytes: what is no image is noticed before it is read.
#pragma once

#include <string>

namespace llava {

// Returns the content of an image file, or of a pipe. Throws ImageError for a URL, a folder, a device, what is missing,
// what is no image by its first bytes, and for more bytes than an image has.
std::string read_image_file(const std::string& path);

// Throws ImageError for what cannot be a file with an image: an empty path, a URL, a folder, a device, what is missing.
void check_image_path(const std::string& path);

}  // namespace llava
