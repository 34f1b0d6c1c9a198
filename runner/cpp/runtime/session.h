// A conversation with a model about images: turns go in, text comes out piece by piece.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/digest.h"
#include "image/prepare_image.h"
#include "runtime/context.h"
#include "runtime/draft_model.h"
#include "runtime/logprobs.h"
#include "runtime/program.h"
#include "runtime/sampler.h"
#include "runtime/speculative_decoding.h"
#include "runtime/timings.h"
#include "text/chat_tokenizer.h"
#include "text/stop_strings.h"

namespace llava {

enum class StopReason { kEos, kStop, kLength, kContext, kCancelled };

struct AnswerOptions {
  SamplingOptions sampling;
  std::vector<std::string> stops;     // texts before which the answer ends
  std::optional<int> seq_len;         // positions of prompt and answer together; nullopt: the whole context
  std::optional<int> max_new_tokens;  // tokens of the answer; nullopt: what seq_len leaves
  int draft_max = kDraftMax;          // most tokens to guess at a time, where the program can check them; 0: none
  std::optional<int> logprobs;        // how many likely tokens to keep beside each; nullopt: keep no probabilities
};

// An image as the vision encoder reads it.
struct PreparedImage {
  ImageCHW pixels;
  Digest digest;
  double ms = 0;  // that preparing it took
};

// What is asked. A question is plain text; anything else is a prompt, as prompt_chunks takes it, for the first turn.
struct TurnText {
  std::string text;
  bool is_question;
};

// An answer as far as it has come.
struct Answer {
  std::vector<int32_t> ids;               // with the end-of-sequence token, if it has come
  std::optional<StopReason> stop_reason;  // nullopt: it has not ended
  Timings timings;
  std::vector<TokenLogprobs> logprobs;  // one for each id, if they were asked for
};

// One program, one tokenizer, and the conversation in the program's KV cache. One thread at a time may use it.
//
// What the cache holds is not read again: after reset(), a conversation that begins as the one before, with the same
// image for example, goes on from where the two differ.
class Session {
 public:
  // Throws PackageError when the tokenizer is that of another model; `load` is what opening all took. Without a
  // `draft`, tokens are guessed by prompt lookup.
  Session(
      Program program, std::unique_ptr<Tokenizer> tokenizer, Stage load, std::unique_ptr<DraftModel> draft = nullptr);

  // Forgets the conversation, and gives up an answer that was not taken to its end.
  void reset();

  // Prepares an image for `begin`; see prepare_image for `aspect_ratio`. Throws ImageError.
  PreparedImage prepare(const Image& image, const std::string& aspect_ratio) const;

  // Reads images now, so that `begin` need not: while the user types, for example. If an image comes before its
  // question in the model's template, all up to the last image is read, otherwise each is encoded. An answer is ended
  // first.
  void read_ahead(std::span<const PreparedImage> images);

  // Takes the next turn: reads the images and the text. `next` then computes the answer. Unless the text is a question,
  // it begins a new conversation. Throws PromptError before anything is run, and leaves the conversation as it was.
  void begin(std::span<const PreparedImage> images, const TurnText& text, const AnswerOptions& options);

  // Computes the next token of the answer. Returns the text that can be shown by now, often none; nullopt where the
  // answer has ended. An answer that is not taken to its end may be followed by another turn.
  std::optional<std::string> next();

  // Returns the logits [vocab_size] that `next` will choose by. Until then they may be changed: -infinity rules a token
  // out. Empty where the answer has ended.
  std::span<float> next_logits();

  // Returns whether the logits that `next` will choose by leave any token.
  bool can_choose();

  // Puts a text in place of the newest answer, as if the model had written it. It is read with the next turn. Throws
  // PromptError where there is no answer, or no room.
  void set_answer(const std::string& text);

  // Ends the answer before its time. Returns what was left of its text.
  std::string end(StopReason reason);

  const ModelCard& card() const { return program_.card(); }
  const std::string& card_text() const { return program_.card_text(); }
  const Answer& last() const { return last_; }
  const ChatTokenizer& tokenizer() const { return *tokenizer_; }

  // Keeps the conversation in a file, or in memory, and goes on with it later, also in another process. A file that
  // exists is replaced once the new one is whole. Throw StateError. What is of another program, damaged or truncated is
  // refused, and leaves the conversation as it was, as long as nobody writes into the file meanwhile.
  void save(const std::string& path) const;
  uint64_t saved_size() const;             // bytes
  void save(std::span<uint8_t> to) const;  // so many
  void restore(const std::string& path);
  void restore(std::span<const uint8_t> saved);

  // Returns how many positions the conversation takes.
  int position() const { return position_ + int(unread_.size()); }

 private:
  struct Saved;  // with these, in saved_session.cpp
  using Write = std::function<void(const void*, uint64_t)>;
  using Read = std::function<bool(void*, uint64_t, uint64_t)>;

  void write_saved(const Write& write) const;
  Saved read_saved(const Read& read, uint64_t size, const Digest& content, const std::string& what);
  void restore_from(const Read& read, uint64_t size, const Digest& content, const std::string& what);

  struct Features {
    Digest image;
    Rows rows;
  };

  std::vector<std::vector<int32_t>> tokenized(const TurnText& text, int num_images, bool first_turn) const;
  std::span<const int32_t> unread_text() const;
  Context with_turn(
      int start, const std::vector<std::vector<int32_t>>& chunks, std::span<const PreparedImage> images) const;
  const Rows& features(const PreparedImage& image, Timings& timings);
  std::span<float> read(
      int turn,
      const std::vector<std::vector<int32_t>>& chunks,
      std::span<const PreparedImage> images,
      const Context& wanted,
      Timings& timings);
  std::span<float> read_newest();
  std::vector<int32_t> guess(int most);
  bool is_eos(int32_t id) const;

  Program program_;
  std::unique_ptr<DraftModel> draft_;
  std::unique_ptr<ChatTokenizer> tokenizer_;  // in one place, as `stream_` refers to it
  Stage load_;
  std::vector<Features> features_;  // of the images seen last, the newest at the end

  Context cached_;               // all that the KV cache holds: the conversation, or after reset() the one before
  int position_ = 0;             // how much of it is the conversation
  int32_t last_id_ = 0;          // the newest token of the conversation that does not end an answer
  std::vector<int32_t> unread_;  // the newest tokens of an answer, which are not in the cache yet

  Answer last_;
  std::optional<Sampler> sampler_;  // of the answer; nullopt before the first
  std::optional<TextStream<ChatTokenizer>> stream_;
  std::optional<StopStrings> stops_;
  std::vector<int32_t> context_ids_;            // the tokens of the conversation, as far as they are in the cache
  std::optional<int> logprobs_;                 // of the answer's options
  int prompt_end_ = 0;                          // how many positions were before the answer
  int32_t prompt_last_id_ = 0;                  // the token before the answer; -1: an image
  int budget_ = 0;                              // tokens that may still come
  StopReason at_budget_ = StopReason::kLength;  // why the answer ends after them
  std::span<float> logits_;                     // of the next token; empty: the newest must be read first
  SpeculativeDecoding decoding_{0};             // of the answer
};

}  // namespace llava
