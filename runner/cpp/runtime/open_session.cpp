// Opens a package's tokenizer and program.
#include "runtime/open_session.h"

#include <memory>
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
  std::string& draft_path = options.draft_model_path;
  if (!draft_path.empty()) {
    draft_path = load.measure(0, [&] { return find_draft(draft_path, *tokenizer); });
  }
  options.load.needs_images = true;
  Program program = load.measure(0, [&] { return open_program(options); });
  std::unique_ptr<DraftModel> draft;
  if (!draft_path.empty() && program.card().logits_to_keep > 1) {
    draft = load.measure(0, [&] { return std::make_unique<DraftModel>(options, tokenizer->vocab_size()); });
  }
  return Session(std::move(program), std::move(tokenizer), load, std::move(draft));
}

}  // namespace llava
