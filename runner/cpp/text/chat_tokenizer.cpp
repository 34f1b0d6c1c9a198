// Finds added tokens in a turn's text, and encodes what is between them; see chat_tokenizer.h.
#include "text/chat_tokenizer.h"

#include <algorithm>

#include "text/utf8.h"

namespace llava {
namespace {

// Returns whether a byte of a text is inside a character.
bool continues(std::string_view text, size_t at) {
  return at < text.size() && (uint8_t(text[at]) & 0xC0) == 0x80;
}

// Return how many bytes two texts have in common at their beginning, or at their end; whole characters.
size_t common_prefix(std::string_view a, std::string_view b) {
  const size_t size = std::min(a.size(), b.size());
  size_t length = size_t(std::mismatch(a.begin(), a.begin() + size, b.begin()).first - a.begin());
  while (length > 0 && (continues(a, length) || continues(b, length))) {
    --length;
  }
  return length;
}

size_t common_suffix(std::string_view a, std::string_view b) {
  const size_t size = std::min(a.size(), b.size());
  size_t length = size_t(std::mismatch(a.rbegin(), a.rbegin() + size, b.rbegin()).first - a.rbegin());
  while (length > 0 && continues(a, a.size() - length)) {
    --length;
  }
  return length;
}

}  // namespace

ChatTokenizer::ChatTokenizer(std::unique_ptr<Tokenizer> pieces, TokenizerRules rules, int32_t bos_id)
    : rules_(std::move(rules)), bos_id_(bos_id) {
  pieces->know_added(rules_.added_tokens);
  pieces_ = std::move(pieces);
  for (const AddedToken& token : rules_.added_tokens) {
    added_[token.id] = &token;
    // The scheme kPrepend is a normalization: normalized tokens have its space, too.
    const bool has_space = token.normalized && rules_.prepend_scheme == PrependScheme::kPrepend;
    const std::string content =
        std::string(has_space, ' ') + (token.normalized ? pieces_->normalized(token.content) : token.content);
    (token.normalized ? normalized_ : exact_)[content.front()].push_back({content, &token});
  }
  for (Finder* finder : {&exact_, &normalized_}) {
    for (auto& [byte, wanted] : *finder) {
      std::stable_sort(wanted.begin(), wanted.end(), [](const Wanted& a, const Wanted& b) {
        return a.content.size() > b.content.size();
      });
    }
  }
}

std::vector<std::vector<int32_t>> ChatTokenizer::encode_turn(
    const std::vector<Chunk>& chunks, std::optional<int32_t> before) const {
  std::vector<std::vector<int32_t>> ids;
  for (const Chunk& chunk : chunks) {
    if (!ids.empty()) {
      ids.push_back(encode(chunk, rules_.image_begins_text, true));
      continue;
    }
    ids.push_back(encode(chunk, !before, !before || added_.contains(*before)));
    if (!before && rules_.adds_bos && (ids.front().empty() || ids.front().front() != bos_id_)) {
      ids.front().insert(ids.front().begin(), bos_id_);
    }
  }
  return ids;
}

std::vector<int32_t> ChatTokenizer::encode_answer(const std::string& text) const {
  return encode(text.empty() ? Chunk() : Chunk{{text, false}}, true, true);
}

std::string ChatTokenizer::decode_piece(int32_t id) const {
  const auto found = added_.find(id);
  if (found == added_.end()) {
    return pieces_->is_added(id) ? "" : pieces_->decode_piece(id);
  }
  if (is_unknown(id)) {
    return pieces_->decode_piece(id);
  }
  return found->second->special ? "" : pieces_->decode_added(found->second->content);
}

// Returns a segment as the tokenizer normalizes it. A character that is made of both the template's and a user's is a
// user's.
ChatTokenizer::Marked ChatTokenizer::normalized(const Marked& segment) const {
  const auto run_at = [&](size_t at) {
    return std::min(segment.marks.find(!segment.marks[at], at), segment.text.size()) - at;
  };
  Marked all;
  for (size_t at = 0, length; at < segment.text.size(); at += length) {
    length = run_at(at);
    const std::string run = pieces_->normalized(std::string_view(segment.text).substr(at, length));
    // What is normalized stays so, but for characters where two runs meet.
    std::string joined = all.text.empty() ? run : pieces_->normalized(all.text + run);
    const size_t before = common_prefix(all.text, joined);
    const size_t behind = common_suffix(run, std::string_view(joined).substr(before));
    all.marks.resize(before);
    all.marks.append(joined.size() - before - behind, char(false));
    all.marks.append(behind, segment.marks[at]);
    all.text = std::move(joined);
  }
  return all;
}

// Returns the longest token at a place in a text, or null. Special ones are found in templates only.
const ChatTokenizer::Wanted* ChatTokenizer::find_at(const Finder& finder, const Marked& marked, size_t at) const {
  const auto candidates = finder.find(marked.text[at]);
  if (candidates == finder.end()) {
    return nullptr;
  }
  const std::string_view rest = std::string_view(marked.text).substr(at);
  for (const Wanted& wanted : candidates->second) {
    const std::string_view marks = std::string_view(marked.marks).substr(at, wanted.content.size());
    if (rest.starts_with(wanted.content) && (!wanted.token->special || marks.find('\0') == marks.npos)) {
      return &wanted;
    }
  }
  return nullptr;
}

// Calls `on_token` with the tokens in a text and `on_text` with the text between them, in order.
template <typename OnText, typename OnToken>
void ChatTokenizer::split(const Finder& finder, const Marked& marked, OnText on_text, OnToken on_token) const {
  const std::string_view text = marked.text;
  size_t done = 0;
  const auto take_text = [&](size_t end) {
    if (end > done) {
      on_text(Marked{marked.text.substr(done, end - done), marked.marks.substr(done, end - done)});
    }
  };
  for (size_t at = 0; at < text.size();) {
    const Wanted* found = find_at(finder, marked, at);
    if (!found) {
      ++at;
      continue;
    }
    size_t end = at + found->content.size();
    if (found->token->rstrip) {
      end += spaces_at_start(text.substr(end));
    }
    take_text(found->token->lstrip ? at - spaces_at_end(text.substr(done, at - done)) : at);
    on_token(*found->token);
    done = at = end;
  }
  take_text(text.size());
}

// Returns the ids of a chunk. What it begins decides about a space before its first word.
std::vector<int32_t> ChatTokenizer::encode(const Chunk& chunk, bool begins_text, bool begins_segment) const {
  Marked marked;
  for (const Span& span : chunk) {
    marked.text += span.text;
    marked.marks.append(span.text.size(), char(span.is_template));
  }
  Tokenizer::check(marked.text);
  std::vector<int32_t> ids;
  const PrependScheme scheme = rules_.prepend_scheme;
  const auto take_token = [&](const AddedToken& token) {
    ids.push_back(token.id);
    begins_text = false;
    begins_segment = true;
  };
  const auto take_part = [&](Marked part) {
    const bool gets_space =
        (scheme == PrependScheme::kAlways && begins_segment) || (scheme == PrependScheme::kFirst && begins_text);
    if (gets_space && !part.text.starts_with(" ") && !part.text.starts_with(kSpaceSign)) {
      part.text.insert(0, 1, ' ');
    }
    const std::vector<int32_t> found = pieces_->encode_pieces(part.text);
    ids.insert(ids.end(), found.begin(), found.end());
  };
  const auto take_segment = [&](const Marked& exact) {
    Marked segment = normalized(exact);
    if (scheme == PrependScheme::kPrepend && begins_segment) {
      segment.text.insert(0, 1, ' ');
      segment.marks.insert(0, 1, char(true));
    }
    split(normalized_, segment, take_part, take_token);
  };
  split(exact_, marked, take_segment, take_token);
  return ids;
}

}  // namespace llava
