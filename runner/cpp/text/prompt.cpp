// Spells a turn by the model's prompt template.
#include "text/prompt.h"

#include <utility>

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

// Returns the text around each <image> of a prompt.
std::vector<Chunk> split_at_images(std::string_view prompt) {
  std::vector<Chunk> chunks;
  for (size_t at; (at = prompt.find(kPlaceholder)) != prompt.npos; prompt.remove_prefix(at + kPlaceholder.size())) {
    chunks.push_back(of_template(std::string(prompt.substr(0, at))));
  }
  chunks.push_back(of_template(std::string(prompt)));
  return chunks;
}

// Puts images between two chunks. Each has image_start and image_end around it, and `front` and `back` around these.
std::vector<Chunk> with_images(
    Chunk before,
    const Chunk& after,
    const PromptTemplate& layout,
    int num_images,
    const std::string& front,
    const std::string& back) {
  std::vector<Chunk> chunks{std::move(before)};
  for (int i = 0; i < num_images; ++i) {
    chunks.back().push_back({front + layout.image_start, true});
    chunks.push_back(of_template(layout.image_end + back));
  }
  chunks.back().insert(chunks.back().end(), after.begin(), after.end());
  return chunks;
}

}  // namespace

std::string stripped(const std::string& text) {
  const size_t first = text.find_first_not_of(kSpaces);
  return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(kSpaces) - first + 1);
}

std::vector<Chunk> prompt_chunks(const std::string& prompt, const PromptTemplate& layout, int num_images) {
  check_prompt(prompt, num_images);
  if (prompt.find(kPlaceholder) != std::string::npos) {
    return split_at_images(prompt);
  }
  if (prompt.find(stripped(layout.assistant)) != std::string::npos) {
    return with_images(of_template(layout.system + layout.user), of_template(prompt), layout, num_images, "", "");
  }
  return question_chunks(prompt, layout, num_images, true);
}

std::vector<Chunk> question_chunks(
    const std::string& question, const PromptTemplate& layout, int num_images, bool first_turn) {
  check_text(question);
  const Span asked{layout.trims ? std::string(trimmed(question)) : question, false};
  const Span before{(first_turn ? layout.system : layout.answer_end) + layout.user, true};
  const Span after{layout.assistant, true};
  if (layout.image_last) {
    return with_images({before, asked}, {after}, layout, num_images, layout.image_separator, "");
  }
  return with_images({before}, {asked, after}, layout, num_images, "", layout.image_separator);
}

void check_prompt(const std::string& prompt, int num_images) {
  check_text(prompt);
  const int placeholders = int(split_at_images(prompt).size()) - 1;
  if (placeholders > 0 && num_images == 0) {
    throw PromptError("the prompt has <image> but no image is given");
  }
  if (placeholders > 0 && placeholders != num_images) {
    throw PromptError(
        "the prompt has <image> " + std::to_string(placeholders) + " times, and the number of images is " +
        std::to_string(num_images));
  }
}

}  // namespace llava
