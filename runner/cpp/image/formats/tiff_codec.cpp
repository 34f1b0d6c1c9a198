// Decodes compressed TIFF files by libtiff, strip by strip or tile by tile, as Pillow has it do.
#include "image/formats/tiff_codec.h"

#include <tiffio.h>

#include <algorithm>
#include <climits>
#include <cstring>
#include <memory>
#include <mutex>

#include "image/formats/absent_codecs.h"

namespace llava {
namespace {

// What libtiff reads the file through.
struct Source {
  std::string_view content;
  uint64_t position = 0;
};

Source& source_of(thandle_t handle) {
  return *static_cast<Source*>(handle);
}

tmsize_t read_bytes(thandle_t handle, void* out, tmsize_t size) {
  Source& source = source_of(handle);
  const uint64_t left = source.content.size() - std::min<uint64_t>(source.position, source.content.size());
  const auto count = std::min<uint64_t>(left, uint64_t(size));
  if (count > 0) {
    std::memcpy(out, source.content.data() + source.position, count);
  }
  source.position += count;
  return tmsize_t(count);
}

tmsize_t write_nothing(thandle_t, void*, tmsize_t) {
  return 0;
}

toff_t seek(thandle_t handle, toff_t offset, int from) {
  Source& source = source_of(handle);
  const uint64_t start = from == SEEK_SET ? 0 : from == SEEK_CUR ? source.position : source.content.size();
  source.position = start + offset;
  return source.position;
}

int close_nothing(thandle_t) {
  return 0;
}

toff_t size_of(thandle_t handle) {
  return source_of(handle).content.size();
}

int map(thandle_t handle, void** base, toff_t* size) {
  *base = const_cast<char*>(source_of(handle).content.data());
  *size = source_of(handle).content.size();
  return 1;
}

void unmap_nothing(thandle_t, void*, toff_t) {}

struct CloseTiff {
  void operator()(TIFF* tiff) const { TIFFClose(tiff); }
};

class Decoder {
 public:
  Decoder(TIFF* tiff, TiffImage& image) : tiff_(tiff), image_(image) {}

  // Returns whether the image could be decoded.
  bool decode() {
    uint32_t width = 0, height = 0;
    uint16_t photometric = 0, compression = 0, planar = PLANARCONFIG_CONTIG;
    TIFFGetField(tiff_, TIFFTAG_IMAGEWIDTH, &width);
    TIFFGetField(tiff_, TIFFTAG_IMAGELENGTH, &height);
    if (width != image_.width || height != image_.height) {
      return false;
    }
    TIFFGetField(tiff_, TIFFTAG_PHOTOMETRIC, &photometric);
    TIFFGetField(tiff_, TIFFTAG_COMPRESSION, &compression);
    TIFFGetFieldDefaulted(tiff_, TIFFTAG_PLANARCONFIG, &planar);
    stored_ = image_.pixels;
    use_order_of_machine();
    if (photometric == PHOTOMETRIC_YCBCR) {
      if (stored_.color != TiffColor::kRgb) {
        return false;
      }
      if (compression != COMPRESSION_JPEG || planar != PLANARCONFIG_CONTIG) {
        return allocate() && decode_as_rgba();
      }
      TIFFSetField(tiff_, TIFFTAG_JPEGCOLORMODE, JPEGCOLORMODE_RGB);
    }
    const bool has_planes = planar == PLANARCONFIG_SEPARATE && image_.pixels.kept() > 1;
    if (has_planes) {
      if ((stored_.bits != 8 && stored_.bits != 16) || image_.pixels.kept() < 3) {
        return false;
      }
      planes_ = image_.pixels.kept();
      stored_.samples = 1;
    }
    if (!(TIFFIsTiled(tiff_) ? decode_tiles() : decode_strips())) {
      return false;
    }
    if (has_planes && image_.pixels.color == TiffColor::kRgb && image_.pixels.has_alpha()) {
      divide_planes();
    }
    return true;
  }

 private:
  // libtiff gives the first bit first, and numbers in the order of the machine. Pillow takes signed numbers, and those
  // of 32 bits, for being in the order of the file all the same.
  void use_order_of_machine() {
    stored_.is_reversed = false;
    stored_.is_big_endian = stored_.is_big_endian && (stored_.is_signed || stored_.bits == 32);
  }

  bool allocate() {
    image_.samples.resize(size_t(image_.width * image_.height) * size_t(image_.pixels.kept()));
    return true;
  }

  // Returns the bytes that Pillow expects for so many pixels, of one plane.
  int64_t expected_bytes(int64_t pixels) const {
    return (pixels * image_.pixels.bits * image_.pixels.samples / planes_ + 7) / 8;
  }

  bool decode_strips() {
    uint32_t rows = 0;
    if (TIFFGetField(tiff_, TIFFTAG_ROWSPERSTRIP, &rows) != 1 || rows == UINT32_MAX) {
      rows = uint32_t(image_.height);
    }
    const int64_t strip_bytes = TIFFStripSize(tiff_), row_bytes = TIFFScanlineSize(tiff_);
    const int64_t wanted = expected_bytes(image_.width);
    if (rows < 1 || rows > INT_MAX || strip_bytes < 1 || strip_bytes > wanted * rows || row_bytes < 1 ||
        wanted > row_bytes) {
      return false;
    }
    allocate();
    std::vector<uint8_t> strip(static_cast<size_t>(strip_bytes));
    for (int64_t y = 0; y < image_.height; y += rows) {
      for (int plane = 0; plane < planes_; ++plane) {
        const uint32_t index = TIFFComputeStrip(tiff_, uint32_t(y), uint16_t(plane));
        if (TIFFReadEncodedStrip(tiff_, index, strip.data(), strip_bytes) == -1 ||
            !keep(strip, row_bytes, 0, y, image_.width, std::min<int64_t>(rows, image_.height - y), plane)) {
          return false;
        }
      }
    }
    return true;
  }

