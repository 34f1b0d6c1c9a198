// Decodes token ids to whole characters; see tokenizer.h.
#include "text/chat_tokenizer.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

namespace llava {

constexpr std::string_view kReplacement = "\uFFFD";

template <typename Decoder>
std::string TextStream<Decoder>::push(int32_t id) {
  dropped_.clear();
  std::string piece = tokenizer_.decode_piece(id);
  if (tokenizer_.is_byte(id)) {
    at_start_ = false;
    bytes_ += piece;
    return take_characters(/*final=*/false);
  }
  std::string text = flush();
  if (at_start_ && !piece.empty()) {
    at_start_ = false;
    // The sign for an unknown token has spaces of its own.
    if (piece.front() == ' ' && !tokenizer_.is_unknown(id)) {
      piece.erase(0, 1);
      dropped_.push_back(' ');
    }
  }
  return text + piece;
}

template <typename Decoder>
std::string TextStream<Decoder>::take_characters(bool final) {
  std::string text;
  while (!bytes_.empty()) {
    const size_t length = character_length(bytes_);
    if (length == kIncomplete && !final) {
      break;
    }
    if (length == kInvalid || length == kIncomplete) {
      text += kReplacement;
      bytes_.erase(0, tokenizer_.is_byte_level() ? invalid_length(bytes_) : 1);
    } else {
      text.append(bytes_, 0, length);
      bytes_.erase(0, length);
    }
  }
  return text;
}

template class TextStream<Tokenizer>;
template class TextStream<ChatTokenizer>;

}  // namespace llava
