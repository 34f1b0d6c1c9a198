// Decodes TIFF files: of several images the first. Uncompressed ones are read here, in the order in which Pillow does.
#include "image/formats/tiff_codec.h"

#include <algorithm>
#include <array>
#include <utility>

#include "image/formats/pixels.h"

namespace llava {
namespace {

enum Compression { kNone = 1, kOldJpeg = 6, kJpeg = 7 };
constexpr int64_t kYCbCr = 6;

// The compressions that Pillow's wheels read.
constexpr std::array<int64_t, 16> kCompressions{kNone, 2,     3,     4,     5,     kOldJpeg, kJpeg, 8,
                                                32771, 32773, 32809, 32946, 34676, 34677,    34925, 50000};

// A strip or tile, at its place in the image.
struct Piece {
  int64_t offset;
  int64_t left, top, right, bottom;
  int64_t stride;  // bytes a row; 0 where rows follow each other
  size_t plane;
};

class UncompressedReader {
 public:
  UncompressedReader(const std::string& path, const TiffDirectory& directory, bool is_ycbcr, TiffImage& image)
      : path_(path), directory_(directory), is_ycbcr_(is_ycbcr && image.pixels.samples == 3), image_(image) {}

  void read() {
    has_planes_ = directory_.number(TiffTag::kPlanarConfiguration, 1) == 2;
    const TiffPixels& pixels = image_.pixels;
    bits_ = int64_t(pixels.bits) * pixels.samples;
    stored_ = pixels;
    if (has_planes_) {
      set_planes();
    } else {
      check_order_of_bits();
      stored_.samples = is_ycbcr_ ? 4 : stored_.samples;  // so Pillow does
    }
    std::vector<Piece> all = pieces();
    std::stable_sort(all.begin(), all.end(), [](const Piece& a, const Piece& b) { return a.offset < b.offset; });
    for (const Piece& piece : all) {
      read_piece(piece);
    }
  }

 private:
  // Sets how Pillow reads uncompressed planes: 8 bits a sample (1, if the image has 1; 32, if it is of whole numbers
  // that may be negative), not inverted.
  void set_planes() {
    const TiffPixels& pixels = image_.pixels;
    const bool is_gray = pixels.color == TiffColor::kGray;
    const bool is_wide = is_gray && pixels.samples == 1 && (pixels.bits == 32 || (pixels.is_signed && pixels.bits > 8));
    const bool is_single = pixels.samples == 1 ? pixels.bits <= 8 || is_wide : false;
    if (!is_single && pixels.kept() < 3) {
      fail_to_read(path_, "its kind of pixels is not supported in separate planes");
    }
    stored_ = {.bits = is_wide ? 32 : is_gray && pixels.bits == 1 ? 1 : 8, .is_signed = is_wide};
    stored_.color = is_gray ? TiffColor::kGray : TiffColor::kIndex;  // of a color, bytes as they are
  }

  // Pillow reads some kinds of pixels only with the highest bit of a byte first.
  void check_order_of_bits() const {
    const TiffPixels& pixels = image_.pixels;
    const bool is_gray = pixels.color == TiffColor::kGray;
    if (pixels.is_reversed && (is_gray ? pixels.is_inverted && pixels.bits == 8 : pixels.bits < 8)) {
      fail_to_read(path_, "its order of bits is not supported");
    }
  }

  std::vector<Piece> pieces() const {
    const int64_t width = image_.width, height = image_.height;
    const bool has_strips = directory_.has(TiffTag::kStripOffsets);
    std::vector<int64_t> offsets = directory_.numbers(has_strips ? TiffTag::kStripOffsets : TiffTag::kTileOffsets);
    const int64_t piece_width = has_strips ? width : directory_.number(TiffTag::kTileWidth, 0);
    const int64_t piece_height =
        has_strips ? directory_.number(TiffTag::kRowsPerStrip, height) : directory_.number(TiffTag::kTileHeight, 0);
    constexpr int64_t kMaxSide = INT32_MAX;
    if (offsets.empty() || piece_width < 1 || piece_height < 1 || piece_width > kMaxSide) {
      fail_to_read(path_, "its layout is damaged");
    }
    if (piece_width == width && piece_height == height && !has_planes_) {
      offsets = {offsets.back()};  // each covers the image
    }
    std::vector<Piece> pieces;
    int64_t x = 0, y = 0;
    size_t plane = 0;
    for (const int64_t offset : offsets) {
      const int64_t stride =
          x + piece_width > width ? piece_width * bits_ / 8 / (has_planes_ ? image_.pixels.described : 1) : 0;
      const int64_t right = std::min(x + piece_width, width), bottom = y + std::min(piece_height, height - y);
      if (has_planes_ && plane >= planes()) {
        fail_to_read(path_, "its planes are not supported");
      }
      pieces.push_back({offset, x, y, right, bottom, stride, plane});
      x += piece_width;
      if (x >= width) {
        x = 0;
        y = bottom;
        if (y >= height) {
          y = 0;
          ++plane;
        }
      }
    }
    return pieces;
  }

