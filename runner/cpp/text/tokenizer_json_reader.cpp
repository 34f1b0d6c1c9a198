// See tokenizer_json_reader.h.
#include "text/tokenizer_json_reader.h"

#include <unordered_set>

#include "package/json.h"
#include "package/model_card.h"

namespace llava {
namespace {

constexpr size_t kMergesAtMost = 1 << 21;
constexpr size_t kKeptAtMost = 1 << 18;  // values beside tokens and merges; 256 added tokens are 2000
constexpr size_t kTextAtMost = 1 << 12;  // bytes of a token; Llama 3 has runs of 128 spaces

}  // namespace

bool TokenizerJsonReader::number_unsigned(number_unsigned_t value) {
  if (part_ != Part::kVocab) {
    return scalar(value);
  }
  if (value >= uint64_t(kVocabAtMost)) {
    fail_("a token has the id " + std::to_string(value));
  }
  found_.tokens.push_back({keep(key_), int32_t(value)});
  return true;
}

bool TokenizerJsonReader::string(string_t& value) {
  if (part_ == Part::kPair) {
    pair_.push_back(std::move(value));
    return true;
  }
  if (part_ != Part::kMerges) {
    return scalar(std::move(value));
  }
  if (value.starts_with("#version")) {
    return true;
  }
  const size_t space = value.find(' ');
  if (space == value.npos || value.find(' ', space + 1) != value.npos) {
    fail_("a merge is not two texts with a space between them");
  }
  take_merge(std::string_view(value).substr(0, space), std::string_view(value).substr(space + 1));
  return true;
}

bool TokenizerJsonReader::key(string_t& name) {
  static const std::unordered_set<std::string> kKnown = {
      "model", "normalizer", "pre_tokenizer", "decoder", "added_tokens"};
  key_ = std::move(name);
  if (part_ != Part::kRest) {
    return true;
  }
  next_ = Part::kRest;
  if (depth_ == 1 && !kKnown.contains(key_)) {
    next_ = Part::kSkipped;
    return true;
  }
  if (open_.back()->contains(key_)) {
    fail_("it has " + key_.substr(0, 40) + " twice");
  }
  if (depth_ == 1) {
    in_model_ = key_ == "model";
  }
  if (in_model_ && depth_ == 2 && (key_ == "vocab" || key_ == "merges")) {
    next_ = key_ == "vocab" ? Part::kVocab : Part::kMerges;
    add(true);
  }
  return true;
}

bool TokenizerJsonReader::begin(bool is_object) {
  if (++depth_ > kJsonDepth) {
    fail_("it nests too deeply");
  }
  const Part next = std::exchange(next_, Part::kRest);
  if (part_ == Part::kRest && next == Part::kSkipped) {
    part_ = Part::kSkipped;
    skipped_depth_ = depth_;
  } else if (part_ == Part::kRest && next == Part::kRest) {
    open_.push_back(add(is_object ? Json::object() : Json::array()));
  } else if (part_ == Part::kRest && is_object == (next == Part::kVocab)) {
    part_ = next;
  } else if (part_ == Part::kMerges && !is_object) {
    part_ = Part::kPair;
    pair_.clear();
  } else if (part_ != Part::kSkipped) {
    fail_("its vocab or its merges are of another kind");
  }
  return true;
}

bool TokenizerJsonReader::end() {
  if (part_ == Part::kRest) {
    open_.pop_back();
  } else if (part_ == Part::kPair) {
    if (pair_.size() != 2) {
      fail_("a merge is not two texts");
    }
    take_merge(pair_[0], pair_[1]);
    part_ = Part::kMerges;
  } else if (part_ != Part::kSkipped || depth_ == skipped_depth_) {
    part_ = Part::kRest;
  }
  --depth_;
  return true;
}

bool TokenizerJsonReader::parse_error(size_t position, const std::string&, const Json::exception&) {
  fail_("there is a mistake at byte " + std::to_string(position));
  return false;
}

bool TokenizerJsonReader::scalar(Json value) {
  const Part next = std::exchange(next_, Part::kRest);
  if (part_ == Part::kRest && next == Part::kRest) {
    add(std::move(value));
  } else if (part_ != Part::kSkipped && next != Part::kSkipped) {
    fail_("its vocab or its merges are of another kind");
  }
  return true;
}

// Puts a value where the parser is. Returns where it lies.
TokenizerJsonReader::Json* TokenizerJsonReader::add(Json value) {
  if (++kept_ > kKeptAtMost) {
    fail_("it has too many values");
  }
  if (open_.empty()) {
    rest = std::move(value);
    return &rest;
  }
  Json& around = *open_.back();
  if (around.is_object()) {
    return &(around[key_] = std::move(value));
  }
  around.push_back(std::move(value));
  return &around.back();
}

TokenizerJson::Place TokenizerJsonReader::keep(std::string_view text) {
  if (text.empty() || text.size() > kTextAtMost) {
    fail_("a token is empty, or longer than " + std::to_string(kTextAtMost) + " bytes");
  }
  const auto begin = uint32_t(found_.texts.size());
  found_.texts += text;
  return {begin, uint32_t(text.size())};
}

void TokenizerJsonReader::take_merge(std::string_view left, std::string_view right) {
  if (found_.merges.size() == kMergesAtMost) {
    fail_("it has more than " + std::to_string(kMergesAtMost) + " merges");
  }
  const TokenizerJson::Place first = keep(left);
  found_.merges.push_back({first, keep(right)});
}

}  // namespace llava
