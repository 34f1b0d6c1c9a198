// Turns text into token ids and back, by tokenizer.bin (llama2c's layout) as SentencePiece's BPE does it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace llava {

constexpr std::string_view kSpaceSign = "\u2581";  // how SentencePiece spells a space

class Tokenizer {
 public:
  Tokenizer(Tokenizer&&) = default;  // not copied: its map holds views of its pieces

  // Reads a tokenizer.bin. Throws PackageError for a file that is missing, damaged or of another kind.
  static Tokenizer open(const std::string& path);

  // Returns the ids of a text, without BOS. A space is put before its first word, as in training. Throws PromptError
  // as `check` does.
  std::vector<int32_t> encode(std::string_view text) const;

  // Returns the ids of a text that `check` passed, as it is: without a space before it or added tokens.
  std::vector<int32_t> encode_pieces(std::string_view text) const;

  // Throws PromptError for text that is not UTF-8, or of more than 1 MiB.
  static void check(std::string_view text);

  // Returns the UTF-8 bytes that a token stands for; for byte pieces a single byte, for control tokens nothing. Ids
  // beyond the vocabulary, which models with a padded vocabulary have, stand for nothing, too.
  std::string decode_piece(int32_t id) const;

  bool is_byte(int32_t id) const { return has(id) && pieces_[id].kind == Kind::kByte; }
  // Returns whether a token is a user-defined piece: byte pair encoding does not make it.
  bool is_added(int32_t id) const { return has(id) && pieces_[id].kind == Kind::kUserDefined; }
  bool is_unknown(int32_t id) const { return has(id) && pieces_[id].kind == Kind::kUnknown; }
  int32_t vocab_size() const { return int32_t(pieces_.size()); }

 private:
  Tokenizer() = default;

  enum class Kind { kNormal, kUnknown, kControl, kUserDefined, kByte };
  struct Piece {
    std::string text;
    float score;
    Kind kind;
  };

  bool has(int32_t id) const { return id >= 0 && size_t(id) < pieces_.size(); }
  void infer_kinds(uint32_t bos_id, uint32_t eos_id);
  size_t user_defined_prefix(std::string_view text) const;
  std::vector<int32_t> merged(const std::string& spelled, bool with_user_defined) const;
  std::optional<int32_t> id_of(std::string_view text, bool with_user_defined) const;
  void append(std::string_view symbol, bool with_user_defined, std::vector<int32_t>& ids) const;

  std::vector<Piece> pieces_;
  std::unordered_map<std::string_view, int32_t> id_of_;  // of ordinary and user-defined pieces; views of pieces_
  std::vector<std::string_view> user_defined_;           // sorted
  int32_t unknown_id_ = -1;
  int32_t byte_ids_[256];  // -1 where there is no piece for a byte
};

// Turns ids into whole characters as they come; all it returns, joined, is SentencePiece's decoding of the ids.
//
// Like SentencePiece it drops the one space that begins a text, and shows every byte that is part of no character as
// U+FFFD.
template <typename Decoder>  // Tokenizer, or ChatTokenizer
class TextStream {
 public:
  explicit TextStream(const Decoder& tokenizer) : tokenizer_(tokenizer) {}

  // Returns the characters that this token completes, often none.
  std::string push(int32_t id);

  // Returns what is left at the end: the bytes of a character that was never completed.
  std::string flush() { return take_characters(/*final=*/true); }

 private:
  std::string take_characters(bool final);

  const Decoder& tokenizer_;
  std::string bytes_;  // the beginning of a character whose other bytes have not come yet
  bool at_start_ = true;
};

}  // namespace llava
