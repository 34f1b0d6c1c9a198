// The functions of the C interface that say something about a session: its newest answer, and its model.
#include <cstdint>
#include <string>
#include <vector>

#include "engine/calls.h"
#include "engine/sessions.h"

namespace {

using namespace llava;

int32_t stop_reason(const Answer& answer) {
  if (!answer.stop_reason) {
    return LLAVA_NOT_STOPPED;
  }
  switch (*answer.stop_reason) {
    case StopReason::kEos:
      return LLAVA_STOP_EOS;
    case StopReason::kStop:
      return LLAVA_STOP_STRING;
    case StopReason::kLength:
      return LLAVA_STOP_LENGTH;
    case StopReason::kContext:
      return LLAVA_STOP_CONTEXT;
    case StopReason::kCancelled:
      return LLAVA_STOP_CANCELLED;
  }
  return LLAVA_NOT_STOPPED;
}

}  // namespace

extern "C" {

llava_status llava_last(llava_session session, llava_answer* answer) {
  return with(session, [&](Use& use) {
    const Answer& last = use.session().last();
    const auto stage = [](const Stage& stage) { return llava_stage{stage.ms, stage.count}; };
    const Timings& timings = last.timings;
    const llava_answer found{
        .struct_size = 0,
        .stop_reason = stop_reason(last),
        .num_tokens = int32_t(last.ids.size()),
        .load = stage(timings.load),
        .image = stage(timings.image),
        .prompt = stage(timings.prompt),
        .sample = stage(timings.sample),
        .eval = stage(timings.eval),
        .num_drafted = timings.drafted,
        .num_accepted = timings.accepted};
    describe(found, answer, "answer");
    return LLAVA_OK;
  });
}

llava_status llava_last_ids(llava_session session, int32_t* ids, size_t capacity, size_t* count) {
  return with(session, [&](Use& use) {
    copy_out<int32_t>(use.session().last().ids, ids, capacity, count, "ids");
    return LLAVA_OK;
  });
}

llava_status llava_last_logprobs(
    llava_session session, size_t token, llava_logprob* found, size_t capacity, size_t* count) {
  return with(session, [&](Use& use) {
    const Answer& last = use.session().last();
    if (token >= last.ids.size()) {
      throw Misuse("the answer has no token " + std::to_string(token));
    }
    std::vector<llava_logprob> entries;
    if (token < last.logprobs.size()) {
      const TokenLogprobs& kept = last.logprobs[token];
      entries.push_back({kept.chosen.id, kept.chosen.logprob});
      for (const Logprob& likely : kept.top) {
        entries.push_back({likely.id, likely.logprob});
      }
    }
    copy_out<llava_logprob>(entries, found, capacity, count, "found");
    return LLAVA_OK;
  });
}

llava_status llava_describe(llava_session session, llava_info* info) {
  return with(session, [&](Use& use) {
    const ModelCard& card = use.session().card();
    const llava_info found{
        .struct_size = 0,
        .position = use.session().position(),
        .context = card.max_context_len,
        .num_image_tokens = card.num_image_tokens,
        .image_size = card.image_size,
        .vocab_size = card.vocab_size};
    describe(found, info, "info");
    return LLAVA_OK;
  });
}

llava_status llava_model_card(llava_session session, const char** json) {
  return with(session, [&](Use& use) {
    require(json, "json");
    *json = use.session().card_text().c_str();
    return LLAVA_OK;
  });
}

llava_status llava_count_tokens(llava_session session, const char* text, size_t* count) {
  return with(session, [&](Use& use) {
    require(count, "count");
    *count = use.session().tokenizer().encode_turn({{{text_of(text, "text"), false}}}, 0).front().size();
    return LLAVA_OK;
  });
}

}  // extern "C"
