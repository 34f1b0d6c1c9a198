// Reads a .pte without ExecuTorch: its size, and its structure.
#include "package/program_file.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <string_view>
#include <vector>

#include "base/digest.h"
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

constexpr uint64_t kProgramAtMost = 256 << 20;  // bytes that ExecuTorch interprets; a program with more is damaged
constexpr uint32_t kTablesAtMost = 1 << 20;     // in a list; far more than the layers of any model need

// Numbers of fields in ExecuTorch's program.fbs.
constexpr int kPlansField = 1, kSegmentsField = 4, kConstantSegmentField = 5, kNamedDataField = 7;  // of Program
constexpr int kNameField = 0, kDelegatesField = 7;                                                  // of ExecutionPlan
constexpr int kIdField = 0;                      // of BackendDelegate
constexpr int kOffsetField = 0, kSizeField = 1;  // of DataSegment
constexpr int kConstantIndexField = 0;           // of SubsegmentOffsets
constexpr int kSegmentIndexField = 1;            // of NamedData

[[noreturn]] void fail(const std::string& path) {
  throw PackageError(path + " is damaged. Copy or export it again.");
}

Head read_head(const std::string& path, std::ifstream& file) {
  check_is_file<PackageError>(path);
  file.open(path, std::ios::binary | std::ios::ate);
  if (!file) {
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

  // Returns the number in a field of a table; 0 if the field has its default.
  template <typename T>
  T number_in(uint64_t table, int index) const {
    const uint64_t at = field(table, index);
    return at ? number<T>(at) : 0;
  }

  // Returns the text in a field of a table; nothing if the field has its default.
  std::string_view text_in(uint64_t table, int index) const {
    const uint64_t at = field(table, index);
    if (!at) {
      return {};
    }
    const uint64_t text = follow(at);
    const auto size = number<uint32_t>(text);
    if (size > bytes_.size() - text - sizeof(size)) {
      fail(path_);
    }
    return bytes_.substr(text + sizeof(size), size);
  }

  // Returns the places of the tables in a list, which is a field of a table.
  std::vector<uint64_t> tables(uint64_t table, int index) const {
    std::vector<uint64_t> found;
    if (const uint64_t at = field(table, index)) {
      const uint64_t list = follow(at);
      const uint32_t count = number<uint32_t>(list);
      if (count > kTablesAtMost) {
        fail(path_);
      }
      for (uint32_t i = 0; i < count; ++i) {  // fails where the bytes end
        found.push_back(follow(list + 4 + 4 * uint64_t(i)));
      }
    }
    return found;
  }

 private:
  const std::string& path_;
  std::string_view bytes_;
};

std::string read(const std::string& path, std::ifstream& file, uint64_t offset, uint64_t size) {
  std::string bytes(size, '\0');
  file.seekg(std::streamoff(offset));
  if (!file.read(bytes.data(), std::streamsize(size))) {
    fail(path);
  }
  return bytes;
}

}  // namespace

std::string find_program(const std::string& package) {
  std::error_code unreadable;
  if (!std::filesystem::is_directory(package, unreadable)) {
    return package;
  }
  std::vector<std::string> programs;
  std::filesystem::directory_iterator entry(package, unreadable), end;
  for (; !unreadable && entry != end; entry.increment(unreadable)) {
    if (entry->path().extension() == ".pte") {
      programs.push_back(entry->path().string());
    }
  }
  if (programs.size() != 1) {
    const std::string found = programs.empty() ? "no program" : std::to_string(programs.size()) + " programs";
    throw PackageError(package + " has " + found + "; a package has one .pte, or name the file itself");
  }
  return programs.front();
}

std::string find_tokenizer(const std::string& program) {
  const std::filesystem::path folder = std::filesystem::path(program).parent_path();
  const std::filesystem::path bin = folder / "tokenizer.bin", json = folder / "tokenizer.json";
  std::error_code error;
  return !std::filesystem::exists(bin, error) && std::filesystem::exists(json, error) ? json : bin;
}

void check_program_file(const std::string& path) {
  std::ifstream file;
  read_head(path, file);
}

ProgramStructure::ProgramStructure(const std::string& path) : path_(path) {
  std::ifstream file;
  const Head head = read_head(path, file);
  if (head.program_size > kProgramAtMost) {
    fail(path);
  }
  flatbuffer_ = read(path, file, 0, head.program_size);
  Sha256 hash;
  hash.add(bytes_of(flatbuffer_));
  const Flatbuffer flatbuffer(path_, flatbuffer_);
  const uint64_t root = flatbuffer.follow(0);
  std::set<uint32_t> data;  // the segments that hold weights
  for (const uint64_t named : flatbuffer.tables(root, kNamedDataField)) {
    data.insert(flatbuffer.number_in<uint32_t>(named, kSegmentIndexField));
  }
  if (const uint64_t constants = flatbuffer.field(root, kConstantSegmentField)) {
    data.insert(flatbuffer.number_in<uint32_t>(flatbuffer.follow(constants), kConstantIndexField));
  }
  uint32_t index = 0;
  uint64_t left = std::min(kProgramAtMost, head.segment_size);  // segments that share bytes could be far more
  for (const uint64_t segment : flatbuffer.tables(root, kSegmentsField)) {
    const auto offset = flatbuffer.number_in<uint64_t>(segment, kOffsetField);
    const auto size = flatbuffer.number_in<uint64_t>(segment, kSizeField);
    if (offset > head.segment_size || size > head.segment_size - offset) {
      fail(path);
    }
    if (!data.contains(index++)) {
      if (size > left) {
        fail(path);
      }
      left -= size;
      hash.add(bytes_of(read(path, file, head.segment_offset + offset, size)));
    }
  }
  digest_ = hash.digest();
}

bool ProgramStructure::sees_images() const {
  const Flatbuffer flatbuffer(path_, flatbuffer_);
  const auto plans = flatbuffer.tables(flatbuffer.follow(0), kPlansField);
  return std::any_of(plans.begin(), plans.end(), [&](uint64_t plan) {
    return flatbuffer.text_in(plan, kNameField) == kVisionEncoder;
  });
}

bool ProgramStructure::uses_xnnpack() const {
  const Flatbuffer flatbuffer(path_, flatbuffer_);
  size_t left = kTablesAtMost;  // plans that share their delegates could have far more
  for (const uint64_t plan : flatbuffer.tables(flatbuffer.follow(0), kPlansField)) {
    const auto delegates = flatbuffer.tables(plan, kDelegatesField);
    if (delegates.size() > left) {
      fail(path_);
    }
    left -= delegates.size();
    for (const uint64_t delegate : delegates) {
      if (flatbuffer.text_in(delegate, kIdField) == kXnnpack) {
        return true;
      }
    }
  }
  return false;
}

}  // namespace llava
