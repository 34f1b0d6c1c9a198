// Checks what a tokenizer.json says: only what the runner does is taken.
#include "text/tokenizer_json.h"

#include <algorithm>

#include "base/errors.h"
#include "package/model_card.h"
#include "text/tokenizer_json_reader.h"

namespace llava {
namespace {

using Json = nlohmann::json;
using Options = std::vector<std::string_view>;

constexpr size_t kStepsAtMost = 16;  // that split a text

// By which GPT-2 splits text, and ByteLevel unless use_regex is false.
constexpr const char* kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// What Digits takes for a digit: Rust's is_numeric, which also knows the numbers of Unicode 17.
constexpr const char* kDigit = "[\\p{N}\U00011DE0-\U00011DE9\U00016FF4-\U00016FF6]";

// Returns a value of an object; null if it is missing, or the object is none.
const Json& field(const Json& object, const char* name) {
  static const Json kMissing;
  const auto found = object.is_object() ? object.find(name) : object.end();
  return found == object.end() ? kMissing : *found;
}

bool is(const Json& value, const char* text) {
  return value.is_string() && value.get_ref<const std::string&>() == text;
}

// Returns a value for a message.
std::string shown(const Json& value) {
  std::string text =
      value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() > 60 ? text.substr(0, 60) + "..." : text;
}

// The rules for what a file may say. Each throws for anything else.
class Rules {
 public:
  explicit Rules(const TokenizerJsonReader::Fail& fail) : fail_(fail) {}

  bool flag(const Json& object, const char* name, bool otherwise) const {
    const Json& value = field(object, name);
    if (value.is_null()) {
      return otherwise;
    }
    if (!value.is_boolean()) {
      refuse(name, value);
    }
    return value;
  }

  void check_model(const Json& model) const {
    check_options(
        model, {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
                "ignore_merges", "vocab", "merges"});
    if (!is(field(model, "type"), "BPE") && !field(model, "type").is_null()) {
      refuse("a model of the type", field(model, "type"));
    }
    for (const char* name : {"unk_token", "continuing_subword_prefix", "end_of_word_suffix", "dropout"}) {
      const Json& value = field(model, name);
      if (!value.is_null() && !is(value, "") && !(value.is_number() && value.get<double>() == 0)) {
        refuse(name, value);
      }
    }
    if (flag(model, "byte_fallback", false)) {
      refuse("byte_fallback", true);
    }
    if (!field(model, "vocab").is_boolean() || !field(model, "merges").is_boolean()) {
      fail_("its model has no vocab or no merges");
    }
  }

  // Returns whether text is normalized, which is to form C.
  bool normalizes(const Json& normalizer) const {
    bool found = false;
    for (const Json& step : steps(normalizer, "normalizers")) {
      if (!is(field(step, "type"), "NFC")) {
        refuse("a normalizer", field(step, "type"));
      }
      check_options(step, {});
      found = true;
    }
    return found;
  }

  std::vector<std::string> patterns(const Json& pre_tokenizer) const {
    std::vector<std::string> found;
    bool is_byte_level = false;
    const std::vector<Json> all = steps(pre_tokenizer, "pretokenizers");
    if (all.size() > kStepsAtMost) {
      fail_("its pre_tokenizer has more than " + std::to_string(kStepsAtMost) + " steps");
    }
    for (const Json& step : all) {
      const Json& type = field(step, "type");
      if (is_byte_level) {
        fail_("its pre_tokenizer goes on after ByteLevel");
      }
      if (is(type, "Split")) {
        found.push_back(split(step));
      } else if (is(type, "Digits")) {
        check_options(step, {"individual_digits"});
        found.push_back(flag(step, "individual_digits", false) ? kDigit : std::string(kDigit) + "+");
      } else if (is(type, "ByteLevel")) {
        is_byte_level = true;
        check_options(step, kByteLevelOptions);
        if (flag(step, "add_prefix_space", true)) {
          refuse("a ByteLevel with add_prefix_space", true);
        }
        if (flag(step, "use_regex", true)) {
          found.emplace_back(kGpt2);
        }
      } else {
        refuse("a pre_tokenizer", type);
      }
    }
    if (!is_byte_level) {
      fail_("its pre_tokenizer has no ByteLevel");
    }
    return found;
  }