  bool decode_tiles() {
    uint32_t width = 0, height = 0;
    TIFFGetField(tiff_, TIFFTAG_TILEWIDTH, &width);
    TIFFGetField(tiff_, TIFFTAG_TILELENGTH, &height);
    const int64_t tile_bytes = TIFFTileSize(tiff_), row_bytes = TIFFTileRowSize(tiff_);
    // A tile far larger than the image would take memory for nothing.
    constexpr int64_t kMaxTile = int64_t(16) << 20;
    const int64_t image_bytes = stored_.row_bytes(image_.width) * image_.height;
    if (tile_bytes < 1 || tile_bytes > std::max(kMaxTile, 4 * image_bytes) || row_bytes < 1 || row_bytes > tile_bytes ||
        width < 1 || height < 1 || tile_bytes > expected_bytes(height) * width) {
      return false;
    }
    allocate();
    std::vector<uint8_t> tile(static_cast<size_t>(tile_bytes));
    for (int64_t y = 0; y < image_.height; y += height) {
      for (int plane = 0; plane < planes_; ++plane) {
        for (int64_t x = 0; x < image_.width; x += width) {
          const int64_t columns = std::min<int64_t>(width, image_.width - x);
          const int64_t rows = std::min<int64_t>(height, image_.height - y);
          if (TIFFReadTile(tiff_, tile.data(), uint32_t(x), uint32_t(y), 0, uint16_t(plane)) == -1 ||
              !keep(tile, row_bytes, x, y, columns, rows, plane)) {
            return false;
          }
        }
      }
    }
    return true;
  }

  // Takes the rows of a strip or tile. Returns false if it has too few bytes.
  bool keep(
      const std::vector<uint8_t>& piece,
      int64_t row_bytes,
      int64_t x,
      int64_t y,
      int64_t columns,
      int64_t rows,
      int plane) {
    if (row_bytes * (rows - 1) + stored_.row_bytes(columns) > int64_t(piece.size())) {
      return false;
    }
    for (int64_t row = 0; row < rows; ++row) {
      const uint8_t* from = piece.data() + row * row_bytes;
      read_row(stored_, from, columns, image_.at(x, y + row) + plane, image_.pixels.kept());
    }
    return true;
  }

  // Pillow divides planes by alpha where alpha has no known meaning, too.
  void divide_planes() {
    uint16_t count = 0;
    uint16_t* kinds = nullptr;
    TIFFGetFieldDefaulted(tiff_, TIFFTAG_EXTRASAMPLES, &count, &kinds);
    if (count < 1 || (kinds[0] != EXTRASAMPLE_UNSPECIFIED && kinds[0] != EXTRASAMPLE_ASSOCALPHA)) {
      return;
    }
    for (size_t at = 0; at < image_.samples.size(); at += size_t(image_.pixels.kept())) {
      divide_by_alpha(image_.samples.data() + at);
    }
  }

  // Has libtiff convert YCbCr, which may have fewer samples of color than of light.
  bool decode_as_rgba() {
    uint32_t block = UINT32_MAX;
    TIFFGetFieldDefaulted(tiff_, TIFFIsTiled(tiff_) ? TIFFTAG_TILELENGTH : TIFFTAG_ROWSPERSTRIP, &block);
    block = block == UINT32_MAX ? uint32_t(image_.height) : block;
    char message[1024] = "";
    TIFFRGBAImage rgba;
    if (block < 1 || INT_MAX / (4 * image_.width) < block || !TIFFRGBAImageOK(tiff_, message) ||
        !TIFFRGBAImageBegin(&rgba, tiff_, 0, message)) {
      return false;
    }
    const std::unique_ptr<TIFFRGBAImage, decltype(&TIFFRGBAImageEnd)> end(&rgba, TIFFRGBAImageEnd);
    rgba.orientation = rgba.req_orientation = ORIENTATION_TOPLEFT;
    rgba.col_offset = 0;
    std::vector<uint32_t> raster(size_t(image_.width) * size_t(std::min<int64_t>(block, image_.height)));
    for (int64_t y = 0; y < image_.height; y += block) {
      const int64_t rows = std::min<int64_t>(block, image_.height - y);
      rgba.row_offset = int(y);
      if (!TIFFRGBAImageGet(&rgba, raster.data(), uint32_t(image_.width), uint32_t(rows))) {
        return false;
      }
      for (int64_t i = 0; i < rows * image_.width; ++i) {
        const uint32_t pixel = raster[size_t(i)];
        uint8_t* out = image_.at(0, y) + 3 * i;
        out[0] = uint8_t(TIFFGetR(pixel));
        out[1] = uint8_t(TIFFGetG(pixel));
        out[2] = uint8_t(TIFFGetB(pixel));
      }
    }
    return true;
  }

  TIFF* tiff_;
  TiffImage& image_;
  TiffPixels stored_;  // as libtiff gives them
  int planes_ = 1;
};

}  // namespace

void decode_compressed(const std::string& path, TiffImage& image) {
  static std::once_flag silent;
  std::call_once(silent, [] {
    TIFFSetErrorHandler(nullptr);
    TIFFSetWarningHandler(nullptr);
  });
  Source source{image.content};
  const std::unique_ptr<TIFF, CloseTiff> tiff(TIFFClientOpen(
      path.c_str(), "rC", &source, read_bytes, write_nothing, seek, close_nothing, size_of, map, unmap_nothing));
  if (!tiff || !Decoder(tiff.get(), image).decode()) {
    fail_to_read(path, "its compressed pixels are damaged or not supported");
  }
}

}  // namespace llava
