// How a turn of a conversation is spelled around its image.
#pragma once

#include <string>
#include <vector>

#include "package/model_card.h"

namespace llava {

// Returns the chunks of a turn, which are to be tokenized one by one: {text} without an image, {before, after} the
// image with one.
//
// A prompt with <image> in it spells the whole turn, and is only split there. One with the assistant's cue (ASSISTANT:)
// in it is what follows the image, literally. Any other is a plain question, and the template is put around it. Throws
// PromptError for an empty prompt, and for placeholders that do not match the image given.
std::vector<std::string> prompt_chunks(
    const std::string& prompt, const PromptTemplate& layout, bool has_image, bool first_turn);

}  // namespace llava
