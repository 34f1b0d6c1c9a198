// Opens a program with packed weights, or without them.
#include "runtime/open_program.h"

#include <filesystem>

#include "cache/packed_cache.h"

namespace llava {

Program open_program(const ProgramOptions& options) {
  if (options.packed_cache_path == kNoPackedCache) {
    return Program(options.model_path, options.load);
  }
  const auto load = [&](const std::string& packed_cache_path) {
    LoadOptions with_cache = options.load;
    with_cache.packed_cache_path = packed_cache_path;
    return Program(options.model_path, with_cache);
  };
  const std::string own_folder = std::filesystem::path(options.model_path).parent_path().string();
  const std::string folder = options.packed_cache_path.empty() ? own_folder : options.packed_cache_path;
  const PackedCache cache(options.model_path, folder, load);
  return load(cache.path());
}

}  // namespace llava
