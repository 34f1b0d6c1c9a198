// Reads the tags of TIFF and BigTIFF files.
#include "image/formats/tiff_directory.h"

#include <algorithm>

#include "image/formats/bytes.h"

namespace llava {
namespace {

// Returns the bytes that a value of a type takes; 0 for types that are not known.
size_t size_of(uint64_t type) {
  constexpr size_t kSizes[] = {0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8};
  return type < std::size(kSizes) ? kSizes[type] : 0;
}

bool is_signed(int type) {
  return type == 6 || type == 8 || type == 9;
}

bool is_whole(int type) {
  return type == 3 || type == 4 || type == 13 || type == 16 || is_signed(type);
}

}  // namespace

TiffDirectory::TiffDirectory(const std::string& path, std::string_view content)
    : path_(path), is_big_endian_(content.starts_with("MM")) {
  const bool is_big = content.size() > 2 && content[2] == 43;  // BigTIFF, as Pillow tells it
  const auto number = [&](uint64_t at, size_t length) { return number_in(content, at, length, is_big_endian_); };
  const size_t offset_size = is_big ? 8 : 4;
  const auto start = number(is_big ? 8 : 4, offset_size);
  const auto count = start ? number(*start, is_big ? 8 : 2) : std::nullopt;
  if (!count) {
    fail_to_read(path, "it is truncated or damaged");
  }
  uint64_t entry = *start + (is_big ? 8 : 2);
  const size_t entry_size = is_big ? 20 : 12;
  for (uint64_t i = 0; i < *count; ++i, entry += entry_size) {
    const auto tag = number(entry, 2), type = number(entry + 2, 2), values = number(entry + 4, offset_size);
    const uint64_t place = entry + 4 + offset_size;
    const auto offset = number(place, offset_size);
    if (!offset) {
      break;
    }
    const size_t size = size_of(*type);
    if (size == 0 || *values == 0) {
      continue;
    }
    const uint64_t most = content.size() / size;
    const size_t length = size * size_t(std::min(*values, most + 1));
    const uint64_t at = length > offset_size ? *offset : place;
    if (*values > most || !number_in(content, at, 0) || content.size() - at < length) {
      break;
    }
    tags_[uint16_t(*tag)] = {int(*type), content.substr(at, length)};
  }
}

std::string_view TiffDirectory::bytes(TiffTag tag) const {
  const auto found = tags_.find(uint16_t(tag));
  return found == tags_.end() ? std::string_view() : found->second.bytes;
}

std::vector<int64_t> TiffDirectory::numbers(TiffTag tag) const {
  const auto found = tags_.find(uint16_t(tag));
  std::vector<int64_t> numbers;
  if (found == tags_.end()) {
    return numbers;
  }
  const auto& [type, bytes] = found->second;
  if (!is_whole(type)) {
    fail_to_read(path_, "tag " + std::to_string(int(tag)) + " is not a whole number");
  }
  const size_t size = size_of(uint64_t(type));
  numbers.reserve(bytes.size() / size);
  for (size_t at = 0; at < bytes.size(); at += size) {
    const uint64_t value = *number_in(bytes, at, size, is_big_endian_);
    const auto unused = int(64 - 8 * size);
    numbers.push_back(is_signed(type) ? int64_t(value << unused) >> unused : int64_t(value));
  }
  return numbers;
}

int64_t TiffDirectory::number(TiffTag tag, int64_t otherwise) const {
  const auto values = numbers(tag);
  return values.empty() ? otherwise : values[0];
}

Orientation TiffDirectory::orientation() const {
  const auto found = tags_.find(uint16_t(TiffTag::kOrientation));
  const int64_t value = found != tags_.end() && is_whole(found->second.type) ? number(TiffTag::kOrientation, 1) : 1;
  return value >= 1 && value <= 8 ? Orientation(value) : 1;
}

}  // namespace llava
