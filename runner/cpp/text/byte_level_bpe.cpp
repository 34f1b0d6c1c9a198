// Byte pair encoding (Sennrich et al., 2016) of bytes (Radford et al., 2019). See byte_level_bpe.h.
#include "text/byte_level_bpe.h"

#include <algorithm>
#include <functional>
#include <queue>
#include <random>
#include <stdexcept>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/errors.h"
#include "package/model_card.h"
#include "text/byte_characters.h"
#include "text/known_characters.h"
#include "text/nfc.h"
#include "text/tokenizer_json.h"

namespace llava {
namespace {

// Another one in each process: a file cannot be made to collide.
uint64_t seed() {
  static const uint64_t kSeed = (uint64_t(std::random_device()()) << 32) | std::random_device()();
  return kSeed;
}

uint64_t hash_of(std::string_view bytes) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed());
}

uint64_t hash_of(int32_t left, int32_t right) {
  const int32_t both[] = {left, right};
  return XXH3_64bits_withSeed(both, sizeof(both), seed());
}

}  // namespace

// The symbols of a word, linked by index, and the merges that are possible, the first rank and then the leftmost first.
struct ByteLevelBpe::Word {
  struct Symbol {
    int32_t id;  // -1 once it is a part of the one before it
    int32_t previous;
    int32_t next;
  };
  std::vector<Symbol> symbols;
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> merges;  // the rank, then the left symbol
};

ByteLevelBpe::ByteLevelBpe(std::string content, const std::string& path) {
  TokenizerJson file = TokenizerJson::parse(content, path);
  content = {};
  ignore_merges_ = file.ignore_merges;
  is_nfc_ = file.is_nfc;
  try {
    for (const std::string& pattern : file.patterns) {
      patterns_.emplace_back(pattern);
    }
    add_pieces(file);
    add_merges(file);
  } catch (const std::invalid_argument& error) {
    throw PackageError(path + " is not a tokenizer that can be read: " + error.what());
  }
  if (!ignore_merges_) {
    piece_index_ = {};
  }
}

void ByteLevelBpe::add_pieces(const TokenizerJson& file) {
  vocab_size_ = file.vocab_size;
  pieces_.resize(size_t(file.vocab_size));
  piece_index_ = HashIndex(file.tokens.size());
  byte_ids_.fill(-1);
  std::string bytes;
  for (const TokenizerJson::Token& token : file.tokens) {
    Piece& piece = pieces_[token.id];
    if (piece.length > 0) {
      throw std::invalid_argument("two tokens have the id " + std::to_string(token.id));
    }
    const bool is_bytes = spelled_bytes(file.text_at(token.text), bytes);
    if (find_piece(bytes, is_bytes) >= 0) {
      throw std::invalid_argument("the token " + std::to_string(token.id) + " is the same as another one");
    }
    largest_id_ = std::max(largest_id_, token.id);
    piece.begin = uint32_t(bytes_.size());
    piece.length = uint32_t(bytes.size());
    piece.is_bytes = is_bytes;
    bytes_ += bytes;
    piece_index_.add(hash_of(bytes), token.id);
    if (is_bytes && bytes.size() == 1) {
      byte_ids_[uint8_t(bytes.front())] = token.id;
    }
  }
  bytes_.shrink_to_fit();
  for (const int32_t id : file.special_ids) {
    pieces_[id].is_special = true;
  }
}

void ByteLevelBpe::know_added(const std::vector<AddedToken>& tokens) {
  vocab_size_ = largest_id_ + 1;
  for (const AddedToken& token : tokens) {
    vocab_size_ = std::max(vocab_size_, token.id + 1);
  }
  pieces_.resize(std::max(pieces_.size(), size_t(vocab_size_)));
  for (const AddedToken& token : tokens) {
    pieces_[token.id].is_special |= token.special;
  }
}

// Of merges of the same two, the last one counts.
void ByteLevelBpe::add_merges(const TokenizerJson& file) {
  merges_.resize(file.merges.size());
  merge_index_ = HashIndex(merges_.size());
  std::string bytes;
  const auto id_of = [&](std::string_view text) {
    const bool is_bytes = spelled_bytes(text, bytes);
    const int32_t id = find_piece(bytes, is_bytes);
    if (id < 0) {
      throw std::invalid_argument("a merge has \"" + std::string(text.substr(0, 40)) + "\", which is no token");
    }
    return id;
  };
  for (size_t rank = merges_.size(); rank-- > 0;) {
    const TokenizerJson::Merge& parts = file.merges[rank];
    const int32_t left = id_of(file.text_at(parts.left)), right = id_of(file.text_at(parts.right));
    const int32_t whole = id_of(file.text_at({parts.left.begin, parts.left.length + parts.right.length}));
    merges_[rank] = {left, right, whole};
    if (find_merge(left, right) < 0) {
      merge_index_.add(hash_of(left, right), int32_t(rank));
    }
  }
}

