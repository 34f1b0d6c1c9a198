// Reads a model card from its JSON, and checks every value that the runner computes with.
#include "package/model_card.h"

#include <algorithm>

#include "base/errors.h"
#include "image/read_image.h"
#include "package/json.h"

namespace llava {
namespace {

constexpr int kSchema = 2;
constexpr int kSidesAtMost = 1 << 16;    // of a matrix
constexpr int kContextAtMost = 1 << 24;  // positions
constexpr int kEosIdsAtMost = 64;

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

std::array<double, 3> fractions(const nlohmann::json& card, const char* name) {
  const nlohmann::json& list = field(card, name);
  bool fits = list.is_array() && list.size() == 3;
  for (size_t i = 0; fits && i < 3; ++i) {
    fits = list[i].is_number() && list[i].get<double>() >= 0 && list[i].get<double>() <= 1;
  }
  if (!fits) {
    refuse(name, "three numbers from 0 to 1");
  }
  return list;
}

std::string aspect_ratio(const nlohmann::json& card, const char* name) {
  const nlohmann::json& value = field(card, name);
  if (value != "pad" && value != "crop") {
    refuse(name, "pad or crop");
  }
  return value;
}

PromptTemplate prompt_template(const nlohmann::json& card) {
  const nlohmann::json& prompt = field(card, "prompt");
  for (const char* name : {"system", "user", "assistant", "image_suffix"}) {
    if (!prompt.is_object() || !field(prompt, name).is_string()) {
      refuse("prompt", "the texts system, user, assistant and image_suffix");
    }
  }
  return {prompt["system"], prompt["user"], prompt["assistant"], prompt["image_suffix"]};
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
  fractions(card, "image_std");  // the program applies it; the card of a model has it nevertheless
  return {
      .image_size = whole(card, "image_size", kMinImageSide, kImageSideAtMost),
      .num_image_tokens = whole(card, "num_image_tokens", 1, kSidesAtMost),
      .image_mean = fractions(card, "image_mean"),
      .image_aspect_ratio = aspect_ratio(card, "image_aspect_ratio"),
      .prompt = prompt_template(card),
      .hidden_size = whole(card, "hidden_size", 1, kSidesAtMost),
      .vocab_size = vocab_size,
      .tokenizer_vocab_size = whole(card, "tokenizer_vocab_size", 1, vocab_size),
      .bos_id = whole(card, "bos_id", 0, vocab_size - 1),
      .eos_ids = ids(card, "eos_ids", vocab_size),
      .max_seq_len = whole(card, "max_seq_len", 1, max_context_len),
      .max_context_len = max_context_len,
  };
}

}  // namespace llava
