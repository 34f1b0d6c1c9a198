// Reads the directory of a zip archive (APPNOTE.TXT of PKWARE, version 6.3) strictly.
#include "image/formats/stored_files.h"

#include <cstdint>
#include <string>

namespace llava {
namespace {

constexpr size_t kEndSize = 22, kEnd64Size = 56, kLocator64Size = 20, kEntrySize = 46, kLocalSize = 30;
constexpr uint16_t kHarmlessFlags = 0x0808;  // sizes behind the content, too; names in UTF-8

struct Directory {
  uint64_t count;
  uint64_t size;
  uint64_t offset;

  bool operator==(const Directory&) const = default;
};

struct Entry {
  std::string_view name;
  std::string_view content;
  uint64_t end;  // where the next one begins
};

std::optional<Directory> directory_of(std::string_view archive) {
  if (archive.substr(0, 4) != "PK\3\4" || archive.size() < kEndSize) {
    return std::nullopt;
  }
  const size_t end = archive.size() - kEndSize;
  const auto count = number_at<uint16_t>(archive, end + 10);
  const Directory directory{*count, *number_at<uint32_t>(archive, end + 12), *number_at<uint32_t>(archive, end + 16)};
  // One disk, with all entries on it, and no comment.
  if (archive.substr(end, 8) != std::string_view("PK\5\6\0\0\0\0", 8) ||
      number_at<uint16_t>(archive, end + 8) != count || number_at<uint16_t>(archive, end + 20) != 0) {
    return std::nullopt;
  }
  const uint64_t after = directory.offset + directory.size;
  if (after == end) {
    return directory;
  }
  // torch.save writes the same again with 64 bits, and where that begins.
  if (after + kEnd64Size + kLocator64Size != end || archive.substr(after, 4) != "PK\6\6" ||
      archive.substr(after + kEnd64Size, 4) != "PK\6\7" ||
      number_at<uint64_t>(archive, after + kEnd64Size + 8) != after ||
      number_at<uint64_t>(archive, after + 24) != number_at<uint64_t>(archive, after + 32)) {
    return std::nullopt;
  }
  const Directory wide{
      *number_at<uint64_t>(archive, after + 32), *number_at<uint64_t>(archive, after + 40),
      *number_at<uint64_t>(archive, after + 48)};
  return wide == directory ? std::optional(directory) : std::nullopt;
}

// Returns the entry at a place in the directory. `archive` ends where the directory ends, and `contents` where it
// begins.
std::optional<Entry> entry_at(std::string_view archive, std::string_view contents, uint64_t at) {
  const auto local = number_at<uint32_t>(archive, at + 42);
  if (!local || archive.substr(at, 4) != "PK\1\2") {
    return std::nullopt;
  }
  const auto flags = *number_at<uint16_t>(archive, at + 8), method = *number_at<uint16_t>(archive, at + 10);
  const auto compressed = *number_at<uint32_t>(archive, at + 20), size = *number_at<uint32_t>(archive, at + 24);
  const auto name_length = *number_at<uint16_t>(archive, at + 28), extra = *number_at<uint16_t>(archive, at + 30);
  const auto comment = *number_at<uint16_t>(archive, at + 32);
  const uint64_t end = at + kEntrySize + name_length + extra + comment;
  const auto local_name = number_at<uint16_t>(contents, uint64_t(*local) + 26);
  const auto local_extra = number_at<uint16_t>(contents, uint64_t(*local) + 28);
  if ((flags & ~kHarmlessFlags) != 0 || method != 0 || compressed != size || end > archive.size() || !local_extra) {
    return std::nullopt;
  }
  const std::string_view name = archive.substr(at + kEntrySize, name_length);
  const uint64_t content = uint64_t(*local) + kLocalSize + *local_name + *local_extra;
  if (contents.substr(*local, 4) != "PK\3\4" || *local_name != name_length || content > contents.size() ||
      contents.size() - content < size || contents.substr(*local + kLocalSize, name_length) != name) {
    return std::nullopt;
  }
  return Entry{name, contents.substr(content, size), end};
}

}  // namespace

std::optional<std::map<std::string_view, std::string_view>> stored_files(std::string_view archive) {
  const auto directory = directory_of(archive);
  if (!directory) {
    return std::nullopt;
  }
  const std::string_view contents = archive.substr(0, directory->offset);
  archive = archive.substr(0, directory->offset + directory->size);
  std::map<std::string_view, std::string_view> files;
  std::string_view folder;
  uint64_t at = directory->offset;
  for (uint64_t i = 0; i < directory->count; ++i) {
    const auto entry = entry_at(archive, contents, at);
    if (!entry) {
      return std::nullopt;
    }
    const std::string_view own_folder = entry->name.substr(0, entry->name.find('/') + 1);
    folder = i == 0 ? own_folder : folder;
    if (own_folder.empty() || own_folder != folder ||
        !files.emplace(entry->name.substr(folder.size()), entry->content).second) {
      return std::nullopt;
    }
    at = entry->end;
  }
  return at == archive.size() ? std::optional(files) : std::nullopt;
}

}  // namespace llava
