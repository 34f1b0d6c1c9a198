// Knows the syntax that means the same to Oniguruma (that of Ruby) and to PCRE2, as far as tokenizers use it. Anything
// else is refused: it may mean something else.
#include <stdexcept>
#include <unordered_set>

#include "text/split_pattern.h"

namespace llava {
namespace {

[[noreturn]] void refuse(std::string_view what) {
  throw std::invalid_argument(std::string("a pattern of its pre_tokenizer has ").append(what) + ", which is not known");
}

bool is_punctuation(char c) {
  return c > ' ' && c < '\x7f' && !(c >= '0' && c <= '9') && !(c >= 'a' && c <= 'z') && !(c >= 'A' && c <= 'Z');
}

// A pattern that is read from left to right.
class Checker {
 public:
  explicit Checker(std::string_view pattern) : rest_(pattern) {}

  void check() {
    while (!rest_.empty()) {
      switch (rest_.front()) {
        case '\\':
          escape();
          break;
        case '[':
          set();
          break;
        case '(':
          group();
          break;
        case '{':
          count();
          break;
        case '.':
        case '^':
        case '$':
          refuse(rest_.substr(0, 1));
        default:
          rest_.remove_prefix(1);
      }
    }
  }

 private:
  void escape() {
    const char kind = rest_.size() > 1 ? rest_[1] : '\0';
    if (kind == 'p' || kind == 'P') {
      category();
    } else if (std::string_view("sSrnt").find(kind) != std::string_view::npos || is_punctuation(kind)) {
      rest_.remove_prefix(2);
    } else {
      refuse(rest_.substr(0, 2));
    }
  }

  // Reads a general category of Unicode, like \p{L} or \p{Lu}.
  void category() {
    static const std::unordered_set<std::string_view> kKnown = {
        "L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "N",  "Nd", "Nl", "No", "P", "Pc",
        "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S", "Sm", "Sc", "Sk", "So", "Z",  "Zs", "Zl", "Zp"};
    const size_t end = rest_.find('}');
    if (end == rest_.npos || rest_[2] != '{' || !kKnown.contains(rest_.substr(3, end - 3))) {
      refuse(rest_.substr(0, end == rest_.npos ? 2 : end + 1));
    }
    rest_.remove_prefix(end + 1);
  }

  void set() {
    rest_.remove_prefix(rest_.substr(0, 2) == "[^" ? 2 : 1);
    for (bool is_first = true;; is_first = false) {
      if (rest_.empty()) {
        throw std::invalid_argument("a pattern of its pre_tokenizer ends within [");
      }
      const char c = rest_.front();
      if (c == '[' || rest_.substr(0, 2) == "&&" || (c == ']' && is_first)) {
        refuse(rest_.substr(0, c == '&' ? 2 : 1));
      }
      if (c == '\\') {
        escape();
        continue;
      }
      rest_.remove_prefix(1);
      if (c == ']') {
        return;
      }
    }
  }

  void group() {
    for (const std::string_view start : {"(?:", "(?i:", "(?!", "(?="}) {
      if (rest_.starts_with(start)) {
        rest_.remove_prefix(start.size());
        return;
      }
    }
    if (rest_.starts_with("(?") || rest_.starts_with("(*")) {
      refuse(rest_.substr(0, 3));
    }
    rest_.remove_prefix(1);
  }

  // Reads {2}, {2,} or {2,3}. A + or ? behind it means different things.
  void count() {
    const size_t end = rest_.find('}');
    const std::string_view inside = rest_.substr(1, end == rest_.npos ? end : end - 1);
    const bool is_count = end != rest_.npos && !inside.empty() && inside.front() != ',' &&
                          inside.find_first_not_of("0123456789,") == inside.npos &&
                          inside.find(',') == inside.rfind(',');
    if (!is_count) {
      refuse("{");
    }
    const std::string_view closed = rest_.substr(end, 2);
    if (closed == "}+" || closed == "}?") {
      refuse(closed);
    }
    rest_.remove_prefix(end + 1);
  }

  std::string_view rest_;
};

}  // namespace

void check_syntax(std::string_view pattern) {
  Checker(pattern).check();
}

}  // namespace llava
