// How a turn of a conversation is spelled around its images.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "package/model_card.h"

namespace llava {

constexpr std::string_view kSpaces = " \t\n\r\f\v";

// A part of a turn's text, of whole characters. Only in what is of the template, special tokens are tokens: a user's
// text is text.
struct Span {
  std::string text;
  bool is_template;
};

// The text before, between or after images, or of a turn without one. Its parts are tokenized as one text.
using Chunk = std::vector<Span>;

// Returns a text without the spaces at both ends.
std::string stripped(const std::string& text);

// Returns the chunks of a first turn, one more than it has images: each image stands between two chunks.
//
// A prompt with <image> in it spells the whole turn, and is only split there. One with the assistant's cue (ASSISTANT:)
// in it is what follows the images and their image_end, literally. Special tokens are recognized in both. Any other is
// a plain question, and the template is put around it. Throws PromptError as check_prompt does.
std::vector<Chunk> prompt_chunks(const std::string& prompt, const PromptTemplate& layout, int num_images);

// Returns the chunks of a turn with the template around the question, whatever is in it. A later turn begins with the
// end of the answer before. Throws PromptError for an empty question.
std::vector<Chunk> question_chunks(
    const std::string& question, const PromptTemplate& layout, int num_images, bool first_turn);

// Throws PromptError for an empty prompt, and for one with <image> in it, but not as often as there are images.
void check_prompt(const std::string& prompt, int num_images);

}  // namespace llava
