// Reads the orientation from EXIF and XMP, and turns images.
#include "image/formats/orientation.h"

#include <cmath>
#include <cstring>

namespace llava {
namespace {

constexpr std::string_view kHead("Exif\0\0", 6);
constexpr uint32_t kTag = 0x0112;

// The types of TIFF's values that are numbers.
enum Type {
  kShort = 3,
  kLong = 4,
  kRational = 5,
  kSignedByte = 6,
  kSignedShort = 8,
  kSignedLong = 9,
  kSignedRational = 10,
  kFloat = 11,
  kDouble = 12,
  kDirectory = 13,
  kLong8 = 16,
};

// Returns the size of a value in bytes; 0 for types that do not exist.
uint64_t size_of(uint32_t type) {
  constexpr uint8_t kSizes[] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};
  return type < std::size(kSizes) ? kSizes[type] : 0;
}

class Tiff {
 public:
  explicit Tiff(std::string_view bytes) : bytes_(bytes), little_(bytes.substr(0, 2) == "II") {}

  // Returns whether there are `length` bytes at a place.
  bool has(uint64_t at, uint64_t length) const { return at <= bytes_.size() && bytes_.size() - at >= length; }

  // Returns a number of `length` bytes that are there.
  uint64_t number(uint64_t at, int length) const {
    uint64_t value = 0;
    for (int i = 0; i < length; ++i) {
      value = value << 8 | uint8_t(bytes_[size_t(at) + size_t(little_ ? length - 1 - i : i)]);
    }
    return value;
  }

  int64_t signed_number(uint64_t at, int length) const {
    const int shift = 64 - 8 * length;
    return int64_t(number(at, length) << shift) >> shift;
  }

  // Returns the first value of a type at a place; 0 where it is text or bytes, which are no orientation.
  double value(uint32_t type, uint64_t at) const {
    switch (type) {
      case kShort:
        return double(number(at, 2));
      case kLong:
      case kDirectory:
        return double(number(at, 4));
      case kLong8:
        return double(number(at, 8));
      case kSignedByte:
        return double(signed_number(at, 1));
      case kSignedShort:
        return double(signed_number(at, 2));
      case kSignedLong:
        return double(signed_number(at, 4));
      case kRational:
        return double(number(at, 4)) / double(number(at + 4, 4));
      case kSignedRational:
        return double(signed_number(at, 4)) / double(signed_number(at + 4, 4));
      case kFloat: {
        const auto bits = uint32_t(number(at, 4));
        float single;
        std::memcpy(&single, &bits, sizeof(single));
        return double(single);
      }
      case kDouble: {
        const uint64_t bits = number(at, 8);
        double result;
        std::memcpy(&result, &bits, sizeof(result));
        return result;
      }
      default:
        return 0;
    }
  }

 private:
  std::string_view bytes_;
  bool little_;
};

Orientation as_orientation(double value) {
  return value >= 1 && value <= 8 && value == std::floor(value) ? Orientation(value) : 1;
}

// Returns the orientation in the first directory of a TIFF structure: the last entry counts, and the first of its
// values. Returns nothing where there is none. A directory that is cut short has what comes before the cut.
std::optional<Orientation> orientation_in_directory(const Tiff& tiff) {
  std::optional<Orientation> found;
  const uint64_t directory = tiff.number(4, 4);
  if (!tiff.has(directory, 2)) {
    return found;
  }
  const uint64_t count = tiff.number(directory, 2);
  for (uint64_t entry = directory + 2; entry < directory + 2 + 12 * count; entry += 12) {
    if (!tiff.has(entry, 12)) {
      break;
    }
    const auto type = uint32_t(tiff.number(entry + 2, 2));
    const uint64_t bytes = size_of(type) * tiff.number(entry + 4, 4);
    if (bytes == 0) {
      continue;
    }
    const uint64_t at = bytes > 4 ? tiff.number(entry + 8, 4) : entry + 8;
    if (!tiff.has(at, bytes)) {
      break;
    }
    if (tiff.number(entry, 2) == kTag) {
      found = as_orientation(tiff.value(type, at));
    }
  }
  return found;
}

Orientation orientation_in_xmp(std::string_view xmp) {
  constexpr std::string_view kName = "tiff:Orientation";
  for (size_t at = xmp.find(kName); at != xmp.npos; at = xmp.find(kName, at + 1)) {
    std::string_view rest = xmp.substr(at + kName.size());
    const size_t skipped = rest.starts_with("=\"") ? 2 : rest.starts_with(">") ? 1 : 0;
    if (skipped && rest.size() > skipped && rest[skipped] >= '0' && rest[skipped] <= '9') {
      return as_orientation(rest[skipped] - '0');
    }
  }
  return 1;
}

}  // namespace

Orientation orientation_of(const Metadata& metadata) {
  if (metadata.is_malformed) {
    return 1;
  }
  std::string_view exif = metadata.exif ? std::string_view(*metadata.exif) : std::string_view();
  while (exif.starts_with(kHead)) {
    exif.remove_prefix(kHead.size());
  }
  if (!exif.empty()) {
    using namespace std::string_view_literals;
    bool is_tiff = false;  // Pillow takes more than the standard's first two
    for (const std::string_view start : {"MM\0*"sv, "II*\0"sv, "MM*\0"sv, "II\0*"sv, "MM\0+"sv}) {
      is_tiff = is_tiff || exif.starts_with(start);
    }
    if (!is_tiff || exif.size() < 8) {
      return 1;
    }
    if (const auto found = orientation_in_directory(Tiff(exif))) {
      return *found;
    }
  }
  return orientation_in_xmp(metadata.xmp);
}

Orientation orientation_in(std::string_view exif) {
  return orientation_of({false, std::string(exif), ""});
}

ImageHWC upright(ImageHWC image, Orientation orientation) {
  if (orientation == 1) {
    return image;
  }
  const bool transposed = orientation >= 5;
  ImageHWC out(transposed ? image.height : image.width, transposed ? image.width : image.height);
  for (int y = 0; y < out.height; ++y) {
    for (int x = 0; x < out.width; ++x) {
      int from_x = transposed ? y : x, from_y = transposed ? x : y;
      if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8) {
        from_x = image.width - 1 - from_x;
      }
      if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7) {
        from_y = image.height - 1 - from_y;
      }
      std::memcpy(out.row(y) + 3 * size_t(x), image.row(from_y) + 3 * size_t(from_x), 3);
    }
  }
  return out;
}

}  // namespace llava
