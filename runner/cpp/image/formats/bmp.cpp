// Decodes Windows and OS/2 bitmaps (BMP), as Pillow does.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <vector>

#include "image/formats/bytes.h"
#include "image/formats/formats.h"
#include "image/formats/pixels.h"

namespace llava {
namespace {

enum Compression { kNone = 0, kRle8 = 1, kRle4 = 2, kBitFields = 3 };

// How the pixels of a row are stored.
enum class Layout { kIndex1, kIndex4, kIndex8, kBlackWhite, kGray8, kRgb555, kRgb565, kBgr, kFourBytes };

struct Bitmap {
  std::string_view content;
  int64_t width = 0;
  int64_t height = 0;
  bool is_top_down = false;
  int bits = 0;  // a pixel
  uint32_t compression = kNone;
  int64_t pixels = 0;  // where they begin
  Layout layout = Layout::kBgr;
  std::array<int, 4> places{2, 1, 0, -1};          // of red, green, blue and alpha among four bytes; -1 for none
  std::array<std::array<uint8_t, 3>, 256> colors;  // of indices
};

class Reader {
 public:
  Reader(const std::string& path, std::string_view content) : path_(path), content_(content) {}

  uint32_t number(size_t at, size_t length) const {
    const auto value = number_in(content_, at, length);
    return value ? uint32_t(*value) : (fail_to_read(path_, "it is truncated"), 0);
  }

  Bitmap header() const {
    constexpr size_t kFileHeader = 14;
    Bitmap bitmap{.content = content_, .colors = {}};
    bitmap.pixels = number(10, 4);
    const uint32_t size = number(kFileHeader, 4);
    constexpr std::array kSizes{12, 40, 52, 56, 64, 108, 124};
    if (std::find(kSizes.begin(), kSizes.end(), int(size)) == kSizes.end()) {
      fail_to_read(path_, "its header is damaged");
    }
    number(kFileHeader + size - 1, 1);  // all of the header is there
    const bool is_core = size == 12;
    uint32_t count = 0;  // of colors
    if (is_core) {
      bitmap.width = number(18, 2);
      bitmap.height = number(20, 2);
      bitmap.bits = int(number(24, 2));
    } else {
      bitmap.is_top_down = number(25, 1) == 0xFF;
      bitmap.width = number(18, 4);
      const uint32_t height = number(22, 4);
      bitmap.height = bitmap.is_top_down ? (int64_t(1) << 32) - height : height;
      bitmap.bits = int(number(28, 2));
      bitmap.compression = number(30, 4);
      count = number(46, 4);
    }
    check_size(path_, bitmap.width, bitmap.height);
    if (count == 0 && bitmap.bits <= 8) {
      count = 1u << bitmap.bits;
    }
    size_t end = kFileHeader + size;  // of what has been read
    const size_t entry = is_core ? 3 : 4;
    if (bitmap.pixels == int64_t(end) && bitmap.bits <= 8) {
      bitmap.pixels += int64_t(entry) * count;
    }
    choose_layout(bitmap, size, end);
    if (bitmap.bits <= 8) {
      read_colors(bitmap, end, entry, count);
      end = std::min(end + entry * count, content_.size());
    }
    if (bitmap.pixels == 0) {
      bitmap.pixels = int64_t(end);
    }
    return bitmap;
  }

 private:
  void choose_layout(Bitmap& bitmap, uint32_t header_size, size_t& end) const {
    switch (bitmap.bits) {
      case 1:
        bitmap.layout = Layout::kIndex1;
        break;
      case 4:
        bitmap.layout = Layout::kIndex4;
        break;
      case 8:
        bitmap.layout = Layout::kIndex8;
        break;
      case 16:
        bitmap.layout = Layout::kRgb555;
        break;
      case 24:
        bitmap.layout = Layout::kBgr;
        break;
      case 32:
        bitmap.layout = Layout::kFourBytes;
        break;
      default:
        fail_to_read(path_, std::to_string(bitmap.bits) + " bits a pixel are not supported");
    }
    if (bitmap.compression == kBitFields) {
      std::array<uint32_t, 4> masks{};
      const bool has_alpha = header_size >= 56;
      for (size_t i = 0; i < (has_alpha ? 4 : 3); ++i) {
        masks[i] = number(54 + 4 * i, 4);  // at the end of the short header, or in the long one
      }
      end += header_size == 40 ? 12 : 0;
      choose_channels(bitmap, masks);
    } else if (bitmap.compression > kBitFields) {
      fail_to_read(path_, "its compression is not supported");
    }
    const bool has_runs = bitmap.compression == kRle8 || bitmap.compression == kRle4;
    if (has_runs && bitmap.bits > 8) {
      fail_to_read(path_, "its compression does not go with its bits a pixel");
    }
  }

