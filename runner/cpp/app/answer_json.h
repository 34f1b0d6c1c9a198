// An answer as one line of JSON, in the shape that llava_runner/answer_json.py writes, too.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "runtime/logprobs.h"
#include "runtime/timings.h"

namespace llava {

struct AnswerRecord {
  std::string text;
  std::vector<int32_t> ids;  // with the token that ended it
  std::string stop_reason;
  Timings timings;
  std::optional<std::vector<TokenLogprobs>> logprobs;  // nullopt: they were not asked for
};

// Returns one line of ASCII, with its end. Times are milliseconds, rounded to microseconds.
std::string answer_json(const AnswerRecord& answer);

}  // namespace llava
