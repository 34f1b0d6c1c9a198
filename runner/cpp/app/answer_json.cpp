// Writes answers by nlohmann's library; see answer_json.h.
#include "app/answer_json.h"

#include <cmath>
#include <utility>

#include <nlohmann/json.hpp>

namespace llava {
namespace {

using Json = nlohmann::ordered_json;

double rounded(double ms) {
  return std::round(ms * 1000) / 1000;
}

Json timings_json(const Timings& timings) {
  Json found;
  found["load_ms"] = rounded(timings.load.ms);
  const auto add = [&](const std::string& name, const Stage& stage) {
    found[name + "_ms"] = rounded(stage.ms);
    found[name + "_tokens"] = stage.count;
  };
  add("image", timings.image);
  add("prompt", timings.prompt);
  add("sample", timings.sample);
  add("eval", timings.eval);
  found["total_ms"] = rounded(timings.total_ms());
  return found;
}

Json logprob_json(const Logprob& token) {
  return {{"id", token.id}, {"logprob", token.logprob}};
}

}  // namespace

std::string answer_json(const AnswerRecord& answer) {
  Json line = {
      {"text", answer.text},
      {"ids", answer.ids},
      {"stop_reason", answer.stop_reason},
      {"timings", timings_json(answer.timings)},
      {"draft", {{"drafted", answer.timings.drafted}, {"accepted", answer.timings.accepted}}},
  };
  if (answer.logprobs) {
    line["logprobs"] = Json::array();
    for (const TokenLogprobs& token : *answer.logprobs) {
      Json entry = logprob_json(token.chosen);
      entry["top"] = Json::array();
      for (const Logprob& likely : token.top) {
        entry["top"].push_back(logprob_json(likely));
      }
      line["logprobs"].push_back(std::move(entry));
    }
  }
  // Text of a tokenizer that is no UTF-8 is replaced, so that any line can be parsed.
  return line.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace) + "\n";
}

}  // namespace llava
