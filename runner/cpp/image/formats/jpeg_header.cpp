// Walks the markers of a JPEG, as Pillow does.
#include "image/formats/jpeg_header.h"

#include <algorithm>
#include <vector>

#include "base/errors.h"
#include "image/formats/formats.h"

namespace llava {
namespace {

constexpr int kMaxScans = 100;                                // libjpeg writes about 10
constexpr int64_t kMaxCoefficientBytes = int64_t(640) << 20;  // of an image in several scans

enum Marker : uint8_t { kStartOfImage = 0xD8, kEndOfImage = 0xD9, kStartOfScan = 0xDA, kQuantization = 0xDB };

bool is_frame(uint8_t marker) {
  return marker >= 0xC0 && marker <= 0xDE && (marker < 0xD0 || marker == 0xDE) && marker != 0xC4 && marker != 0xC8 &&
         marker != 0xCC;
}

class Walk {
 public:
  Walk(const std::string& path, std::string_view content) : path_(path), content_(content) {}

  JpegHeader header() {
    while (next_marker() != kStartOfScan) {
      if ((marker_ >= 0xD0 && marker_ <= kEndOfImage) || marker_ == 0xC8 || (marker_ >= 0xF0 && marker_ != 0xFE)) {
        continue;  // it stands alone
      }
      const std::string_view data = segment();
      if (is_frame(marker_)) {
        frame(data);
      } else if (marker_ == kQuantization) {
        check_quantization(data);
      } else if (marker_ >= 0xE0 && marker_ <= 0xEF) {
        application(data);
      }
    }
    if (components_.empty()) {
      fail_to_read(path_, "it has no frame");
    }
    const std::string_view scan = segment();
    if (is_progressive_ || scan.size() < 1 || size_t(uint8_t(scan[0])) < components_.size()) {
      check_scans();
    }
    while ((header_.width + header_.scale - 1) / header_.scale *
                   ((header_.height + header_.scale - 1) / header_.scale) >
               kMaxPixels &&
           header_.scale < 8) {
      header_.scale *= 2;
    }
    return std::move(header_);
  }

 private:
  struct Component {
    int across;
    int down;
  };

  uint8_t byte(size_t at) const {
    if (at >= content_.size()) {
      fail_to_read(path_, "it is truncated");
    }
    return uint8_t(content_[at]);
  }

  // Goes to the next marker, over what is none.
  uint8_t next_marker() {
    for (;;) {
      while (byte(at_) != 0xFF) {
        ++at_;
      }
      while (byte(at_ + 1) == 0xFF) {
        ++at_;
      }
      marker_ = byte(at_ + 1);
      at_ += 2;
      if (marker_ >= 0xC0) {
        return marker_;
      }
      if (marker_ != 0) {
        fail_to_read(path_, "it has an unknown marker");
      }
    }
  }

  // Returns what follows the marker, and goes over it.
  std::string_view segment() {
    const size_t length = std::max(size_t(byte(at_)) << 8 | byte(at_ + 1), size_t(2));
    if (content_.size() - at_ < length) {
      fail_to_read(path_, "it is truncated");
    }
    const std::string_view data = content_.substr(at_ + 2, length - 2);
    at_ += length;
    return data;
  }

  void frame(std::string_view data) {
    const auto number = [&](size_t at) { return int(uint8_t(data[at])) << 8 | uint8_t(data[at + 1]); };
    if (data.size() < 6 || data[0] != 8) {
      fail_to_read(path_, "it does not have 8 bits a channel");
    }
    header_.height = number(1);
    header_.width = number(3);
    const int layers = data[5];
    if ((layers != 1 && layers != 3 && layers != 4) || data.size() < 6 + 3 * size_t(layers) || has_short_profile_) {
      fail_to_read(path_, "its frame is damaged");
    }
    components_.clear();
    for (int i = 0; i < layers; ++i) {
      const uint8_t sampling = uint8_t(data[7 + 3 * size_t(i)]);
      components_.push_back({sampling >> 4, sampling & 15});
    }
    is_progressive_ = is_progressive_ || (marker_ & 3) == 2;
  }

  void check_quantization(std::string_view data) const {
    while (!data.empty()) {
      const size_t length = 1 + (uint8_t(data[0]) >> 4 ? 128 : 64);
      if (data.size() < length) {
        fail_to_read(path_, "a quantization table is damaged");
      }
      data.remove_prefix(length);
    }
  }

  void application(std::string_view data) {
    constexpr std::string_view kExif("Exif\0\0", 6), kXmp("http://ns.adobe.com/xap/1.0/\0", 29);
    constexpr std::string_view kProfile("ICC_PROFILE\0", 12);
    const bool is_short = data.size() < 7;
    if (is_short && ((marker_ == 0xE0 && data.starts_with("JFIF")) || (marker_ == 0xEE && data.starts_with("Adobe")))) {
      fail_to_read(path_, "a segment is too short");
    }
    has_short_profile_ = has_short_profile_ || (marker_ == 0xE2 && data.starts_with(kProfile) && data.size() < 14);
    if (marker_ != 0xE1) {
      return;
    }
    if (data.starts_with(kExif)) {
      // Long EXIF data goes on in further segments.
      std::optional<std::string>& exif = header_.metadata.exif;
      exif = exif ? *exif + std::string(data.substr(kExif.size())) : std::string(data);
    } else if (data.starts_with(kXmp)) {
      header_.metadata.xmp = data.substr(kXmp.size());
    }
  }

  // Several scans go through all of the image as often, and their coefficients are kept in memory.
  void check_scans() {
    int scans = 1;
    for (;;) {
      at_ = content_.find('\xFF', at_);
      if (at_ >= content_.size() - 1) {
        break;
      }
      const uint8_t marker = uint8_t(content_[at_ + 1]);
      if (marker == kEndOfImage) {
        break;
      }
      const bool is_marker = marker != 0 && marker != 0xFF && (marker < 0xD0 || marker > 0xD7);
      at_ += marker == 0xFF ? 1 : 2;
      if (is_marker && marker != kStartOfImage && marker != 1) {
        if (content_.size() - at_ < 2) {
          break;
        }
        at_ += std::max(size_t(byte(at_)) << 8 | byte(at_ + 1), size_t(2));
      }
      scans += is_marker && marker == kStartOfScan;
      if (scans > kMaxScans) {
        throw ImageError(
            path_ + " has more than " + std::to_string(kMaxScans) + " scans; save it again as a JPEG or PNG");
      }
      if (at_ >= content_.size()) {
        break;
      }
    }
    int most_across = 1, most_down = 1;
    for (const Component& component : components_) {
      most_across = std::max(most_across, component.across);
      most_down = std::max(most_down, component.down);
    }
    int64_t samples = 0;
    for (const Component& component : components_) {
      samples += header_.width * component.across * header_.height * component.down / (most_across * most_down);
    }
    if (2 * samples > kMaxCoefficientBytes) {
      throw ImageError(
          path_ + " is too large: " + std::to_string(header_.width) + "x" + std::to_string(header_.height) +
          " pixels in a progressive JPEG; save it as a baseline JPEG");
    }
  }

  const std::string& path_;
  std::string_view content_;
  size_t at_ = 2;
  uint8_t marker_ = 0;
  bool is_progressive_ = false;
  bool has_short_profile_ = false;
  std::vector<Component> components_;
  JpegHeader header_;
};

}  // namespace

JpegHeader read_jpeg_header(const std::string& path, std::string_view content) {
  return Walk(path, content).header();
}

}  // namespace llava