  void choose_channels(Bitmap& bitmap, const std::array<uint32_t, 4>& masks) const {
    constexpr std::array<std::array<uint32_t, 4>, 8> kFourBytes{{
        {0xFF0000, 0xFF00, 0xFF, 0},
        {0xFF000000, 0xFF0000, 0xFF00, 0},
        {0xFF000000, 0xFF00, 0xFF, 0},
        {0xFF000000, 0xFF0000, 0xFF00, 0xFF},
        {0xFF, 0xFF00, 0xFF0000, 0xFF000000},
        {0xFF0000, 0xFF00, 0xFF, 0xFF000000},
        {0xFF000000, 0xFF00, 0xFF, 0xFF0000},
        {0, 0, 0, 0},
    }};
    const std::array<uint32_t, 3> rgb{masks[0], masks[1], masks[2]};
    if (bitmap.bits == 32 && std::find(kFourBytes.begin(), kFourBytes.end(), masks) != kFourBytes.end()) {
      if (masks[0] == 0) {
        bitmap.places = {2, 1, 0, 3};
        return;
      }
      for (size_t i = 0; i < 4; ++i) {
        bitmap.places[i] = masks[i] ? std::countr_zero(masks[i]) / 8 : -1;
      }
    } else if (bitmap.bits == 16 && rgb == std::array<uint32_t, 3>{0xF800, 0x7E0, 0x1F}) {
      bitmap.layout = Layout::kRgb565;
    } else if (bitmap.bits == 16 && rgb == std::array<uint32_t, 3>{0x7C00, 0x3E0, 0x1F}) {
      bitmap.layout = Layout::kRgb555;
    } else if (bitmap.bits != 24 || rgb != std::array<uint32_t, 3>{0xFF0000, 0xFF00, 0xFF}) {
      fail_to_read(path_, "the bits of its channels are not supported");
    }
  }

  void read_colors(Bitmap& bitmap, size_t at, size_t entry, uint32_t count) const {
    if (count < 1 || count > 65536) {
      fail_to_read(path_, "its palette is damaged");
    }
    const std::string_view table = content_.substr(std::min(at, content_.size()), entry * count);
    bool is_gray = true;
    for (size_t i = 0; i < count && is_gray; ++i) {
      const std::string gray(3, char(count == 2 ? 255 * i : i));
      is_gray = table.substr(std::min(i * entry, table.size()), 3) == gray;
    }
    if (is_gray) {
      // As Pillow reads it: only with 1 and 8 bits a pixel are these the indices.
      bitmap.layout = count == 2 ? Layout::kBlackWhite : Layout::kGray8;
    } else if (table.size() / entry > bitmap.colors.size()) {
      fail_to_read(path_, "its palette is too large");
    }
    for (size_t i = 0; i < bitmap.colors.size(); ++i) {
      for (size_t channel = 0; channel < 3; ++channel) {
        const size_t place = i * entry + 2 - channel;  // blue comes first
        bitmap.colors[i][channel] = is_gray ? uint8_t(i) : (i + 1) * entry <= table.size() ? uint8_t(table[place]) : 0;
      }
    }
  }