  // Returns how many planes are read: all that are kept, but not premultiplied alpha.
  size_t planes() const { return size_t(image_.pixels.alpha == TiffAlpha::kPremultiplied ? 3 : image_.pixels.kept()); }

  void read_piece(const Piece& piece) {
    const auto width = piece.right - piece.left;
    const int64_t bytes = stored_.row_bytes(width), stride = piece.stride ? piece.stride : bytes;
    const auto size = int64_t(image_.content.size());
    const int64_t rows = piece.bottom - piece.top;
    if (bytes > stride || piece.offset < 0 || piece.offset > size ||
        size - piece.offset < stride * (rows - 1) + bytes) {
      fail_to_read(path_, "it is truncated or damaged");
    }
    const auto* row = reinterpret_cast<const uint8_t*>(image_.content.data()) + piece.offset;
    for (int64_t y = piece.top; y < piece.bottom; ++y, row += stride) {
      uint8_t* out = image_.at(piece.left, y) + (has_planes_ ? piece.plane : 0);
      read_row(stored_, row, width, out, image_.pixels.kept());
    }
  }

  const std::string& path_;
  const TiffDirectory& directory_;
  bool is_ycbcr_;  // with three samples
  TiffImage& image_;
  bool has_planes_ = false;
  int64_t bits_ = 0;   // a pixel, in all planes
  TiffPixels stored_;  // as a row has them
};

using Colors = std::array<std::array<uint8_t, 3>, 256>;

// Returns the colors of a palette: all of red, then all of green, then all of blue, 16 bits each.
Colors colors_of(const std::string& path, const TiffDirectory& directory) {
  const std::vector<int64_t> values = directory.numbers(TiffTag::kColorMap);
  Colors colors{};
  const size_t count = values.size() / 3;
  if (values.empty() || values.size() * 8 / 24 > colors.size()) {
    fail_to_read(path, "its palette is damaged");
  }
  for (size_t i = 0; i < count; ++i) {
    for (size_t channel = 0; channel < 3; ++channel) {
      colors[i][channel] = uint8_t(values[channel * count + i] / 256);
    }
  }
  return colors;
}

ImageHWC in_rgb(const TiffImage& source, const Colors& colors) {
  ImageHWC image(int(source.width), int(source.height));
  const TiffPixels& pixels = source.pixels;
  const auto kept = size_t(pixels.kept());
  for (size_t i = 0; i < image.bytes.size(); ++i) {
    const uint8_t* pixel = source.samples.data() + i / 3 * kept;
    const size_t channel = i % 3;
    int value = pixel[0];
    switch (pixels.color) {
      case TiffColor::kGray:
        break;
      case TiffColor::kIndex:
        value = colors[pixel[0]][channel];
        break;
      case TiffColor::kRgb:
        value = pixel[channel];
        break;
      case TiffColor::kCmyk:
        value = printed(pixel[channel], pixel[3]);
        break;
    }
    image.bytes[i] = pixels.has_alpha() ? over_white(value, pixel[kept - 1]) : uint8_t(value);
  }
  return image;
}

}  // namespace

ImageHWC read_tiff(const std::string& path, std::string_view content) {
  const TiffDirectory directory(path, content);
  const int64_t compression = directory.number(TiffTag::kCompression, kNone);
  if (directory.has(TiffTag::kWindowsMedia) ||
      std::find(kCompressions.begin(), kCompressions.end(), compression) == kCompressions.end()) {
    fail_to_read(path, "its compression is not supported; save the image as JPEG or PNG");
  }
  TiffImage image{.content = content, .pixels = {}, .samples = {}};
  image.width = directory.number(TiffTag::kWidth, 0);
  image.height = directory.number(TiffTag::kHeight, 0);
  check_size(path, image.width, image.height);
  const int64_t photometric = compression == kOldJpeg ? kYCbCr : directory.number(TiffTag::kPhotometric, 0);
  image.pixels = pixels_of(path, directory, photometric);
  const Colors colors = image.pixels.color == TiffColor::kIndex ? colors_of(path, directory) : Colors();
  if (compression == kNone) {
    image.samples.resize(size_t(image.width * image.height) * size_t(image.pixels.kept()));
    UncompressedReader(path, directory, photometric == kYCbCr, image).read();
  } else {
#ifdef LLAVA_TIFF
    decode_compressed(path, image);
#else
    fail_to_read(path, "this runner was built without libtiff; save the image as JPEG or PNG");
#endif
  }
  ImageHWC rgb = in_rgb(image, colors);
  image.samples = {};
  Metadata metadata;
  metadata.xmp = directory.bytes(TiffTag::kXmp);
  const bool has_tag = directory.has(TiffTag::kOrientation);
  return upright(std::move(rgb), has_tag ? directory.orientation() : orientation_of(metadata));
}

}  // namespace llava
