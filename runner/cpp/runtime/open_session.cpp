// Opens a package's tokenizer and program.
#include "runtime/open_session.h"

#include <filesystem>
#include <memory>
#include <utility>

#include "package/program_file.h"

namespace llava {
namespace {

// Returns the path of the tokenizer in a package.
std::string find_tokenizer(const std::filesystem::path& folder) {
  const std::filesystem::path bin = folder / "tokenizer.bin", json = folder / "tokenizer.json";
  std::error_code error;
  return !std::filesystem::exists(bin, error) && std::filesystem::exists(json, error) ? json : bin;
}

}  // namespace

Session open_session(ProgramOptions options, const std::string& tokenizer_path) {
  Stage load;
  options.model_path = find_program(options.model_path);
  check_program_file(options.model_path);
  // The tokenizer comes first: a wrong one is noticed before gigabytes are loaded.
  const std::filesystem::path folder = std::filesystem::path(options.model_path).parent_path();
  const std::string path = tokenizer_path.empty() ? find_tokenizer(folder) : tokenizer_path;
  std::unique_ptr<Tokenizer> tokenizer = load.measure(0, [&] { return Tokenizer::open(path); });
  Program program = load.measure(0, [&] { return open_program(options); });
  return Session(std::move(program), std::move(tokenizer), load);
}

}  // namespace llava
