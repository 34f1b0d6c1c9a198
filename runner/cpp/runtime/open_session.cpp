// Opens a package's tokenizer and program.
#include "runtime/open_session.h"

#include <memory>
#include <optional>
#include <utility>

#include "base/errors.h"
#include "package/program_file.h"

namespace llava {
Session open_session(ProgramOptions options, const std::string& tokenizer_path) {
  Stage load;
  options.model_path = find_program(options.model_path);
  check_program_file(options.model_path);
  // The tokenizers come first: a wrong one is noticed before gigabytes are loaded.
  const std::string path = tokenizer_path.empty() ? find_tokenizer(options.model_path) : tokenizer_path;
  std::unique_ptr<Tokenizer> tokenizer = load.measure(0, [&] { return Tokenizer::open(path); });
  std::optional<ProgramOptions> draft_options;
  if (!options.draft_model_path.empty()) {
    draft_options = load.measure(0, [&] { return prepare_draft(options, *tokenizer); });
  }
  options.load.needs_images = true;
  Program program = load.measure(0, [&] { return open_program(options); });
  std::unique_ptr<DraftModel> draft;
  if (draft_options && program.card().logits_to_keep > 1) {
    draft = load.measure(
        0, [&] { return std::make_unique<DraftModel>(open_program(*draft_options), tokenizer->vocab_size()); });
  }
  return Session(std::move(program), std::move(tokenizer), load, std::move(draft));
}

}  // namespace llava
