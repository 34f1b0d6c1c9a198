// The first directory of a TIFF file: what its tags say about the image.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "image/formats/formats.h"

namespace llava {

enum class TiffTag : uint16_t {
  kWidth = 256,
  kHeight = 257,
  kBitsPerSample = 258,
  kCompression = 259,
  kPhotometric = 262,
  kFillOrder = 266,
  kStripOffsets = 273,
  kOrientation = 274,
  kSamplesPerPixel = 277,
  kRowsPerStrip = 278,
  kPlanarConfiguration = 284,
  kColorMap = 320,
  kTileWidth = 322,
  kTileHeight = 323,
  kTileOffsets = 324,
  kExtraSamples = 338,
  kSampleFormat = 339,
  kXmp = 700,
  kWindowsMedia = 0xBC01,
};

class TiffDirectory {
 public:
  // Throws ImageError if the file has no directory. As in Pillow, a tag whose value is not within the file counts as
  // missing, and so do all tags after it.
  TiffDirectory(const std::string& path, std::string_view content);

  bool is_big_endian() const { return is_big_endian_; }
  bool has(TiffTag tag) const { return tags_.contains(uint16_t(tag)); }

  // Returns how the camera was held; 1 where the tag is missing or has no such value.
  Orientation orientation() const;

  // Returns the bytes of a tag, in the order of the file; none where it is missing.
  std::string_view bytes(TiffTag tag) const;

  // Returns the values of a tag, none where it is missing. Throws ImageError for what are not whole numbers.
  std::vector<int64_t> numbers(TiffTag tag) const;

  // Returns the first value of a tag, or `otherwise` where it is missing. Throws ImageError as numbers() does.
  int64_t number(TiffTag tag, int64_t otherwise) const;

 private:
  struct Value {
    int type;
    std::string_view bytes;
  };

  const std::string& path_;
  bool is_big_endian_;
  std::map<uint16_t, Value> tags_;
};

}  // namespace llava
