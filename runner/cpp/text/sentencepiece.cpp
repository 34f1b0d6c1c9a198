// Encodes and decodes text as SentencePiece's byte pair encoding does.
#include "text/sentencepiece.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <optional>
#include <queue>
#include <tuple>
#include <unordered_set>

#include "base/errors.h"
#include "package/model_card.h"
#include "text/utf8.h"

namespace llava {
namespace {

constexpr char kUnreadable[] = " is not a tokenizer that can be read (tokenizer.bin or tokenizer.json): ";
constexpr std::string_view kUnknownSign = " \u2047 ";  // how it shows the unknown token
constexpr size_t kPieceAtMost = 1 << 10;               // bytes

// Reads numbers and bytes from the front of a file. Throws PackageError at its end.
class Reader {
 public:
  Reader(std::string_view content, const std::string& path) : content_(content), path_(path) {}

  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }

  std::string_view take(size_t length) {
    if (content_.size() < length) {
      throw PackageError(path_ + kUnreadable + "it ends too early");
    }
    const std::string_view taken = content_.substr(0, length);
    content_.remove_prefix(length);
    return taken;
  }

  bool at_end() const { return content_.empty(); }

 private:
  std::string_view content_;
  const std::string& path_;
};

// Returns the byte that a piece like <0x0A> stands for; nullopt for other pieces.
std::optional<uint8_t> byte_of(std::string_view piece) {
  if (piece.size() != 6 || piece.substr(0, 3) != "<0x" || piece[5] != '>') {
    return std::nullopt;
  }
  int value = 0;
  for (char digit : piece.substr(3, 2)) {
    if (digit >= '0' && digit <= '9') {
      value = 16 * value + digit - '0';
    } else if (digit >= 'A' && digit <= 'F') {
      value = 16 * value + digit - 'A' + 10;
    } else {
      return std::nullopt;
    }
  }
  return uint8_t(value);
}

// Returns what is wrong with a piece; null if nothing is. SentencePiece refuses such pieces, too.
const char* mistake_in(std::string_view piece, float score) {
  if (piece.empty() || piece.size() > kPieceAtMost || piece.find('\0') != piece.npos) {
    return "a piece is empty, too long, or has a zero byte";
  }
  if (!std::isfinite(score)) {
    return "a score is not a number";
  }
  for (size_t at = 0, length; at < piece.size(); at += length) {
    length = character_length(piece.substr(at));
    if (length == kInvalid || length == kIncomplete) {
      return "a piece is not UTF-8";
    }
  }
  return nullptr;
}

// Returns a text as the pieces in a tokenizer.bin are spelled, with plain spaces. SentencePiece reads its own sign in a
// text as a space, too.
std::string spelled(std::string_view text) {
  std::string found;
  for (size_t at = 0; at < text.size();) {
    if (text.substr(at, kSpaceSign.size()) == kSpaceSign) {
      found += ' ';
      at += kSpaceSign.size();
    } else {
      found += text[at++];
    }
  }
  return found;
}

// A run of text that is a piece, or a character that may become part of one; neighbors are linked by index.
struct Symbol {
  std::string_view text;
  int previous;
  int next;
  bool frozen;  // a user-defined piece: never part of another
};

// Two neighbors that make a piece. If `size` is not the sum of their sizes any more, one of them has changed since.
struct Merge {
  float score;
  int left;
  int right;
  size_t size;

  bool operator<(const Merge& other) const {
    return score < other.score || (score == other.score && left > other.left);
  }
};

}  // namespace