  const std::string& path_;
  std::string_view content_;
};

// Converts the `width` pixels of one row.
void convert_row(const Bitmap& bitmap, const uint8_t* row, uint8_t* out) {
  const auto put = [&out](int red, int green, int blue) {
    *out++ = uint8_t(red);
    *out++ = uint8_t(green);
    *out++ = uint8_t(blue);
  };
  const auto put_color = [&](int index) {
    const auto& color = bitmap.colors[size_t(index)];
    put(color[0], color[1], color[2]);
  };
  for (int64_t x = 0; x < bitmap.width; ++x) {
    switch (bitmap.layout) {
      case Layout::kIndex1:
        put_color(row[x / 8] >> (7 - x % 8) & 1);
        break;
      case Layout::kBlackWhite:
        put_color(row[x / 8] >> (7 - x % 8) & 1 ? 255 : 0);
        break;
      case Layout::kIndex4:
        put_color(x % 2 ? row[x / 2] & 15 : row[x / 2] >> 4);
        break;
      case Layout::kIndex8:
      case Layout::kGray8:
        put_color(row[x]);
        break;
      case Layout::kRgb555:
      case Layout::kRgb565: {
        const int pixel = row[2 * x] | row[2 * x + 1] << 8;
        if (bitmap.layout == Layout::kRgb555) {
          put((pixel >> 10 & 31) * 255 / 31, (pixel >> 5 & 31) * 255 / 31, (pixel & 31) * 255 / 31);
        } else {
          put((pixel >> 11 & 31) * 255 / 31, (pixel >> 5 & 63) * 255 / 63, (pixel & 31) * 255 / 31);
        }
        break;
      }
      case Layout::kBgr:
        put(row[3 * x + 2], row[3 * x + 1], row[3 * x]);
        break;
      case Layout::kFourBytes: {
        const uint8_t* pixel = row + 4 * x;
        const int alpha = bitmap.places[3] < 0 ? 255 : pixel[bitmap.places[3]];
        for (size_t channel = 0; channel < 3; ++channel) {
          *out++ = over_white(pixel[bitmap.places[channel]], alpha);
        }
      }
    }
  }
}

int64_t row_bytes(const Bitmap& bitmap) {
  switch (bitmap.layout) {
    case Layout::kIndex1:
    case Layout::kBlackWhite:
      return (bitmap.width + 7) / 8;
    case Layout::kIndex4:
      return (bitmap.width + 1) / 2;
    case Layout::kIndex8:
    case Layout::kGray8:
      return bitmap.width;
    default:
      return bitmap.width * bitmap.bits / 8;
  }
}

// Returns the indices of a run-length encoded bitmap, a byte each, as far as they go. What Pillow does with odd files
// is done here too: a run that is too long for its row is cut, and of an odd number of single 4-bit pixels the last is
// left out.
std::vector<uint8_t> expanded_runs(const Bitmap& bitmap) {
  const auto width = size_t(bitmap.width), wanted = width * size_t(bitmap.height);
  const bool is_rle4 = bitmap.compression == kRle4;
  std::vector<uint8_t> out;
  out.reserve(wanted + 256);
  size_t at = size_t(bitmap.pixels), x = 0;
  const auto next = [&]() -> std::optional<int> {
    return at < bitmap.content.size() ? std::optional<int>(uint8_t(bitmap.content[at++])) : std::nullopt;
  };
  const auto skip = [&](size_t count) { out.resize(out.size() + std::min(count, wanted)); };
  while (out.size() < wanted) {
    const auto count = next(), value = next();
    if (!count || !value) {
      break;
    }
    if (*count > 0) {
      const size_t length = std::min(size_t(*count), x < width ? width - x : 0);
      for (size_t i = 0; i < length; ++i) {
        out.push_back(uint8_t(is_rle4 ? (i % 2 ? *value & 15 : *value >> 4) : *value));
      }
      x += length;
    } else if (*value == 0) {  // the row ends
      skip((width - out.size() % width) % width);
      x = 0;
    } else if (*value == 1) {  // the bitmap ends
      break;
    } else if (*value == 2) {  // some pixels are left out
      const auto right = next(), up = next();
      if (!right || !up) {
        break;
      }
      const size_t count_left_out = size_t(*right) + size_t(*up) * width;
      skip(count_left_out);
      x = out.size() % width;
    } else {  // single pixels
      const size_t bytes = size_t(is_rle4 ? *value / 2 : *value);
      const std::string_view pixels = bitmap.content.substr(at, bytes);
      at += pixels.size();
      for (const char byte : pixels) {
        if (is_rle4) {
          out.push_back(uint8_t(byte) >> 4);
        }
        out.push_back(is_rle4 ? uint8_t(byte) & 15 : uint8_t(byte));
      }
      if (pixels.size() < bytes) {
        break;
      }
      x += size_t(*value);
      at += at % 2;
    }
  }
  return out;
}

}  // namespace

ImageHWC read_bmp(const std::string& path, std::string_view content) {
  Bitmap bitmap = Reader(path, content).header();
  std::vector<uint8_t> runs;
  const uint8_t* rows = nullptr;
  int64_t available = 0, stride = 0;
  if (bitmap.compression == kRle8 || bitmap.compression == kRle4) {
    if (bitmap.layout == Layout::kBlackWhite) {
      fail_to_read(path, "its compression does not go with its palette");
    }
    runs = expanded_runs(bitmap);
    bitmap.layout = Layout::kIndex8;
    rows = runs.data();
    available = int64_t(runs.size());
    stride = bitmap.width;
  } else {
    stride = (bitmap.width * bitmap.bits + 31) / 32 * 4;
    const int64_t start = std::min(bitmap.pixels, int64_t(content.size()));
    rows = reinterpret_cast<const uint8_t*>(content.data()) + start;
    available = int64_t(content.size()) - start;
  }
  const int64_t bytes = row_bytes(bitmap);
  if (bytes > stride) {
    fail_to_read(path, "its palette does not go with its bits a pixel");
  }
  if (available < stride * (bitmap.height - 1) + bytes) {
    fail_to_read(path, "it is truncated");
  }
  ImageHWC image(int(bitmap.width), int(bitmap.height));
  for (int y = 0; y < image.height; ++y) {
    convert_row(bitmap, rows + stride * y, image.row(bitmap.is_top_down ? y : image.height - 1 - y));
  }
  return image;
}

}  // namespace llava
