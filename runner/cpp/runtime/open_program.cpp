// Checks and opens a program, with packed weights or without them.
#include "runtime/open_program.h"

#include "cache/packed_cache.h"
#include "package/manifest.h"
#include "package/program_file.h"

namespace llava {
namespace {

// Returns a program's structure, once it has been compared with the manifest.
ProgramStructure checked_structure(const ProgramOptions& options) {
  ProgramStructure structure(options.model_path);
  check_structure(options.model_path, structure.digest());
  return structure;
}

// Returns whether the weights are packed into a file. Only XNNPACK packs. A program to be refused is not worth it.
bool is_packed(const ProgramOptions& options, const ProgramStructure& structure) {
  const bool is_refused = options.load.needs_images && !structure.sees_images();
  return options.packed_cache_path != kNoPackedCache && structure.uses_xnnpack() && !is_refused;
}

Program load(const ProgramOptions& options, const ProgramStructure& structure, const std::string& packed_cache_path) {
  LoadOptions with_cache = options.load;
  with_cache.packed_cache_path = packed_cache_path;
  with_cache.structure = structure.digest();
  return Program(options.model_path, with_cache);
}

// Finds the file of packed weights, or makes it.
PackedCache find_packed_weights(const ProgramOptions& options, const ProgramStructure& structure) {
  const PackedCacheOptions kept{
      .program_path = options.model_path,
      .structure = structure.digest(),
      .folder = options.packed_cache_path,
      .may_pack = Program::num_loaded() == 0,
      .may_fork = !Program::was_loaded()};
  return PackedCache(kept, [&](const std::string& path) { load(options, structure, path); });
}

}  // namespace

void pack_weights(const ProgramOptions& options) {
  if (Program::was_loaded()) {
    return;
  }
  if (const ProgramStructure structure = checked_structure(options); is_packed(options, structure)) {
    find_packed_weights(options, structure);
  }
}

Program open_program(const ProgramOptions& options) {
  const ProgramStructure structure = checked_structure(options);
  if (options.check) {
    require_manifest(options.model_path);
    check_whole_program(options.model_path);
  }
  if (!is_packed(options, structure)) {
    return load(options, structure, "");
  }
  const PackedCache cache = find_packed_weights(options, structure);
  return load(options, structure, cache.path());
}

}  // namespace llava