SentencePieceTokenizer SentencePieceTokenizer::parse(std::string_view content, const std::string& path) {
  Reader reader(content, path);
  const auto fail = [&](const std::string& why) { throw PackageError(path + kUnreadable + why); };
  const auto vocab_size = reader.number<uint32_t>();
  const auto bos_id = reader.number<uint32_t>();
  const auto eos_id = reader.number<uint32_t>();
  reader.number<uint32_t>();  // bytes of the longest piece
  if (vocab_size > kVocabAtMost) {
    fail("it says that it has " + std::to_string(vocab_size) + " pieces");
  }
  SentencePieceTokenizer tokenizer;
  for (uint32_t i = 0; i < vocab_size; ++i) {
    const auto score = reader.number<float>();
    const auto length = reader.number<uint32_t>();
    tokenizer.pieces_.push_back({std::string(reader.take(length)), score, Kind::kNormal});
  }
  if (!reader.at_end()) {
    fail("it goes on after its " + std::to_string(vocab_size) + " pieces");
  }
  if (std::max(bos_id, eos_id) >= vocab_size) {
    fail("BOS or EOS is not among its " + std::to_string(vocab_size) + " pieces");
  }
  std::unordered_set<std::string_view> texts;
  for (const Piece& piece : tokenizer.pieces_) {
    if (const char* mistake = mistake_in(piece.text, piece.score)) {
      fail(mistake);
    }
    if (!texts.insert(piece.text).second) {
      fail("two pieces are the same");
    }
  }
  tokenizer.infer_kinds(bos_id, eos_id);
  if (tokenizer.unknown_id_ < 0) {
    fail("it has no <unk> piece");
  }
  const auto bytes =
      std::count_if(std::begin(tokenizer.byte_ids_), std::end(tokenizer.byte_ids_), [](int32_t id) { return id >= 0; });
  if (bytes != 0 && bytes != 256) {
    fail("it has pieces for some bytes, not for all");
  }
  return tokenizer;
}

// A tokenizer.bin does not say of which kind its pieces are. Their scores do: SentencePiece's trainer gives ordinary
// pieces -0.0, -1, -2, ... after the byte pieces, and added pieces +0.0. An added piece may be matched in text
// (user-defined) or not (control), which the scores do not say. Only <pad> is taken for a control piece.
void SentencePieceTokenizer::infer_kinds(uint32_t bos_id, uint32_t eos_id) {
  std::fill(std::begin(byte_ids_), std::end(byte_ids_), -1);
  std::optional<size_t> first_ordinary;  // its zero may have lost its sign in another tool
  for (size_t id = 0; id < pieces_.size(); ++id) {
    if (byte_of(pieces_[id].text)) {
      first_ordinary = id + 1;
    }
  }
  for (size_t id = 0; id < pieces_.size(); ++id) {
    Piece& piece = pieces_[id];
    const auto byte = byte_of(piece.text);
    if (piece.text == "<unk>" && unknown_id_ < 0) {
      piece.kind = Kind::kUnknown;
      unknown_id_ = int32_t(id);
    } else if (id == bos_id || id == eos_id || piece.text == "<pad>") {
      piece.kind = Kind::kControl;
    } else if (byte) {
      piece.kind = Kind::kByte;
      byte_ids_[*byte] = int32_t(id);
    } else {
      const bool added = piece.score == 0 && !std::signbit(piece.score) && id != first_ordinary;
      piece.kind = added ? Kind::kUserDefined : Kind::kNormal;
      id_of_.emplace(piece.text, int32_t(id));
      if (added && !piece.text.empty()) {
        user_defined_.push_back(piece.text);
      }
    }
  }
  std::sort(user_defined_.begin(), user_defined_.end());
}

std::vector<int32_t> SentencePieceTokenizer::encode(std::string_view text) const {
  check(text);
  return text.empty() ? std::vector<int32_t>() : merged(spelled(text).insert(0, 1, ' '), true);
}

std::vector<int32_t> SentencePieceTokenizer::encode_pieces(std::string_view text) const {
  return merged(spelled(text), false);
}

