// What a runner must know about a model: the JSON that the program's constant method get_model_card returns. Its Python
// counterpart is llava_runner/contract.py.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace llava {

constexpr int kVocabAtMost = 1 << 20;  // far more than any model has

// How a conversation is spelled: {system}{user}<image>{image_suffix}{question}{assistant}{answer}{eos}...
struct PromptTemplate {
  std::string system;
  std::string user;
  std::string assistant;
  std::string image_suffix;
};

struct ModelCard {
  int image_size;
  int num_image_tokens;
  std::array<double, 3> image_mean;
  std::string image_aspect_ratio;
  PromptTemplate prompt;
  int hidden_size;
  int vocab_size;
  int tokenizer_vocab_size;
  int32_t bos_id;
  std::vector<int32_t> eos_ids;
  int max_seq_len;
  int max_context_len;

  // Returns the card that a text spells. Throws PackageError for a text that is no card of this schema, and for a value
  // that no model has: every number has its range, so that nothing which is computed with it overflows.
  static ModelCard from_json(const std::string& text);
};

}  // namespace llava
