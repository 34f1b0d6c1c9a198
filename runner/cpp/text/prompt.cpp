// Spells a turn by the model's prompt template.
#include "text/prompt.h"

#include "base/errors.h"

namespace llava {
namespace {

constexpr std::string_view kPlaceholder = "<image>";
constexpr std::string_view kSpaces = " \t\n\r\f\v";

std::string stripped(const std::string& text) {
  const size_t first = text.find_first_not_of(kSpaces);
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(kSpaces) - first + 1);
}

}  // namespace

std::vector<std::string> prompt_chunks(
    const std::string& prompt, const PromptTemplate& layout, bool has_image, bool first_turn) {
  if (stripped(prompt).empty()) {
    throw PromptError("the prompt is empty");
  }
  const size_t placeholder = prompt.find(kPlaceholder);
  if (placeholder != std::string::npos) {
    const std::string after = prompt.substr(placeholder + kPlaceholder.size());
    if (after.find(kPlaceholder) != std::string::npos) {
      throw PromptError("the prompt has <image> more than once; a turn takes one image");
    }
    if (!has_image) {
      throw PromptError("the prompt has <image> but no image is given");
    }
    return {prompt.substr(0, placeholder), after};
  }
  const std::string before = first_turn ? layout.system + layout.user : layout.user;
  std::string after = prompt;
  if (prompt.find(stripped(layout.assistant)) == std::string::npos) {
    after = (has_image ? layout.image_suffix : "") + stripped(prompt) + layout.assistant;
  }
  if (has_image) {
    return {before, after};
  }
  return {before + after};
}

}  // namespace llava
