// A small language model that guesses what a large one will say.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/open_program.h"
#include "text/tokenizer.h"

namespace llava {

// Returns options that open the package at `options.draft_model_path`, which is to draft for a model with this
// `tokenizer`. To be called before that model is loaded: then weights are packed where they are not yet. Throws
// PackageError, also where both read ids as different texts.
ProgramOptions prepare_draft(ProgramOptions options, const Tokenizer& tokenizer);

// It reads the text of a conversation, without images, and guesses the tokens that it finds most likely itself.
class DraftModel {
 public:
  // Takes over a program, to draft for a model whose tokenizer has `vocab_size` tokens.
  DraftModel(Program program, int vocab_size);

  // Returns at most `most` tokens that may follow `ids`. There are fewer where the draft's context has no room for
  // them, and none where it lacks one of the tokens.
  std::vector<int32_t> guess(std::span<const int32_t> ids, int most);

 private:
  int32_t read(std::span<const int32_t> ids);

  Program program_;
  int vocab_size_;               // of the tokens that both have
  std::vector<int32_t> cached_;  // what its KV cache holds
};

}  // namespace llava