std::vector<int32_t> ByteLevelBpe::encode(std::string_view text) const {
  check(text);
  return encode_pieces(normalized(text));
}

std::string ByteLevelBpe::normalized(std::string_view text) const {
  return is_nfc_ ? nfc(text) : std::string(text);
}

std::vector<int32_t> ByteLevelBpe::encode_pieces(std::string_view text) const {
  MatchBudget budget(text.size());
  const std::string known = with_known_characters(text);
  std::vector<std::string_view> words{known};
  for (const SplitPattern& pattern : patterns_) {
    words = pattern.split(words, budget);
  }
  Word scratch;
  std::vector<int32_t> ids;
  for (const std::string_view word : words) {
    append_word(text.substr(size_t(word.data() - known.data()), word.size()), scratch, ids);
  }
  return ids;
}

std::string ByteLevelBpe::decode_piece(int32_t id) const {
  return has(id) ? std::string(bytes_of(pieces_[id])) : "";
}

std::string ByteLevelBpe::decode_added(const std::string& content) const {
  std::string bytes;
  spelled_bytes(content, bytes);
  return bytes;
}

int32_t ByteLevelBpe::find_piece(std::string_view bytes, bool is_bytes) const {
  return piece_index_.find(
      hash_of(bytes), [&](int32_t id) { return pieces_[id].is_bytes == is_bytes && bytes_of(pieces_[id]) == bytes; });
}

// Returns the rank of a merge; -1 if there is none.
int32_t ByteLevelBpe::find_merge(int32_t left, int32_t right) const {
  return merge_index_.find(
      hash_of(left, right), [&](int32_t rank) { return merges_[rank].left == left && merges_[rank].right == right; });
}

// Merges the neighbors of the first rank, the leftmost first among equals, until no two make a token.
void ByteLevelBpe::append_word(std::string_view bytes, Word& word, std::vector<int32_t>& ids) const {
  if (ignore_merges_) {
    const int32_t id = find_piece(bytes, true);
    if (id >= 0 && !pieces_[id].is_special) {
      ids.push_back(id);
      return;
    }
  }
  auto& symbols = word.symbols;
  symbols.clear();
  for (const char byte : bytes) {
    if (const int32_t id = byte_ids_[uint8_t(byte)]; id >= 0) {  // bytes without a token are left out
      const int index = int(symbols.size());
      symbols.push_back({id, index - 1, index + 1});
    }
  }
  if (symbols.empty()) {
    return;
  }
  symbols.back().next = -1;

  const auto consider = [&](int left, int right) {
    if (left >= 0 && right >= 0) {
      const int32_t rank = find_merge(symbols[left].id, symbols[right].id);
      if (rank >= 0 && !pieces_[merges_[rank].whole].is_special) {
        word.merges.push(uint64_t(rank) << 32 | uint32_t(left));
      }
    }
  };
  for (int i = 0; i + 1 < int(symbols.size()); ++i) {
    consider(i, i + 1);
  }
  while (!word.merges.empty()) {
    const uint64_t merge = word.merges.top();
    word.merges.pop();
    const int at = int(uint32_t(merge));
    Word::Symbol& left = symbols[at];
    if (left.id < 0 || left.next < 0) {
      continue;  // it has become a part of another one since
    }
    Word::Symbol& right = symbols[left.next];
    const int32_t whole = merges_[merge >> 32].whole;
    const int32_t rank = find_merge(left.id, right.id);
    if (rank < 0 || merges_[rank].whole != whole) {
      continue;  // one of the two has
    }
    left.id = whole;
    right.id = -1;
    left.next = right.next;
    if (right.next >= 0) {
      symbols[right.next].previous = at;
    }
    consider(left.previous, at);
    consider(at, left.next);
  }
  for (int i = 0; i >= 0; i = symbols[i].next) {
    ids.push_back(symbols[i].id);
  }
}

}  // namespace llava
