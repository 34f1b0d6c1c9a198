// Turns text into token ids and back, by one of two kinds of files: tokenizer.bin (SentencePiece, see sentencepiece.h)
// or tokenizer.json (byte-level BPE, see byte_level_bpe.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace llava {

struct AddedToken;

constexpr std::string_view kSpaceSign = "\u2581";  // how SentencePiece spells a space

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Reads a tokenizer.bin or a tokenizer.json, whatever its name. Throws PackageError for a file that is missing,
  // damaged or of another kind.
  static std::unique_ptr<Tokenizer> open(const std::string& path);

  // Tells it the added tokens of its model, some of which may be in other files. Text between them does not become one.
  virtual void know_added(const std::vector<AddedToken>&) {}

  // Throws PromptError for text that is not UTF-8, or of more than 1 MiB.
  static void check(std::string_view text);

  // Returns the ids of a text alone, without BOS. Throws PromptError as `check` does.
  virtual std::vector<int32_t> encode(std::string_view text) const = 0;

  // Returns a text as `encode_pieces` and normalized added tokens want it.
  virtual std::string normalized(std::string_view text) const { return std::string(text); }

  // Returns the ids of a text that `check` passed, as it is: without a space before it or added tokens.
  virtual std::vector<int32_t> encode_pieces(std::string_view text) const = 0;

  // Returns the UTF-8 bytes that a token stands for, perhaps a part of a character; for control tokens nothing. Ids
  // beyond the vocabulary, which models with a padded vocabulary have, stand for nothing, too.
  virtual std::string decode_piece(int32_t id) const = 0;

  // Returns the bytes that an added token with this content stands for.
  virtual std::string decode_added(const std::string& content) const { return content; }

  // Returns whether a token may be a part of a character.
  virtual bool is_byte(int32_t id) const = 0;
  // Returns whether a token is one that encoding pieces does not make.
  virtual bool is_added(int32_t id) const = 0;
  virtual bool is_unknown(int32_t id) const = 0;
  // Returns whether all tokens are bytes. Then no space is added before a text, and none is dropped.
  virtual bool is_byte_level() const { return false; }
  virtual int32_t vocab_size() const = 0;

 protected:
  Tokenizer() = default;
  Tokenizer(Tokenizer&&) = default;
};

// Turns ids into whole characters as they come; all it returns, joined, is the tokenizer's own decoding of the ids.
//
// SentencePiece drops the one space that begins a text, and shows every byte that is part of no character as U+FFFD.
// Byte-level BPE drops nothing, and shows as one U+FFFD what may begin a character and does not go on as one.
template <typename Decoder>  // Tokenizer, or ChatTokenizer
class TextStream {
 public:
  explicit TextStream(const Decoder& tokenizer) : tokenizer_(tokenizer) {}

  // Returns the characters that this token completes, often none.
  std::string push(int32_t id);

  // Returns what is left at the end: the bytes of a character that was never completed.
  std::string flush() { return take_characters(/*final=*/true); }

  // The space that begins a text and is not shown, where the newest token had it; otherwise empty.
  const std::string& dropped() const { return dropped_; }

 private:
  std::string take_characters(bool final);

  const Decoder& tokenizer_;
  std::string bytes_;  // the beginning of a character whose other bytes have not come yet
  std::string dropped_;
  bool at_start_ = true;
};

}  // namespace llava