// Byte pair encoding (Sennrich et al., 2016): the neighbors that make the piece of the highest score become one, the
// leftmost first among equals, until no two make a piece.
std::vector<int32_t> SentencePieceTokenizer::merged(const std::string& spelled, bool with_user_defined) const {
  if (spelled.empty()) {
    return {};
  }
  std::vector<Symbol> symbols;
  for (std::string_view rest = spelled; !rest.empty();) {
    const size_t whole = with_user_defined ? user_defined_prefix(rest) : 0;
    const size_t length = whole ? whole : character_length(rest);
    const int index = int(symbols.size());
    symbols.push_back({rest.substr(0, length), index - 1, index + 1, whole > 0});
    rest.remove_prefix(length);
  }
  symbols.back().next = -1;

  std::priority_queue<Merge> merges;
  const auto consider = [&](int left, int right) {
    if (left < 0 || right < 0 || symbols[left].frozen || symbols[right].frozen) {
      return;
    }
    // Neighbors are next to each other in `spelled`.
    const std::string_view both(symbols[left].text.data(), symbols[left].text.size() + symbols[right].text.size());
    if (const auto id = id_of(both, with_user_defined)) {
      merges.push({pieces_[*id].score, left, right, both.size()});
    }
  };
  for (int i = 0; i + 1 < int(symbols.size()); ++i) {
    consider(i, i + 1);
  }
  while (!merges.empty()) {
    const Merge merge = merges.top();
    merges.pop();
    Symbol& left = symbols[merge.left];
    Symbol& right = symbols[merge.right];
    if (left.text.empty() || right.text.empty() || left.text.size() + right.text.size() != merge.size) {
      continue;  // one of them has become part of another piece since
    }
    left.text = std::string_view(left.text.data(), merge.size);
    left.next = right.next;
    if (right.next >= 0) {
      symbols[right.next].previous = merge.left;
    }
    right.text = {};
    consider(left.previous, merge.left);
    consider(merge.left, left.next);
  }

  std::vector<int32_t> ids;
  for (int i = 0; i >= 0; i = symbols[i].next) {
    append(symbols[i].text, with_user_defined, ids);
  }
  return ids;
}

// Narrows the pieces, which are sorted, byte by byte to those that begin as the text does. The shortest of them is
// first.
size_t SentencePieceTokenizer::user_defined_prefix(std::string_view text) const {
  size_t longest = 0;
  auto first = user_defined_.begin(), last = user_defined_.end();
  for (size_t length = 1; first != last && length <= text.size(); ++length) {
    const auto is_less = [&](std::string_view a, std::string_view b) {
      return a.substr(length - 1, 1) < b.substr(length - 1, 1);
    };
    std::tie(first, last) = std::equal_range(first, last, text.substr(0, length), is_less);
    if (first != last && first->size() == length) {
      longest = length;
    }
  }
  return longest;
}

std::optional<int32_t> SentencePieceTokenizer::id_of(std::string_view text, bool with_user_defined) const {
  const auto found = id_of_.find(text);
  if (found == id_of_.end() || (!with_user_defined && is_added(found->second))) {
    return std::nullopt;
  }
  return found->second;
}

// Appends a symbol's id. A symbol that is no piece is spelled in bytes, or unknown if a vocabulary has no byte pieces.
void SentencePieceTokenizer::append(std::string_view symbol, bool with_user_defined, std::vector<int32_t>& ids) const {
  if (const auto id = id_of(symbol, with_user_defined)) {
    ids.push_back(*id);
  } else if (byte_ids_[0] >= 0) {
    for (char byte : symbol == " " ? kSpaceSign : symbol) {
      ids.push_back(byte_ids_[uint8_t(byte)]);
    }
  } else if (ids.empty() || ids.back() != unknown_id_) {  // one for a run of unknown characters
    ids.push_back(unknown_id_);
  }
}

std::string SentencePieceTokenizer::decode_piece(int32_t id) const {
  if (!has(id)) {
    return "";
  }
  const Piece& piece = pieces_[id];
  switch (piece.kind) {
    case Kind::kControl:
      return "";
    case Kind::kUnknown:
      return std::string(kUnknownSign);
    case Kind::kByte:
      return std::string(1, char(*byte_of(piece.text)));
    default:
      return piece.text;
  }
}

}  // namespace llava
