// How a camera was held, from the metadata of image files: found as Pillow finds it, also where it is malformed.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "image/image.h"

namespace llava {

// 1 is upright (EXIF 2.3, tag 0x0112).
using Orientation = int;

// The metadata of a file that may have its orientation.
struct Metadata {
  bool is_malformed = false;        // nothing of it can be read
  std::optional<std::string> exif;  // a TIFF structure, perhaps after "Exif\0\0"
  std::string xmp;
};

// Returns the orientation in EXIF data, or, where that has none, in XMP; 1 where neither has one.
Orientation orientation_of(const Metadata& metadata);

// Returns the orientation in EXIF data alone.
Orientation orientation_in(std::string_view exif);

// Returns the image turned and mirrored so that it is upright.
ImageHWC upright(ImageHWC image, Orientation orientation);

}  // namespace llava
