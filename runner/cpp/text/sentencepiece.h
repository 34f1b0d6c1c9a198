// Encodes and decodes by a tokenizer.bin (llama2c's layout), as SentencePiece's BPE does it.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/tokenizer.h"

namespace llava {

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(SentencePieceTokenizer&&) = default;  // not copied: its map holds views of its pieces

  // Returns the tokenizer in the content of a file. Throws PackageError, which names the path, if it is none.
  static SentencePieceTokenizer parse(std::string_view content, const std::string& path);

  // Puts a space before the first word, as in training, and finds user-defined pieces.
  std::vector<int32_t> encode(std::string_view text) const override;
  std::vector<int32_t> encode_pieces(std::string_view text) const override;
  std::string decode_piece(int32_t id) const override;
  bool is_byte(int32_t id) const override { return has(id) && pieces_[id].kind == Kind::kByte; }
  bool is_added(int32_t id) const override { return has(id) && pieces_[id].kind == Kind::kUserDefined; }
  bool is_unknown(int32_t id) const override { return has(id) && pieces_[id].kind == Kind::kUnknown; }
  int32_t vocab_size() const override { return int32_t(pieces_.size()); }

 private:
  SentencePieceTokenizer() = default;

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

}  // namespace llava
