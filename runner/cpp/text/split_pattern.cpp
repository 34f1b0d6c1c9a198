// Matches by PCRE2. See split_pattern.h.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/split_pattern.h"

#include <pcre2.h>

#include <stdexcept>

#include "base/errors.h"
#include "text/utf8.h"

namespace llava {
namespace {

constexpr size_t kPatternAtMost = 1 << 12;  // bytes
constexpr uint32_t kGroupsInGroups = 32;
constexpr uint32_t kHeapAtMost = 32 << 10;  // KiB, for places to come back to
constexpr uint64_t kStepsForShort = 1 << 20, kStepsForByte = 256;

template <typename T, void (*Free)(T*)>
struct Freed {
  void operator()(T* value) const { Free(value); }
};
using Context = std::unique_ptr<pcre2_match_context, Freed<pcre2_match_context, pcre2_match_context_free>>;
using Match = std::unique_ptr<pcre2_match_data, Freed<pcre2_match_data, pcre2_match_data_free>>;
using CompileContext = std::unique_ptr<pcre2_compile_context, Freed<pcre2_compile_context, pcre2_compile_context_free>>;

// What a call of the matcher has used.
struct Progress {
  MatchBudget* budget;
  size_t position;
};

// Is called before each item of a pattern. An item passes over many characters at once, so these are counted, too.
int count_steps(pcre2_callout_block* block, void* data) {
  Progress& progress = *static_cast<Progress*>(data);
  const size_t now = block->current_position;
  const size_t passed = now > progress.position ? now - progress.position : 0;
  progress.position = now;
  return progress.budget->take(1 + passed) ? 0 : PCRE2_ERROR_MATCHLIMIT;
}

}  // namespace

MatchBudget::MatchBudget(size_t text_bytes) : left_(kStepsForShort + kStepsForByte * text_bytes) {}

bool MatchBudget::take(uint64_t steps) {
  const bool is_enough = steps <= left_;
  left_ -= is_enough ? steps : left_;
  return is_enough;
}

struct SplitPattern::Code {
  std::unique_ptr<pcre2_code, Freed<pcre2_code, pcre2_code_free>> code;
};

SplitPattern::SplitPattern(std::string_view pattern) {
  if (pattern.size() > kPatternAtMost) {
    throw std::invalid_argument("a pattern has " + std::to_string(pattern.size()) + " bytes");
  }
  check_syntax(pattern);
  const CompileContext context(pcre2_compile_context_create(nullptr));
  if (!context) {
    throw std::bad_alloc();
  }
  pcre2_set_parens_nest_limit(context.get(), kGroupsInGroups);
  int error = 0;
  size_t at = 0;
  auto code = std::make_shared<Code>();
  // Matches begin where they are looked for, so that the steps of each can be counted.
  code->code.reset(pcre2_compile(
      reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
      PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED | PCRE2_AUTO_CALLOUT, &error, &at, context.get()));
  if (!code->code) {
    PCRE2_UCHAR message[256] = {};
    pcre2_get_error_message(error, message, sizeof(message));
    throw std::invalid_argument(
        "a pattern of its pre_tokenizer is wrong: " + std::string(reinterpret_cast<const char*>(message)));
  }
  code_ = std::move(code);
}

std::vector<std::string_view> SplitPattern::split(
    const std::vector<std::string_view>& texts, MatchBudget& budget) const {
  const Context context(pcre2_match_context_create(nullptr));
  const Match match(pcre2_match_data_create(1, nullptr));
  if (!context || !match) {
    throw std::bad_alloc();
  }
  Progress progress{&budget, 0};
  pcre2_set_callout(context.get(), count_steps, &progress);
  pcre2_set_heap_limit(context.get(), kHeapAtMost);
  const size_t* const found = pcre2_get_ovector_pointer(match.get());
  std::vector<std::string_view> pieces;
  for (const std::string_view text : texts) {
    size_t done = 0;
    for (size_t at = 0; at < text.size();) {
      progress.position = at;
      const int outcome = pcre2_match(
          code_->code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at, PCRE2_NO_UTF_CHECK,
          match.get(), context.get());
      if (outcome < 0 && outcome != PCRE2_ERROR_NOMATCH) {
        throw PromptError("the prompt cannot be split into words: the tokenizer's pattern takes too long for it");
      }
      if (outcome < 0 || found[1] <= at) {  // what matches nothing is passed over
        at += character_length(text.substr(at));
        continue;
      }
      if (at > done) {
        pieces.push_back(text.substr(done, at - done));
      }
      pieces.push_back(text.substr(at, found[1] - at));
      done = at = found[1];
    }
    if (done < text.size()) {
      pieces.push_back(text.substr(done));
    }
  }
  return pieces;
}

}  // namespace llava
