// How a turn of a conversation is spelled around its image.
#pragma once

#include <string>
#include <vector>

#include "package/model_card.h"

namespace llava {

// {text} without an image, {before, after} the image with one; each chunk is to be tokenized on its own.
//
// A prompt with <image> in it spells the whole turn itself and is only split there; one with the assistant's cue
// (ASSISTANT:) in it is what follows the image, literally; any other is a plain question, which gets the template
// around it. Throws PromptError for an empty prompt, and for placeholders that do not match the image given.
std::vector<std::string> prompt_chunks(
    const std::string& prompt, const PromptTemplate& layout, bool has_image, bool first_turn);

}  // namespace llava
