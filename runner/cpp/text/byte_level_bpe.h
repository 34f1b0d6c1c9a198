// Encodes and decodes by a tokenizer.json, as the library tokenizers does byte-level BPE.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "text/hash_index.h"
#include "text/split_pattern.h"
#include "text/tokenizer.h"

namespace llava {

struct TokenizerJson;

class ByteLevelBpe final : public Tokenizer {
 public:
  // Reads the content of a tokenizer.json. Throws PackageError, which names the path, if it is none that is known.
  ByteLevelBpe(std::string content, const std::string& path);

  void know_added(const std::vector<AddedToken>& tokens) override;
  // Does not look for added tokens.
  std::vector<int32_t> encode(std::string_view text) const override;
  std::string normalized(std::string_view text) const override;
  std::vector<int32_t> encode_pieces(std::string_view text) const override;
  std::string decode_piece(int32_t id) const override;
  std::string decode_added(const std::string& content) const override;
  bool is_byte(int32_t) const override { return true; }
  bool is_added(int32_t id) const override { return has(id) && pieces_[id].is_special; }
  bool is_unknown(int32_t) const override { return false; }
  bool is_byte_level() const override { return true; }
  int32_t vocab_size() const override { return vocab_size_; }

 private:
  // A token's bytes are a part of `bytes_`, none for an id that no token has.
  struct Piece {
    uint32_t begin = 0;
    uint32_t length : 30 = 0;
    uint32_t is_bytes : 1 = 0;    // its text is one of bytes; otherwise no text becomes it
    uint32_t is_special : 1 = 0;  // it is made by no text, unless it is the only one for a byte
  };
  struct Merge {
    int32_t left;
    int32_t right;
    int32_t whole;
  };
  struct Word;

  void add_pieces(const TokenizerJson& file);
  void add_merges(const TokenizerJson& file);
  bool has(int32_t id) const { return id >= 0 && size_t(id) < pieces_.size(); }
  std::string_view bytes_of(const Piece& piece) const {
    return std::string_view(bytes_).substr(piece.begin, piece.length);
  }
  int32_t find_piece(std::string_view bytes, bool is_bytes) const;
  int32_t find_merge(int32_t left, int32_t right) const;
  void append_word(std::string_view bytes, Word& word, std::vector<int32_t>& ids) const;

  std::string bytes_;
  std::vector<Piece> pieces_;  // by id
  int32_t largest_id_ = -1;    // of tokens that were not added
  int32_t vocab_size_;         // 1 + the largest id, of an added token too
  std::vector<Merge> merges_;  // by rank
  HashIndex piece_index_;      // empty where text is looked up no more
  HashIndex merge_index_;
  std::array<int32_t, 256> byte_ids_;  // -1 where there is no token for a byte
  std::vector<SplitPattern> patterns_;
  bool ignore_merges_;
  bool is_nfc_;
};

}  // namespace llava
