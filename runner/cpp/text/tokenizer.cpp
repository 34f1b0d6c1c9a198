// Opens the tokenizer that a file holds, and checks text.
#include "text/tokenizer.h"

#include "base/errors.h"
#include "base/files.h"
#include "text/sentencepiece.h"
#include "text/utf8.h"
#ifdef LLAVA_PCRE2
#include "text/byte_level_bpe.h"
#endif

namespace llava {
namespace {

constexpr size_t kTokenizerAtMost = 32 << 20;  // bytes of a file; Llama's have 0.5 MB, and Llama 3's 17 MB
constexpr size_t kTextAtMost = 1 << 20;        // bytes to encode at once, far more than any context holds

void check_utf8(std::string_view text) {
  size_t characters = 0;
  for (size_t at = 0; at < text.size(); ++characters) {
    const size_t length = character_length(text.substr(at));
    if (length == kInvalid || length == kIncomplete) {
      throw PromptError("the prompt is not valid Unicode at character " + std::to_string(characters));
    }
    at += length;
  }
}

// Returns whether a file is SentencePiece's own: a protobuf message whose first field is a piece, which begins with its
// text.
bool is_sentencepiece_model(std::string_view content) {
  return content.size() > 4 && content[0] == '\n' && content[2] == '\n' && content[3] != '\0';
}

bool is_json(std::string_view content) {
  const size_t first = content.find_first_not_of(" \t\r\n");
  return first != content.npos && content[first] == '{';
}

}  // namespace

std::unique_ptr<Tokenizer> Tokenizer::open(const std::string& path) {
  std::string content = read_file<PackageError>(path, kTokenizerAtMost);
  if (!is_json(content)) {
    if (is_sentencepiece_model(content)) {
      throw PackageError(
          path +
          " is a tokenizer.model of SentencePiece; the C++ runner takes a tokenizer.bin or tokenizer.json, as it is in "
          "the package's folder");
    }
    return std::make_unique<SentencePieceTokenizer>(SentencePieceTokenizer::parse(content, path));
  }
#ifdef LLAVA_PCRE2
  return std::make_unique<ByteLevelBpe>(std::move(content), path);
#else
  throw PackageError(
      path +
      " is a tokenizer.json, which this program cannot read: it was built without the libraries PCRE2 and "
      "utf8proc. Build it with them.");
#endif
}

void Tokenizer::check(std::string_view text) {
  if (text.size() > kTextAtMost) {
    throw PromptError(
        "the prompt has " + std::to_string(text.size()) + " bytes; at most " + std::to_string(kTextAtMost) +
        " are read");
  }
  check_utf8(text);
}

}  // namespace llava
