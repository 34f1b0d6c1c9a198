// Checks and opens a program, with packed weights or without them.
#include "runtime/open_program.h"

#include "cache/packed_cache.h"
#include "package/manifest.h"
#include "package/program_file.h"

namespace llava {

Program open_program(const ProgramOptions& options) {
  const ProgramStructure structure(options.model_path);
  check_structure(options.model_path, structure.digest());
  if (options.check) {
    require_manifest(options.model_path);
    check_whole_program(options.model_path);
  }
  const auto load = [&](const std::string& packed_cache_path) {
    LoadOptions with_cache = options.load;
    with_cache.packed_cache_path = packed_cache_path;
    with_cache.structure = structure.digest();
    return Program(options.model_path, with_cache);
  };
  // Only XNNPACK packs weights. A program that is to be refused is not worth it.
  const bool is_refused = options.load.needs_images && !structure.sees_images();
  if (options.packed_cache_path == kNoPackedCache || !structure.uses_xnnpack() || is_refused) {
    return load("");
  }
  const PackedCacheOptions kept{
      .program_path = options.model_path,
      .structure = structure.digest(),
      .folder = options.packed_cache_path,
      .may_pack = Program::num_loaded() == 0,
      .may_fork = !Program::was_loaded()};
  const PackedCache cache(kept, load);
  return load(cache.path());
}

}  // namespace llava
