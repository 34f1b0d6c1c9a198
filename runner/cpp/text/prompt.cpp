// Spells a turn by the model's prompt template.
#include "text/prompt.h"

#include "base/errors.h"

namespace llava {
namespace {

constexpr std::string_view kPlaceholder = "<image>";

void check_text(const std::string& text) {
  if (stripped(text).empty()) {
    throw PromptError("the prompt is empty");
  }
}

// Returns the chunks of a turn that is spelled already.
std::vector<std::string> around_image(const std::string& before, const std::string& after, bool has_image) {
  if (has_image) {
    return {before, after};
  }
  return {before + after};
}

}  // namespace

std::string stripped(const std::string& text) {
  const size_t first = text.find_first_not_of(kSpaces);
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(kSpaces) - first + 1);
}

std::vector<std::string> prompt_chunks(const std::string& prompt, const PromptTemplate& layout, bool has_image) {
  check_prompt(prompt, has_image);
  if (const size_t placeholder = prompt.find(kPlaceholder); placeholder != std::string::npos) {
    return {prompt.substr(0, placeholder), prompt.substr(placeholder + kPlaceholder.size())};
  }
  if (prompt.find(stripped(layout.assistant)) != std::string::npos) {
    return around_image(layout.system + layout.user, prompt, has_image);
  }
  return question_chunks(prompt, layout, has_image, true);
}

std::vector<std::string> question_chunks(
    const std::string& question, const PromptTemplate& layout, bool has_image, bool first_turn) {
  check_text(question);
  const std::string before = first_turn ? layout.system + layout.user : layout.user;
  const std::string after = (has_image ? layout.image_suffix : "") + stripped(question) + layout.assistant;
  return around_image(before, after, has_image);
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
