// The files in a zip archive, if it is one that torch.save writes: nothing in it is compressed.
#pragma once

#include <map>
#include <optional>
#include <string_view>

namespace llava {

// Returns the content of each file by its name within the archive's one folder; nullopt for what is no such archive.
//
// Readers of zip archives disagree on what is odd: bytes before or after the archive, a comment, two files of one name,
// or two directories that differ. Here all of that is refused, and so is what is compressed or encrypted. So no file
// has more bytes than the archive. llava_runner/image/stored_tensor.py decides by the same rules.
std::optional<std::map<std::string_view, std::string_view>> stored_files(std::string_view archive);

// Returns the little-endian number at a place in bytes; nullopt beyond their end.
template <typename T>
std::optional<T> number_at(std::string_view bytes, size_t offset) {
  if (offset > bytes.size() || bytes.size() - offset < sizeof(T)) {
    return std::nullopt;
  }
  T value;
  bytes.copy(reinterpret_cast<char*>(&value), sizeof(T), offset);
  return value;
}

}  // namespace llava
