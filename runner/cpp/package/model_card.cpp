// Reads a model card from its JSON, and checks every value that the runner computes with.
#include "package/model_card.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "base/errors.h"
#include "image/read_image.h"
#include "package/json.h"

namespace llava {
namespace {

constexpr int kSchema = 3;
constexpr int kSidesAtMost = 1 << 16;    // of a matrix
constexpr int kContextAtMost = 1 << 24;  // positions
constexpr int kEosIdsAtMost = 64;
constexpr size_t kAddedTokensAtMost = 1 << 14;
constexpr double kStdAtMost = 10;  // fractions of 1

// The words are those of llava_runner/contract.py.
[[noreturn]] void refuse(const std::string& name, const std::string& rule) {
  throw PackageError("the model card: " + name + " must be " + rule);
}

const nlohmann::json& field(const nlohmann::json& object, const char* name) {
  static const nlohmann::json kMissing;
  const auto found = object.find(name);
  return found == object.end() ? kMissing : *found;
}

bool is_within(const nlohmann::json& value, int least, int most) {
  if (value.is_number_unsigned()) {
    return value.get<uint64_t>() >= uint64_t(std::max(least, 0)) && value.get<uint64_t>() <= uint64_t(most);
  }
  return value.is_number_integer() && value.get<int64_t>() >= least && value.get<int64_t>() <= most;
}

int whole(const nlohmann::json& card, const char* name, int least, int most) {
  const nlohmann::json& value = field(card, name);
  if (!is_within(value, least, most)) {
    refuse(name, "a whole number from " + std::to_string(least) + " to " + std::to_string(most));
  }
  return value;
}

std::vector<int32_t> ids(const nlohmann::json& card, const char* name, int vocab_size) {
  const nlohmann::json& list = field(card, name);
  bool fits = list.is_array() && !list.empty() && list.size() <= kEosIdsAtMost;
  for (size_t i = 0; fits && i < list.size(); ++i) {
    fits = is_within(list[i], 0, vocab_size - 1);
  }
  if (!fits) {
    refuse(
        name, "a list of 1 to " + std::to_string(kEosIdsAtMost) + " whole numbers from 0 to " +
                  std::to_string(vocab_size - 1));
  }
  return list;
}

template <typename Rule>
bool are_three(const nlohmann::json& list, const Rule& holds) {
  return list.is_array() && list.size() == 3 && std::all_of(list.begin(), list.end(), [&](const nlohmann::json& item) {
           return item.is_number() && holds(item.get<double>());
         });
}

std::array<double, 3> mean(const nlohmann::json& card) {
  const nlohmann::json& list = field(card, "image_mean");
  if (!are_three(list, [](double value) { return value >= 0 && value <= 1; })) {
    refuse("image_mean", "three numbers from 0 to 1");
  }
  return list;
}

// The program applies it; the card of a model has it nevertheless.
void check_std(const nlohmann::json& card) {
  if (!are_three(field(card, "image_std"), [](double value) { return value > 0 && value <= kStdAtMost; })) {
    refuse("image_std", "three numbers above 0, at most 10.0");
  }
}

std::string choice(const nlohmann::json& card, const char* name, const std::vector<std::string>& choices) {
  const nlohmann::json& value = field(card, name);
  if (!value.is_string() || std::find(choices.begin(), choices.end(), value) == choices.end()) {
    std::string all;
    for (const std::string& each : choices) {
      all += (all.empty() ? "" : ", ") + each;
    }
    refuse(name, "one of " + all);
  }
  return value;
}

std::string text(const nlohmann::json& object, const char* name, const char* rule) {
  const nlohmann::json& value = field(object, name);
  if (!value.is_string()) {
    refuse(rule, "a text");
  }
  return value;
}

bool flag(const nlohmann::json& object, const char* name) {
  const nlohmann::json& value = field(object, name);
  if (!value.is_boolean()) {
    refuse(name, "true or false");
  }
  return value;
}

const nlohmann::json& section(const nlohmann::json& card, const char* name) {
  const nlohmann::json& value = field(card, name);
  if (!value.is_object()) {
    refuse(name, "an object");
  }
  return value;
}

PromptTemplate prompt_template(const nlohmann::json& prompt) {
  return {
      .system = text(prompt, "system", "prompt.system"),
      .user = text(prompt, "user", "prompt.user"),
      .assistant = text(prompt, "assistant", "prompt.assistant"),
      .image_separator = text(prompt, "image_separator", "prompt.image_separator"),
      .image_start = text(prompt, "image_start", "prompt.image_start"),
      .image_end = text(prompt, "image_end", "prompt.image_end"),
      .answer_end = text(prompt, "answer_end", "prompt.answer_end"),
      .image_last = flag(prompt, "image_last"),
      .trims = flag(prompt, "trims"),
  };
}

TokenizerRules tokenizer_rules(const nlohmann::json& rules, int tokenizer_vocab_size) {
  static const std::unordered_map<std::string, PrependScheme> kSchemes = {
      {"first", PrependScheme::kFirst},
      {"always", PrependScheme::kAlways},
      {"never", PrependScheme::kNever},
      {"prepend", PrependScheme::kPrepend},
  };
  const auto scheme = kSchemes.find(text(rules, "prepend_scheme", "prepend_scheme"));
  if (scheme == kSchemes.end()) {
    refuse("prepend_scheme", "first, always, never, prepend");
  }
  const nlohmann::json& listed = field(rules, "added_tokens");
  const auto refuse_tokens = [] {
    refuse("added_tokens", "at most " + std::to_string(kAddedTokensAtMost) + " tokens with different contents");
  };
  if (!listed.is_array() || listed.size() > kAddedTokensAtMost) {
    refuse_tokens();
  }
  std::vector<AddedToken> tokens;
  std::unordered_set<std::string> contents;
  for (const nlohmann::json& token : listed) {
    if (!token.is_object()) {
      refuse_tokens();
    }
    const std::string content = text(token, "content", "content of an added token");
    if (content.empty() || !contents.insert(content).second) {
      refuse_tokens();
    }
    if (!is_within(field(token, "id"), 0, tokenizer_vocab_size - 1)) {
      refuse("id of an added token", "a whole number from 0 to " + std::to_string(tokenizer_vocab_size - 1));
    }
    tokens.push_back({
        .id = field(token, "id"),
        .content = content,
        .special = flag(token, "special"),
        .lstrip = flag(token, "lstrip"),
        .rstrip = flag(token, "rstrip"),
        .normalized = flag(token, "normalized"),
    });
  }
  return {
      .prepend_scheme = scheme->second,
      .image_begins_text = flag(rules, "image_begins_text"),
      .adds_bos = flag(rules, "adds_bos"),
      .added_tokens = std::move(tokens),
  };
}

}  // namespace

ModelCard ModelCard::from_json(const std::string& text) {
  const nlohmann::json card = parse_json(text, "the model card");
  const nlohmann::json schema = card.is_object() ? field(card, "schema") : nlohmann::json();
  if (!is_within(schema, kSchema, kSchema)) {
    const std::string found = schema.is_number() ? schema.dump() : "None";
    throw PackageError(
        "the model card has schema " + found + "; this version reads schema " + std::to_string(kSchema) +
        ". Export the model again.");
  }
  const int vocab_size = whole(card, "vocab_size", 1, kVocabAtMost);
  const int max_context_len = whole(card, "max_context_len", 1, kContextAtMost);
  const int max_seq_len = whole(card, "max_seq_len", 1, max_context_len);
  const bool keeps_several = card.contains("logits_to_keep");  // programs of earlier versions keep one
  const int tokenizer_vocab_size = whole(card, "tokenizer_vocab_size", 1, vocab_size);
  const int image_size = whole(card, "image_size", kMinImageSide, kImageSideAtMost);
  check_std(card);
  return {
      .image_size = image_size,
      .num_image_tokens = whole(card, "num_image_tokens", 0, kSidesAtMost),
      .image_mean = mean(card),
      .image_aspect_ratio = choice(card, "image_aspect_ratio", kImageAspectRatios),
      .image_resize = whole(card, "image_resize", image_size, kImageSideAtMost),
      .image_resample = choice(card, "image_resample", kResamples),
      .prompt = prompt_template(section(card, "prompt")),
      .tokenizer = tokenizer_rules(section(card, "tokenizer"), tokenizer_vocab_size),
      .hidden_size = whole(card, "hidden_size", 1, kSidesAtMost),
      .vocab_size = vocab_size,
      .tokenizer_vocab_size = tokenizer_vocab_size,
      .bos_id = whole(card, "bos_id", 0, vocab_size - 1),
      .eos_ids = ids(card, "eos_ids", vocab_size),
      .max_seq_len = max_seq_len,
      .max_context_len = max_context_len,
      .logits_to_keep = keeps_several ? whole(card, "logits_to_keep", 1, std::min(kMaxLogitsToKeep, max_seq_len)) : 1,
  };
}

}  // namespace llava
