// Splits text by a regular expression of a tokenizer.json, as the library tokenizers does by Oniguruma.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace llava {

// Throws std::invalid_argument for a pattern with what is not known to mean the same to PCRE2; it says what that is.
void check_syntax(std::string_view pattern);

// What matching may take altogether; a pattern may be made to take forever. It is counted in steps of the matcher.
class MatchBudget {
 public:
  explicit MatchBudget(size_t text_bytes);
  bool take(uint64_t steps);

 private:
  uint64_t left_;
};

class SplitPattern {
 public:
  // Throws std::invalid_argument for a pattern that is not known, or not one.
  explicit SplitPattern(std::string_view pattern);

  // Splits each text of a list into the matches in it and the text between them, in order. Throws PromptError where
  // this takes more than the budget.
  std::vector<std::string_view> split(const std::vector<std::string_view>& texts, MatchBudget& budget) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;
};

}  // namespace llava
