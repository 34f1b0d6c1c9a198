// Opens a package: program and tokenizer, ready to answer.
#pragma once

#include <string>

#include "runtime/open_program.h"
#include "runtime/session.h"

namespace llava {

// `options.model_path` is a .pte, or the folder of a package. An empty `tokenizer_path` stands for tokenizer.bin, or
// tokenizer.json, in the program's folder. A draft is loaded where the program can check guesses
// (`card.logits_to_keep`). Throws PackageError.
Session open_session(ProgramOptions options, const std::string& tokenizer_path);

}  // namespace llava
