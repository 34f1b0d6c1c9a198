// Reads a model card from its JSON.
#include "package/model_card.h"

#include <nlohmann/json.hpp>

#include "base/errors.h"

namespace llava {
namespace {

constexpr int kSchema = 2;

}  // namespace

ModelCard ModelCard::from_json(const std::string& text) {
  try {
    const nlohmann::json card = nlohmann::json::parse(text);
    if (card.at("schema") != kSchema) {
      throw PackageError(
          "the model card has schema " + card.at("schema").dump() + "; this version reads schema " +
          std::to_string(kSchema) + ". Export the model again.");
    }
    const nlohmann::json& prompt = card.at("prompt");
    ModelCard result{
        .image_size = card.at("image_size"),
        .num_image_tokens = card.at("num_image_tokens"),
        .image_mean = card.at("image_mean"),
        .image_aspect_ratio = card.at("image_aspect_ratio"),
        .prompt = {prompt.at("system"), prompt.at("user"), prompt.at("assistant"), prompt.at("image_suffix")},
        .hidden_size = card.at("hidden_size"),
        .vocab_size = card.at("vocab_size"),
        .tokenizer_vocab_size = card.at("tokenizer_vocab_size"),
        .bos_id = card.at("bos_id"),
        .eos_ids = card.at("eos_ids"),
        .max_seq_len = card.at("max_seq_len"),
        .max_context_len = card.at("max_context_len"),
    };
    if (result.eos_ids.empty() || result.max_seq_len < 1 || result.image_size < 1 || result.hidden_size < 1) {
      throw PackageError("the model card has sizes that no model has");
    }
    return result;
  } catch (const nlohmann::json::exception& error) {
    throw PackageError(std::string("the model card cannot be read: ") + error.what());
  }
}

}  // namespace llava
