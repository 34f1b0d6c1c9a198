// Reads the checksums of a program in its manifest.
#include "package/manifest.h"

#include <filesystem>
#include <optional>

#include "base/errors.h"
#include "base/files.h"
#include "base/sha256.h"
#include "package/json.h"

namespace llava {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

fs::path manifest_path(const fs::path& program) {
  return fs::path(program).replace_extension(".json");
}

// Returns a text in the manifest of a program; nullopt if the program has no manifest, or the manifest no such text.
std::optional<std::string> in_manifest(const fs::path& program, const json::json_pointer& place) {
  const fs::path path = manifest_path(program);
  std::error_code unreadable;  // then reading it says why
  if (!fs::exists(path, unreadable) && !unreadable) {
    return std::nullopt;
  }
  const json manifest = parse_json(read_file<PackageError>(path.string(), kJsonAtMost), path.string());
  if (!manifest.contains(place) || !manifest[place].is_string()) {
    return std::nullopt;  // the manifest of something else
  }
  return manifest[place].get<std::string>();
}

void compare(const std::string& program, const std::string& found, const std::optional<std::string>& expected) {
  if (expected && found != *expected) {
    throw PackageError(
        program + " is damaged: its SHA-256 is not the one in " + manifest_path(program).filename().string() +
        ". Copy or export it again.");
  }
}

}  // namespace

void check_structure(const std::string& program_path, const std::string& structure) {
  compare(program_path, structure, in_manifest(program_path, json::json_pointer("/structure_sha256")));
}

void check_whole_program(const std::string& program_path) {
  const json::json_pointer place = json::json_pointer("/files") / fs::path(program_path).filename().string() / "sha256";
  if (const auto expected = in_manifest(program_path, place)) {
    compare(program_path, sha256_of_file(program_path), expected);
  }
}

void require_manifest(const std::string& program_path) {
  if (std::error_code error; !fs::exists(manifest_path(program_path), error)) {
    throw PackageError(
        program_path + " cannot be checked: " + manifest_path(program_path).filename().string() +
        " is not next to it. Copy it, too.");
  }
}

}  // namespace llava
