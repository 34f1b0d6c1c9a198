// Checks a .pte without ExecuTorch: its size, its structure, and its SHA-256.
#include "package/program_file.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/errors.h"
#include "base/files.h"
#include "base/sha256.h"

namespace llava {
namespace {

// Flatbuffer root offset, file identifier, then ExecuTorch's extended header. Little-endian.
struct __attribute__((packed)) Head {
  uint32_t root;
  char identifier[4];
  char magic[4];
  uint32_t header_size;
  uint64_t program_size;  // of the flatbuffer, which begins with the file
  uint64_t segment_offset;
  uint64_t segment_size;
};

constexpr uint64_t kProgramAtMost = 256 << 20;   // bytes of a flatbuffer; a larger one is damaged
constexpr uint64_t kDataFrom = 64 << 10;         // bytes of a segment that is data and not part of the structure
constexpr int kSegmentsField = 4;                // of the table Program in ExecuTorch's program.fbs
constexpr int kOffsetField = 0, kSizeField = 1;  // of the table DataSegment

[[noreturn]] void fail(const std::string& path) {
  throw PackageError(path + " is damaged. Copy or export it again.");
}

Head read_head(const std::string& path, std::ifstream& file) {
  file.open(path, std::ios::binary | std::ios::ate);
  if (!file) {
    read_file<PackageError>(path);  // says why
    throw PackageError(path + " cannot be read");
  }
  const uint64_t size = uint64_t(file.tellg());
  Head head{};
  file.seekg(0);
  if (size < sizeof(head) || !file.read(reinterpret_cast<char*>(&head), sizeof(head))) {
    throw PackageError(path + " is not an ExecuTorch program: it has only " + std::to_string(size) + " bytes");
  }
  if (std::memcmp(head.identifier, "ET", 2) != 0 || std::memcmp(head.magic, "eh00", 4) != 0) {
    throw PackageError(path + " is not an ExecuTorch program (.pte)");
  }
  const bool overflows = head.segment_offset > UINT64_MAX - head.segment_size;
  const uint64_t expected =
      overflows ? UINT64_MAX : std::max(head.program_size, head.segment_offset + head.segment_size);
  if (size < expected) {
    throw PackageError(
        path + " is truncated: " + std::to_string(size) + " of " + std::to_string(expected) +
        " bytes. Copy or export it again.");
  }
  return head;
}

// Reads numbers and references of a flatbuffer whose every byte may be wrong.
class Flatbuffer {
 public:
  Flatbuffer(const std::string& path, std::string_view bytes) : path_(path), bytes_(bytes) {}

  template <typename T>
  T number(uint64_t at) const {
    T value;
    if (at > bytes_.size() || bytes_.size() - at < sizeof(T)) {
      fail(path_);
    }
    std::memcpy(&value, bytes_.data() + at, sizeof(T));
    return value;
  }

  // Returns the place that the offset stored at `at` leads to.
  uint64_t follow(uint64_t at) const { return at + number<uint32_t>(at); }

  // Returns the place of a field of a table; 0 if the field has its default.
  uint64_t field(uint64_t table, int index) const {
    const uint64_t vtable = uint64_t(int64_t(table) - number<int32_t>(table));
    const uint64_t entry = 4 + 2 * uint64_t(index);
    const uint64_t offset = entry < number<uint16_t>(vtable) ? number<uint16_t>(vtable + entry) : 0;
    return offset ? table + offset : 0;
  }

 private:
  const std::string& path_;
  std::string_view bytes_;
};

}  // namespace

std::string find_program(const std::string& package) {
  std::error_code unreadable;
  if (!std::filesystem::is_directory(package, unreadable)) {
    return package;
  }
  std::vector<std::string> programs;
  for (const auto& entry : std::filesystem::directory_iterator(package, unreadable)) {
    if (entry.path().extension() == ".pte") {
      programs.push_back(entry.path().string());
    }
  }
  if (programs.size() != 1) {
    const std::string found = programs.empty() ? "no program" : std::to_string(programs.size()) + " programs";
    throw PackageError(package + " has " + found + "; a package has one .pte, or name the file itself");
  }
  return programs.front();
}

void check_program_file(const std::string& path) {
  std::ifstream file;
  read_head(path, file);
}

Digest digest_of_structure(const std::string& path) {
  std::ifstream file;
  const Head head = read_head(path, file);
  if (head.program_size > kProgramAtMost) {
    fail(path);
  }
  const auto read = [&](uint64_t offset, uint64_t size) {
    std::string bytes(size, '\0');
    file.seekg(std::streamoff(offset));
    if (!file.read(bytes.data(), std::streamsize(size))) {
      fail(path);
    }
    return bytes;
  };
  const std::string program = read(0, head.program_size);
  std::vector<Digest> parts = {digest(bytes_of(program))};
  const Flatbuffer flatbuffer(path, program);
  const uint64_t list = flatbuffer.field(flatbuffer.follow(0), kSegmentsField);
  const uint64_t segments = list ? flatbuffer.follow(list) : 0;
  const uint32_t count = list ? flatbuffer.number<uint32_t>(segments) : 0;
  for (uint32_t i = 0; i < count; ++i) {
    const uint64_t segment = flatbuffer.follow(segments + 4 + 4 * uint64_t(i));
    const auto number = [&](int index) {
      const uint64_t at = flatbuffer.field(segment, index);
      return at ? flatbuffer.number<uint64_t>(at) : 0;
    };
    const uint64_t offset = number(kOffsetField), size = number(kSizeField);
    if (offset > head.segment_size || size > head.segment_size - offset) {
      fail(path);
    }
    if (size < kDataFrom) {
      parts.push_back(digest(bytes_of(read(head.segment_offset + offset, size))));
    }
  }
  return digest(parts);
}

void check_against_manifest(const std::string& path) {
  const std::filesystem::path manifest_path = std::filesystem::path(path).replace_extension(".json");
  if (!std::filesystem::exists(manifest_path)) {
    return;
  }
  const auto manifest = nlohmann::json::parse(read_file<PackageError>(manifest_path.string()), nullptr, false);
  const auto place =
      nlohmann::json::json_pointer("/files") / std::filesystem::path(path).filename().string() / "sha256";
  if (manifest.is_discarded() || !manifest.contains(place) || !manifest[place].is_string()) {
    return;  // the manifest of something else
  }
  if (sha256_of_file(path) != manifest[place].get<std::string>()) {
    throw PackageError(
        path + " is damaged: its SHA-256 is not the one in " + manifest_path.filename().string() +
        ". Copy or export it again.");
  }
}

}  // namespace llava
