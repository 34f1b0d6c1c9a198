// Checks and opens a program, with packed weights or without them.
#include "runtime/open_program.h"

#include "cache/packed_cache.h"
#include "package/manifest.h"
#include "package/program_file.h"

namespace llava {

Program open_program(const ProgramOptions& options) {
  const std::string structure = digest_of_structure(options.model_path);
  check_structure(options.model_path, structure);
  if (options.check) {
    require_manifest(options.model_path);
    check_whole_program(options.model_path);
  }
  const auto load = [&](const std::string& packed_cache_path) {
    LoadOptions with_cache = options.load;
    with_cache.packed_cache_path = packed_cache_path;
    with_cache.structure = structure;
    return Program(options.model_path, with_cache);
  };
  // Only XNNPACK packs weights.
  if (options.packed_cache_path == kNoPackedCache || !uses_xnnpack(options.model_path)) {
    return load("");
  }
  const PackedCacheOptions kept{
      .program_path = options.model_path,
      .structure = structure,
      .folder = options.packed_cache_path,
      .may_pack = Program::num_loaded() == 0,
      .may_fork = !Program::was_loaded()};
  const PackedCache cache(kept, load);
  return load(cache.path());
}

}  // namespace llava
