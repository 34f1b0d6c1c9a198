// The kinds of pixels that Pillow reads, and how it reduces them to 8 bits.
#include "image/formats/tiff_pixels.h"

#include <algorithm>
#include <utility>

namespace llava {
namespace {

enum Photometric { kWhiteIsZero = 0, kBlackIsZero = 1, kRgb = 2, kPalette = 3, kCmyk = 5, kYCbCr = 6, kLab = 8 };
enum SampleFormat { kUnsigned = 1, kSigned = 2, kFloat = 3 };
enum Extra { kUnspecified = 0, kAssociatedAlpha = 1, kUnassociatedAlpha = 2, kCorelAlpha = 999 };

constexpr int64_t kMaxSamples = 6;

struct Key {
  int64_t photometric;
  int64_t format;
  int64_t fill_order;
  std::vector<int64_t> bits;
  std::vector<int64_t> extra;
  bool is_big_endian;
};

// Whether one gray sample of these bits is read. The order of bytes and bits matters to some.
bool is_gray_read(const Key& key, int64_t bits) {
  const bool is_black_zero = key.photometric == kBlackIsZero;
  const bool is_unsigned = key.format == kUnsigned, has_usual_order = key.fill_order == 1;
  switch (bits) {
    case 1:
    case 2:
    case 4:
      return is_unsigned;
    case 8:
      return is_unsigned || (key.format == kSigned && is_black_zero && has_usual_order);
    case 12:
      return is_unsigned && is_black_zero && has_usual_order && !key.is_big_endian;
    case 16:
      if (is_unsigned) {
        return has_usual_order ? is_black_zero || !key.is_big_endian : is_black_zero && !key.is_big_endian;
      }
      return key.format == kSigned && is_black_zero && has_usual_order;
    case 32:
      return is_black_zero && has_usual_order && (is_unsigned ? !key.is_big_endian : key.format == kSigned);
    default:
      return false;
  }
}

// Sets what further samples of a pixel mean. Returns whether they are read so.
bool set_extra(const Key& key, size_t colors, size_t most_extra, TiffPixels& pixels) {
  if (key.extra.empty()) {
    const bool has_fourth = key.photometric == kRgb && key.bits.size() == 4;
    pixels.alpha = has_fourth ? TiffAlpha::kStraight : TiffAlpha::kNone;
    return key.bits.size() == colors || has_fourth;
  }
  if (key.bits.size() != colors + key.extra.size() || key.extra.size() > most_extra ||
      std::any_of(key.extra.begin() + 1, key.extra.end(), [](int64_t extra) { return extra != kUnspecified; })) {
    return false;
  }
  switch (key.extra[0]) {
    case kUnspecified:
      return true;
    case kAssociatedAlpha:
      pixels.alpha = TiffAlpha::kPremultiplied;
      return key.photometric == kRgb;
    case kUnassociatedAlpha:
      pixels.alpha = TiffAlpha::kStraight;
      return key.photometric != kCmyk;
    case kCorelAlpha:
      pixels.alpha = TiffAlpha::kStraight;
      return key.photometric == kRgb && key.extra.size() == 1 && key.bits[0] == 8;
    default:
      return false;
  }
}

// Sets the kind of `pixels`. Returns whether Pillow reads it.
bool set_kind(const Key& key, TiffPixels& pixels) {
  const int64_t bits = key.bits[0];
  if (std::any_of(key.bits.begin(), key.bits.end(), [&](int64_t other) { return other != bits; })) {
    return false;
  }
  if (key.fill_order != 1 && key.fill_order != 2) {
    return false;
  }
  pixels.bits = int(bits);
  pixels.samples = int(key.bits.size());
  const bool has_three = key.photometric == kRgb || key.photometric == kYCbCr;
  pixels.described = (has_three ? 3 : key.photometric == kCmyk ? 4 : 1) + int(key.extra.size());
  pixels.is_signed = key.format == kSigned;
  pixels.is_big_endian = key.is_big_endian;
  pixels.is_reversed = key.fill_order == 2;
  const bool is_usual = key.format == kUnsigned && key.fill_order == 1;
  switch (key.photometric) {
    case kWhiteIsZero:
    case kBlackIsZero:
      pixels.is_inverted = key.photometric == kWhiteIsZero && bits <= 8;
      if (key.bits.size() == 1) {
        return key.extra.empty() && is_gray_read(key, bits);
      }
      return bits == 8 && is_usual && key.photometric == kBlackIsZero && set_extra(key, 1, 1, pixels) &&
             pixels.has_alpha();
    case kPalette:
      pixels.color = TiffColor::kIndex;
      if (key.bits.size() == 1) {
        return key.extra.empty() && key.format == kUnsigned && (bits == 1 || bits == 2 || bits == 4 || bits == 8);
      }
      return bits == 8 && is_usual && set_extra(key, 1, 1, pixels);
    case kRgb:
      pixels.color = TiffColor::kRgb;
      if (bits == 8 && key.format == kUnsigned && key.fill_order == 2) {
        return key.bits.size() == 3 && key.extra.empty();
      }
      return is_usual && (bits == 8 || bits == 16) && set_extra(key, 3, bits == 8 ? 3 : 1, pixels);
    case kCmyk:
      pixels.color = TiffColor::kCmyk;
      return is_usual && (bits == 8 || bits == 16) && set_extra(key, 4, bits == 8 ? 2 : 0, pixels);
    case kYCbCr:
      pixels.color = key.bits.size() == 1 ? TiffColor::kGray : TiffColor::kRgb;
      return is_usual && bits == 8 && key.extra.empty() && (key.bits.size() == 1 || key.bits.size() == 3);
    default:
      return false;
  }
}

// Returns the sample that begins at a bit of a row, not yet reduced.
int64_t sample_at(const TiffPixels& pixels, const uint8_t* row, int64_t index) {
  const auto byte = [&](int64_t at) -> uint32_t {
    uint32_t value = row[at];
    if (pixels.is_reversed) {
      value = (value & 0x55) << 1 | (value >> 1 & 0x55);
      value = (value & 0x33) << 2 | (value >> 2 & 0x33);
      value = (value & 0x0F) << 4 | value >> 4;
    }
    return value;
  };
  switch (pixels.bits) {
    case 8:
      return byte(index);
    case 12: {
      const int64_t at = index / 2 * 3;
      return index % 2 ? (byte(at + 1) & 15) << 8 | byte(at + 2) : byte(at) << 4 | byte(at + 1) >> 4;
    }
    case 16:
    case 32: {
      const int64_t count = pixels.bits / 8;
      uint32_t value = 0;
      for (int64_t i = 0; i < count; ++i) {
        value = value << 8 | byte(index * count + (pixels.is_big_endian ? i : count - 1 - i));
      }
      return pixels.bits == 32 ? int64_t(int32_t(value)) : pixels.is_signed ? int64_t(int16_t(value)) : int64_t(value);
    }
    default: {
      const int64_t bit = index * pixels.bits;
      return byte(bit / 8) >> (8 - pixels.bits - bit % 8) & ((1u << pixels.bits) - 1);
    }
  }
}

uint8_t reduced(const TiffPixels& pixels, int64_t sample) {
  if (pixels.bits > 8) {
    // Gray is scaled. Of a color the upper byte is taken.
    return pixels.color == TiffColor::kGray ? uint8_t(std::clamp<int64_t>(sample, 0, 65535) / 257)
                                            : uint8_t(sample >> 8);
  }
  if (pixels.color == TiffColor::kGray) {
    sample = sample * 255 / ((1 << pixels.bits) - 1);
    return uint8_t(pixels.is_inverted ? 255 - sample : sample);
  }
  return uint8_t(sample);
}

}  // namespace

TiffPixels pixels_of(const std::string& path, const TiffDirectory& directory, int64_t photometric) {
  const auto or_one = [](std::vector<int64_t> values) { return values.empty() ? std::vector<int64_t>{1} : values; };
  Key key{
      .photometric = photometric,
      .format = 0,
      .fill_order = directory.number(TiffTag::kFillOrder, 1),
      .bits = or_one(directory.numbers(TiffTag::kBitsPerSample)),
      .extra = directory.numbers(TiffTag::kExtraSamples),
      .is_big_endian = directory.is_big_endian(),
  };
  const auto formats = or_one(directory.numbers(TiffTag::kSampleFormat));
  const auto [least, most] = std::minmax_element(formats.begin(), formats.end());
  key.format = *least == *most ? *least : 0;  // samples of several formats are not read
  constexpr int64_t kOldJpeg = 6;
  const bool has_three =
      directory.number(TiffTag::kCompression, 1) == kOldJpeg && (photometric == kRgb || photometric == kYCbCr);
  int64_t samples = directory.number(TiffTag::kSamplesPerPixel, has_three ? 3 : 1);
  const bool has_planes = directory.number(TiffTag::kPlanarConfiguration, 1) == 2;
  if (has_planes && !key.extra.empty() && *std::max_element(key.extra.begin(), key.extra.end()) == 0) {
    // Planes of no known meaning, at the end, are not read.
    key.bits.resize(key.bits.size() - std::min(key.bits.size(), key.extra.size()));
    samples -= int64_t(key.extra.size());
    key.extra.clear();
  }
  if (samples < 1 || samples > kMaxSamples) {
    fail_to_read(path, std::to_string(samples) + " samples a pixel are not supported");
  }
  if (key.bits.size() == 1 || key.bits.size() > size_t(samples)) {
    key.bits.resize(size_t(samples), key.bits[0]);
  }
  if (photometric <= kBlackIsZero && key.format == kFloat && key.bits == std::vector<int64_t>{32}) {
    fail_to_read(path, "floating-point pixels have no set range; save the image with 8 bits a channel");
  }
  TiffPixels pixels;
  if (key.bits.size() != size_t(samples) || !set_kind(key, pixels)) {
    fail_to_read(path, "its kind of pixels is not supported; save the image as JPEG or PNG");
  }
  return pixels;
}

void read_row(const TiffPixels& pixels, const uint8_t* row, int64_t width, uint8_t* out, int out_samples) {
  const int kept = pixels.samples == 1 ? 1 : pixels.kept();
  for (int64_t x = 0; x < width; ++x, out += out_samples) {
    for (int i = 0; i < kept; ++i) {
      out[i] = reduced(pixels, sample_at(pixels, row, x * pixels.samples + i));
    }
    if (pixels.alpha == TiffAlpha::kPremultiplied && kept == 4) {
      divide_by_alpha(out);
    }
  }
}

void divide_by_alpha(uint8_t* pixel) {
  const int alpha = pixel[3];
  for (int i = 0; i < 3 && alpha != 255; ++i) {
    pixel[i] = alpha == 0 ? 0 : uint8_t(std::min(255, pixel[i] * 255 / alpha));
  }
}

}  // namespace llava