  void check_decoder(const Json& decoder) const {
    const std::vector<Json> all = steps(decoder, "decoders");
    if (all.size() != 1 || !is(field(all[0], "type"), "ByteLevel")) {
      refuse("a decoder", all.size() == 1 ? field(all[0], "type") : decoder);
    }
    check_options(all[0], kByteLevelOptions);
  }

 private:
  inline static const Options kByteLevelOptions = {"add_prefix_space", "trim_offsets", "use_regex"};

  [[noreturn]] void refuse(const std::string& what, const Json& value) const {
    fail_("it has " + what + " " + shown(value) + ", which is not known");
    throw std::logic_error("a refusal returned");
  }

  // Refuses options that are not known: any of them could change tokens.
  void check_options(const Json& part, const Options& known) const {
    for (const auto& [name, value] : part.items()) {
      if (name != "type" && std::find(known.begin(), known.end(), name) == known.end()) {
        refuse("an option", name);
      }
    }
  }

  // Returns the steps of a part: those of a Sequence, none of null, otherwise itself.
  std::vector<Json> steps(const Json& part, const char* name) const {
    if (part.is_null()) {
      return {};
    }
    if (!is(field(part, "type"), "Sequence")) {
      return {part};
    }
    if (!field(part, name).is_array()) {
      refuse(name, field(part, name));
    }
    check_options(part, {name});
    return field(part, name);
  }

  std::string split(const Json& step) const {
    check_options(step, {"pattern", "behavior", "invert"});
    const Json& pattern = field(field(step, "pattern"), "Regex");
    if (!pattern.is_string()) {
      refuse("a Split by the pattern", field(step, "pattern"));
    }
    if (!is(field(step, "behavior"), "Isolated")) {
      refuse("a Split with the behavior", field(step, "behavior"));
    }
    if (flag(step, "invert", false)) {
      refuse("a Split with invert", true);
    }
    return pattern;
  }

  const TokenizerJsonReader::Fail& fail_;
};

}  // namespace

TokenizerJson TokenizerJson::parse(const std::string& content, const std::string& path) {
  const TokenizerJsonReader::Fail fail = [&](const std::string& why) {
    throw PackageError(path + " is not a tokenizer that can be read: " + why);
  };
  TokenizerJson found;
  TokenizerJsonReader reader(found, fail);
  Json::sax_parse(content, &reader);
  const Rules rules(fail);
  const Json& file = reader.rest;
  rules.check_model(field(file, "model"));
  found.ignore_merges = rules.flag(file["model"], "ignore_merges", false);
  found.is_nfc = rules.normalizes(field(file, "normalizer"));
  found.patterns = rules.patterns(field(file, "pre_tokenizer"));
  rules.check_decoder(field(file, "decoder"));
  std::vector<bool> has_token;  // by id
  const auto add = [&](int32_t id) {
    has_token.resize(std::max(has_token.size(), size_t(id) + 1));
    has_token[id] = true;
  };
  for (const Token& token : found.tokens) {
    add(token.id);
  }
  const Json& added = field(file, "added_tokens");
  for (const Json& token : added.is_array() ? added : Json::array()) {
    const Json& id = field(token, "id");
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= uint64_t(kVocabAtMost)) {
      fail("an added token has the id " + shown(id));
    }
    add(id.get<int32_t>());
    if (rules.flag(token, "special", false)) {
      found.special_ids.push_back(id);
    }
  }
  const auto hole = std::find(has_token.begin(), has_token.end(), false);
  if (hole != has_token.end()) {
    fail("it has no token with the id " + std::to_string(hole - has_token.begin()) + ", but some with larger ids");
  }
  found.vocab_size = int32_t(has_token.size());
  return found;
}

}  // namespace llava
