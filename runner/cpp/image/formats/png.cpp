// Decodes PNG files. Pillow has a decoder of its own on zlib, which takes damaged files that libpng refuses, so this is
// the same.
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <new>
#include <utility>
#include <vector>

#include "image/formats/formats.h"
#include "image/formats/png_chunks.h"
#include "image/formats/png_pixels.h"

namespace llava {
namespace {

constexpr size_t kPieceBytes = 65536;  // inflated at once. A stream that ends early counts as whole by where it is cut

uint8_t paeth(int a, int b, int c) {
  const int to_a = std::abs(b - c), to_b = std::abs(a - c), to_c = std::abs(a + b - 2 * c);
  return uint8_t(to_a <= to_b && to_a <= to_c ? a : to_b <= to_c ? b : c);
}

// Undoes the filter of a row, for which the row above is needed (PNG specification, "Filtering"). `step` is the size of
// a pixel. Returns false for a filter that does not exist.
bool unfilter(int filter, uint8_t* row, const uint8_t* above, size_t length, size_t step) {
  const auto left = [&](size_t i) { return i < step ? 0 : row[i - step]; };
  switch (filter) {
    case 0:
      return true;
    case 1:
      for (size_t i = step; i < length; ++i) {
        row[i] = uint8_t(row[i] + row[i - step]);
      }
      return true;
    case 2:
      for (size_t i = 0; i < length; ++i) {
        row[i] = uint8_t(row[i] + above[i]);
      }
      return true;
    case 3:
      for (size_t i = 0; i < length; ++i) {
        row[i] = uint8_t(row[i] + (left(i) + above[i]) / 2);
      }
      return true;
    case 4:
      for (size_t i = 0; i < length; ++i) {
        row[i] = uint8_t(row[i] + paeth(left(i), above[i], i < step ? 0 : above[i - step]));
      }
      return true;
    default:
      return false;
  }
}

// An interlaced image has seven passes, each with some of its columns and rows; others have one.
struct Pass {
  int left, top, across, down;
};
constexpr Pass kInterlaced[] = {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4},
                                {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}};
constexpr Pass kWhole[] = {{0, 0, 1, 1}};

// Decodes rows as they are inflated.
class Decoder {
 public:
  Decoder(const PngChunks& chunks, const PngPixels& pixels, ImageHWC& image)
      : chunks_(chunks), pixels_(pixels), image_(image) {
    passes_ = is_interlaced() ? std::begin(kInterlaced) : std::begin(kWhole);
    num_passes_ = is_interlaced() ? std::size(kInterlaced) : std::size(kWhole);
    const size_t row_bytes = (size_t(image.width) * pixels.stored_bits() + 7) / 8;
    row_.resize(row_bytes + 1);
    above_.resize(row_bytes + 1);
    // An interlaced image is converted when it is complete.
    samples_.resize(size_t(image.width) * pixels.bytes() * (is_interlaced() ? size_t(image.height) : 1));
    begin_pass();
  }

  // Returns what is wrong, or "".
  const char* decode() {
    z_stream stream{};
    if (inflateInit(&stream) != Z_OK) {
      throw std::bad_alloc();
    }
    bool is_sound = true;
    size_t begun = 0;
    for (std::string_view rest : chunks_.pixels) {
      begun += is_complete_ ? 0 : 1;
      while (!rest.empty() && !is_complete_ && is_sound) {
        const std::string_view piece = rest.substr(0, kPieceBytes);
        rest.remove_prefix(piece.size());
        is_sound = take(stream, piece);
      }
    }
    inflateEnd(&stream);
    // A cut does not matter in the piece that the last row comes from.
    const bool is_cut = !is_complete_ || (chunks_.ends_in_pixels && begun < chunks_.pixels.size());
    return !is_sound ? "its pixels are damaged" : is_cut ? "it is truncated" : "";
  }

  // Makes RGB of the samples that have not been converted yet. Rows that the file lacks have samples of zero.
  void finish() {
    const size_t row_samples = size_t(image_.width) * pixels_.bytes();
    if (!is_interlaced()) {
      std::fill(samples_.begin(), samples_.end(), 0);
    }
    for (int y = is_interlaced() ? 0 : y_; y < image_.height; ++y) {
      const size_t at = is_interlaced() ? row_samples * size_t(y) : 0;
      pixels_.convert(samples_.data() + at, image_.row(y), image_.width);
    }
  }

 private:
  bool is_interlaced() const { return chunks_.is_interlaced(); }
  const Pass& pass() const { return passes_[pass_]; }

  // Begins the first pass from here that has pixels, or is complete.
  void begin_pass() {
    for (; pass_ < num_passes_; ++pass_) {
      columns_ = std::max(0, (image_.width - pass().left + pass().across - 1) / pass().across);
      if (columns_ > 0 && pass().top < image_.height) {
        y_ = pass().top;
        length_ = 1 + (size_t(columns_) * pixels_.stored_bits() + 7) / 8;
        std::fill(above_.begin(), above_.end(), 0);
        return;
      }
    }
    is_complete_ = true;
  }

  // Inflates a piece. Returns false for damaged data.
  bool take(z_stream& stream, std::string_view piece) {
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(piece.data()));
    stream.avail_in = uInt(piece.size());
    while (stream.avail_in > 0 && !is_complete_) {
      stream.next_out = row_.data() + have_;
      stream.avail_out = uInt(length_ - have_);
      const int result = inflate(&stream, Z_NO_FLUSH);
      if (result < 0) {
        return false;
      }
      have_ = length_ - stream.avail_out;
      if (have_ < length_) {
        return true;  // it goes on in the next piece
      }
      have_ = 0;
      const size_t step = (pixels_.stored_bits() + 7) / 8;
      if (!unfilter(row_[0], row_.data() + 1, above_.data() + 1, length_ - 1, step)) {
        return false;
      }
      keep_row();
      std::swap(row_, above_);
      y_ += pass().down;
      if (y_ >= image_.height) {
        ++pass_;
        begin_pass();
      }
      is_complete_ = is_complete_ || result == Z_STREAM_END;
    }
    return true;
  }

  void keep_row() {
    if (is_interlaced()) {
      const size_t first = (size_t(y_) * size_t(image_.width) + size_t(pass().left)) * pixels_.bytes();
      pixels_.unpack(row_.data() + 1, columns_, samples_.data() + first, pass().across);
    } else {
      pixels_.unpack(row_.data() + 1, columns_, samples_.data(), 1);
      pixels_.convert(samples_.data(), image_.row(y_), image_.width);
    }
  }

  const PngChunks& chunks_;
  const PngPixels& pixels_;
  ImageHWC& image_;
  const Pass* passes_;
  size_t num_passes_;
  size_t pass_ = 0;
  int y_ = 0;
  int columns_ = 0;
  size_t length_ = 0;  // of a row with the number of its filter
  size_t have_ = 0;    // bytes of it
  bool is_complete_ = false;
  std::vector<uint8_t> row_, above_, samples_;
};

}  // namespace

ImageHWC read_png(const std::string& path, std::string_view content) {
  const PngChunks chunks = read_png_chunks(path, content);
  check_size(path, chunks.width(), chunks.height());
  ImageHWC image = new_image(path, int(chunks.width()), int(chunks.height()));
  const PngPixels pixels(path, chunks);
  {
    Decoder decoder(chunks, pixels, image);
    const char* wrong = decoder.decode();
    if (*wrong) {
      fail_to_read(path, wrong);
    }
    decoder.finish();
  }
  return upright(std::move(image), orientation_of(chunks.metadata));
}

}  // namespace llava
