// What a runner must know about a model: the JSON that the program's constant method get_model_card returns. Its Python
// counterpart is llava_runner/contract.py.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace llava {

// How an image is made square, and the ways in which Pillow resamples, by its numbers.
inline const std::vector<std::string> kImageAspectRatios{"pad", "crop", "stretch"};
inline const std::vector<std::string> kResamples{"nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"};
constexpr int kVocabAtMost = 1 << 20;  // far more than any model has
constexpr int kMaxLogitsToKeep = 16;   // tokens of a call of the decoder

// How a conversation is spelled:
// {system}{user}<image>{image_separator}{question}{assistant}{answer}{answer_end}{user}... With image_last, an image
// comes after its question: {question}{image_separator}<image>. Around every <image> stand image_start and image_end.
// With trims, spaces around a question are dropped.
struct PromptTemplate {
  std::string system;
  std::string user;
  std::string assistant;
  std::string image_separator;
  std::string image_start;
  std::string image_end;
  std::string answer_end;
  bool image_last;
  bool trims;
};

// A text that is one token as a whole. The names are those of the library tokenizers; contract.py explains them.
struct AddedToken {
  int32_t id;
  std::string content;
  bool special;
  bool lstrip;
  bool rstrip;
  bool normalized;
};

// Which segments of a text, between its added tokens, get a space before their first word.
enum class PrependScheme { kFirst, kAlways, kNever, kPrepend };

// What a tokenizer.bin does not say; contract.py explains it.
struct TokenizerRules {
  PrependScheme prepend_scheme;
  bool image_begins_text;
  bool adds_bos;
  std::vector<AddedToken> added_tokens;
};

struct ModelCard {
  int image_size;
  int num_image_tokens;  // 0 in a language model alone, whose program has no vision encoder
  std::array<double, 3> image_mean;
  std::string image_aspect_ratio;
  int image_resize;  // pixels that an image is resized to before the center of image_size is cut out
  std::string image_resample;
  PromptTemplate prompt;
  TokenizerRules tokenizer;
  int hidden_size;
  int vocab_size;
  int tokenizer_vocab_size;
  int32_t bos_id;
  std::vector<int32_t> eos_ids;
  int max_seq_len;
  int max_context_len;
  int logits_to_keep;  // of the last tokens that a call of the decoder reads

  // Returns the card that a text spells. Throws PackageError for a text that is no card of this schema, and for a value
  // that no model has: every number has its range, so that nothing which is computed with it overflows.
  static ModelCard from_json(const std::string& text);
};

}  // namespace llava
