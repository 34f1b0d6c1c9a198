// A conversation with a model about images: prompts go in, text comes out piece by piece.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "image/prepare_image.h"
#include "runtime/program.h"
#include "runtime/sampler.h"
#include "runtime/timings.h"
#include "text/chat_tokenizer.h"

namespace llava {

enum class StopReason { kEos, kLength, kContext };

struct AnswerLimits {
  std::optional<int> seq_len;         // positions of prompt and answer together; nullopt: the whole context
  std::optional<int> max_new_tokens;  // tokens of the answer; nullopt: what seq_len leaves
};

// An image as it was read, and how it is to be made square: "pad", "crop", or empty for the model's own way.
struct TurnImage {
  Image image;
  std::string aspect_ratio;
};

// What is asked. A question is plain text; anything else is a prompt, as prompt_chunks takes it, for the first turn.
struct TurnText {
  std::string text;
  bool is_question;
};

// One program, one tokenizer, and the conversation in the program's KV cache.
class Session {
 public:
  // Throws PackageError when the tokenizer is that of another model; `load` is what opening both took.
  Session(Program program, std::unique_ptr<Tokenizer> tokenizer, Stage load);

  // Forgets the conversation.
  void reset();

  // Takes the next turn: prepares and reads the image, unless it is null, and the text, and calls `show` with each
  // piece of the answer's text. Returns why the answer ended. Throws PromptError and ImageError before anything is run,
  // and then leaves the conversation as it was.
  StopReason answer(
      const TurnImage* image,
      const TurnText& text,
      Sampler& sampler,
      const AnswerLimits& limits,
      const std::function<void(const std::string&)>& show);

  const ModelCard& card() const { return program_.card(); }
  const Timings& timings() const { return timings_; }
  const std::vector<int32_t>& last_ids() const { return last_ids_; }

 private:
  std::vector<std::vector<int32_t>> tokenized(const TurnText& text, bool has_image) const;
  std::span<const float> read_turn(const std::vector<std::vector<int32_t>>& chunks, const ImageCHW* image);

  Program program_;
  ChatTokenizer tokenizer_;
  Stage load_;
  Timings timings_;
  std::vector<int32_t> last_ids_;
  int position_ = 0;               // rows in the KV cache
  int32_t last_id_ = 0;            // the newest token of the conversation that does not end an answer
  std::optional<int32_t> unread_;  // the newest token of an answer: sampled, but not in the cache yet
};

}  // namespace llava
