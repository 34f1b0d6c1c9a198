// Greedy decoding of guesses, from where the conversation and the last guess part.
#include "runtime/draft_model.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "base/errors.h"
#include "package/program_file.h"

namespace llava {
namespace {

// Throws PackageError unless both read all ids that they have as the same text.
void check_vocabulary(const std::string& draft_path, const Tokenizer& draft, const Tokenizer& tokenizer) {
  for (int32_t id = 0; id < std::min(draft.vocab_size(), tokenizer.vocab_size()); ++id) {
    if (draft.decode_piece(id) != tokenizer.decode_piece(id)) {
      throw PackageError(
          draft_path + " cannot draft for this model: its vocabulary is another, token " + std::to_string(id) +
          " is '" + draft.decode_piece(id) + "' and not '" + tokenizer.decode_piece(id) +
          "'; take a model with the same tokenizer");
    }
  }
}

}  // namespace

ProgramOptions prepare_draft(ProgramOptions options, const Tokenizer& tokenizer) {
  options.model_path = find_program(options.draft_model_path);
  check_program_file(options.model_path);
  check_vocabulary(options.model_path, *Tokenizer::open(find_tokenizer(options.model_path)), tokenizer);
  options.load.needs_images = false;
  options.load.cpu_threads = 0;  // the model that it drafts for starts them
  pack_weights(options);
  return options;
}

DraftModel::DraftModel(Program program, int vocab_size)
    : program_(std::move(program)), vocab_size_(std::min(program_.card().tokenizer_vocab_size, vocab_size)) {}

std::vector<int32_t> DraftModel::guess(std::span<const int32_t> ids, int most) {
  const auto is_unknown = [this](int32_t id) { return id >= vocab_size_; };
  most = std::min(most, program_.card().max_context_len - int(ids.size()));
  if (most < 1 || std::any_of(ids.begin(), ids.end(), is_unknown)) {
    return {};
  }
  std::vector<int32_t> all(ids.begin(), ids.end());
  for (int i = 0; i < most; ++i) {
    all.push_back(read(all));
  }
  return {all.end() - most, all.end()};
}

// Brings the KV cache to `ids`. Returns the most likely token after them.
int32_t DraftModel::read(std::span<const int32_t> ids) {
  const auto [differs, unused] = std::mismatch(cached_.begin(), cached_.end(), ids.begin(), ids.end());
  const size_t start = std::min(size_t(differs - cached_.begin()), ids.size() - 1);
  cached_.resize(start);  // where reading fails, the rest may be overwritten
  const auto logits = program_.decode(program_.embed(ids.subspan(start)), int(start)).first(size_t(vocab_size_));
  cached_.assign(ids.begin(), ids.end());
  return int32_t(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace llava
