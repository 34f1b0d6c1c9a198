// Spells a turn by the model's prompt template.
#include "text/prompt.h"

#include "base/errors.h"
#include "text/utf8.h"

namespace llava {
namespace {

constexpr std::string_view kPlaceholder = "<image>";

void check_text(const std::string& text) {
  if (stripped(text).empty()) {
    throw PromptError("the prompt is empty");
  }
}

Chunk of_template(const std::string& text) {
  return {{text, true}};
}

}  // namespace

std::string stripped(const std::string& text) {
  const size_t first = text.find_first_not_of(kSpaces);
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(kSpaces) - first + 1);
}

std::vector<Chunk> prompt_chunks(const std::string& prompt, const PromptTemplate& layout, bool has_image) {
  check_prompt(prompt, has_image);
  if (const size_t placeholder = prompt.find(kPlaceholder); placeholder != std::string::npos) {
    return {of_template(prompt.substr(0, placeholder)), of_template(prompt.substr(placeholder + kPlaceholder.size()))};
  }
  if (prompt.find(stripped(layout.assistant)) != std::string::npos) {
    const std::string before = layout.system + layout.user;
    if (has_image) {
      return {of_template(before + layout.image_start), of_template(layout.image_end + prompt)};
    }
    return {of_template(before + prompt)};
  }
  return question_chunks(prompt, layout, has_image, true);
}

std::vector<Chunk> question_chunks(
    const std::string& question, const PromptTemplate& layout, bool has_image, bool first_turn) {
  check_text(question);
  const Span asked{layout.trims ? std::string(trimmed(question)) : question, false};
  const std::string before = (first_turn ? layout.system : layout.answer_end) + layout.user;
  const Span after{layout.assistant, true};
  if (!has_image) {
    return {{{before, true}, asked, after}};
  }
  if (layout.image_last) {
    const Span separator{layout.image_separator + layout.image_start, true};
    return {{{before, true}, asked, separator}, of_template(layout.image_end + layout.assistant)};
  }
  return {of_template(before + layout.image_start), {{layout.image_end + layout.image_separator, true}, asked, after}};
}

void check_prompt(const std::string& prompt, bool has_image) {
  check_text(prompt);
  const size_t placeholder = prompt.find(kPlaceholder);
  if (placeholder == std::string::npos) {
    return;
  }
  if (prompt.find(kPlaceholder, placeholder + kPlaceholder.size()) != std::string::npos) {
    throw PromptError("the prompt has <image> more than once; a turn takes one image");
  }
  if (!has_image) {
    throw PromptError("the prompt has <image> but no image is given");
  }
}

}  // namespace llava
