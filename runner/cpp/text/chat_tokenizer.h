// The tokenizer of a chat model: added tokens, and the spaces between them, as in transformers. Its Python counterpart
// is llava_runner/chat_tokenizer.py.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "package/model_card.h"
#include "text/prompt.h"
#include "text/tokenizer.h"

namespace llava {

// A tokenizer with a model's own rules. The algorithm is that of the library tokenizers: added tokens are found first,
// and each segment between them is encoded on its own.
class ChatTokenizer {
 public:
  ChatTokenizer(std::unique_ptr<Tokenizer> pieces, TokenizerRules rules, int32_t bos_id);

  // Returns the ids of each chunk of a turn; between two chunks stands an image. `before` is the token that the turn
  // comes after; nullopt if it is the first. Throws PromptError as Tokenizer::check does.
  std::vector<std::vector<int32_t>> encode_turn(const std::vector<Chunk>& chunks, std::optional<int32_t> before) const;

  // Returns the ids of an answer that the model did not write itself: those that it is trained to write after its
  // template's cue. Throws PromptError as Tokenizer::check does.
  std::vector<int32_t> encode_answer(const std::string& text) const;

  // Returns the UTF-8 bytes of a token; nothing for special tokens, and for ids that stand for no text.
  std::string decode_piece(int32_t id) const;

  int32_t vocab_size() const { return pieces_->vocab_size(); }
  bool is_byte(int32_t id) const { return pieces_->is_byte(id); }
  bool is_unknown(int32_t id) const { return pieces_->is_unknown(id); }
  bool is_byte_level() const { return pieces_->is_byte_level(); }

 private:
  // A text, and for each of its bytes whether it is of a template (1) or of a user (0).
  struct Marked {
    std::string text;
    std::string marks;
  };
  // Added tokens by the first byte of what is looked for, the longest first.
  struct Wanted {
    std::string content;
    const AddedToken* token;
  };
  using Finder = std::unordered_map<char, std::vector<Wanted>>;

  Marked normalized(const Marked& segment) const;
  const Wanted* find_at(const Finder& finder, const Marked& marked, size_t at) const;
  template <typename OnText, typename OnToken>
  void split(const Finder& finder, const Marked& marked, OnText on_text, OnToken on_token) const;
  std::vector<int32_t> encode(const Chunk& chunk, bool begins_text, bool begins_segment) const;

  std::unique_ptr<const Tokenizer> pieces_;
  TokenizerRules rules_;
  int32_t bos_id_;
  std::unordered_map<int32_t, const AddedToken*> added_;
  Finder exact_, normalized_;
};

}  // namespace llava
