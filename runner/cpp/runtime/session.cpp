// The turns of a conversation: prefill of images and text, then decoding, token by token.
#include "runtime/session.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/errors.h"
#include "text/prompt.h"

namespace llava {
namespace {

constexpr size_t kFeaturesKept = 4;  // images; one of LLaVA-1.5-7B takes 9 MB

// Throws PromptError if a text from position `start` to `end` leaves no position for what comes `then`.
void check_room(
    const std::string& what, const std::string& then, int start, int end, int limit, int num_image_tokens = 0) {
  if (end < limit) {
    return;
  }
  std::string needed = what + " takes " + std::to_string(end - start) + " positions";
  if (num_image_tokens > 0) {
    needed += " (" + std::to_string(num_image_tokens) + " of them the image)";
  }
  if (start > 0) {
    needed += " after the " + std::to_string(start) + " of the conversation so far";
  }
  throw PromptError(
      needed + " and " + then + " needs at least 1, but the limit is " + std::to_string(limit) +
      "; shorten it or start afresh");
}

// Returns the limit of positions. Throws PromptError for a limit that is out of range.
int limit_of(const AnswerOptions& options, int context) {
  const int limit = options.seq_len.value_or(context);
  if (limit < 1 || limit > context) {
    throw PromptError(
        "seq_len " + std::to_string(limit) + ": it must be from 1 to the context, " + std::to_string(context));
  }
  if (options.max_new_tokens && *options.max_new_tokens < 1) {
    throw PromptError("max_new_tokens " + std::to_string(*options.max_new_tokens) + ": it must be at least 1");
  }
  if (options.draft_max < 0 || options.draft_max > kDraftMaxAtMost) {
    throw PromptError(
        "draft_max " + std::to_string(options.draft_max) + ": it must be from 0 to " + std::to_string(kDraftMaxAtMost));
  }
  if (options.logprobs && (*options.logprobs < 0 || *options.logprobs > kLogprobsAtMost)) {
    throw PromptError(
        "logprobs " + std::to_string(*options.logprobs) + ": it must be from 0 to " + std::to_string(kLogprobsAtMost));
  }
  return limit;
}

std::unique_ptr<ChatTokenizer> tokenizer_of(const ModelCard& card, std::unique_ptr<Tokenizer> pieces) {
  auto tokenizer = std::make_unique<ChatTokenizer>(std::move(pieces), card.tokenizer, card.bos_id);
  if (tokenizer->vocab_size() != card.tokenizer_vocab_size) {
    throw PackageError(
        "the tokenizer has " + std::to_string(tokenizer->vocab_size()) + " tokens and the model was trained with " +
        std::to_string(card.tokenizer_vocab_size) + "; use the tokenizer that was exported with it");
  }
  return tokenizer;
}

// Returns a digest of the pixels that the vision encoder reads, their sides among them.
Digest digest_of(const ImageCHW& pixels) {
  const Digest parts[] = {digest(pixels.bytes), {uint64_t(pixels.width), uint64_t(pixels.height)}};
  return digest(parts);
}

}  // namespace

Session::Session(Program program, std::unique_ptr<Tokenizer> tokenizer, Stage load, std::unique_ptr<DraftModel> draft)
    : program_(std::move(program)),
      draft_(std::move(draft)),
      tokenizer_(tokenizer_of(program_.card(), std::move(tokenizer))),
      load_(load) {
  reset();
}

void Session::reset() {
  position_ = 0;
  last_id_ = -1;
  unread_.clear();
  last_ = {};
  last_.timings.load = load_;
  sampler_.reset();
  logits_ = {};
}

PreparedImage Session::prepare(const Image& image, const std::string& aspect_ratio) const {
  Stage stage;
  PreparedImage prepared;
  stage.measure(0, [&] {
    prepared.pixels = prepare_image(image, card(), aspect_ratio);
    prepared.digest = digest_of(prepared.pixels);
  });
  prepared.ms = stage.ms;
  return prepared;
}

void Session::read_ahead(std::span<const PreparedImage> images) {
  end(StopReason::kCancelled);
  Timings unused;
  for (const PreparedImage& image : images) {
    features(image, unused);
  }
  if (images.empty() || card().prompt.image_last) {
    return;
  }
  auto chunks = tokenized({"?", true}, int(images.size()), position_ == 0);  // only the last depends on the question
  chunks.pop_back();
  const Context wanted = with_turn(position_, chunks, images);
  if (wanted.size() < card().max_context_len && cached_.common_beginning(wanted) < wanted.size()) {
    read(position_, chunks, images, wanted, unused);
  }
}

void Session::begin(std::span<const PreparedImage> images, const TurnText& text, const AnswerOptions& options) {
  const int context = card().max_context_len;
  const int limit = limit_of(options, context);
  Sampler sampler(options.sampling);
  StopStrings stops(options.stops);
  Timings timings;
  timings.load = load_;
  const int start = text.is_question ? position_ : 0;
  const auto chunks = timings.prompt.measure(0, [&] { return tokenized(text, int(images.size()), start == 0); });
  const Context wanted = with_turn(start, chunks, images);
  const int before = text.is_question ? position_ + int(unread_text().size()) : 0;
  check_room("the prompt", "the answer", before, wanted.size(), limit, int(images.size()) * card().num_image_tokens);

  // Nothing the caller gave can be wrong any more.
  if (start == 0) {
    reset();  // where reading fails, the old conversation is gone: its place in the cache is written to
  }
  last_ = {};
  last_.timings = timings;
  sampler_.reset();  // where reading fails, there is no answer
  logits_ = read(start, chunks, images, wanted, last_.timings);
  prompt_end_ = position_ = wanted.size();
  unread_.clear();
  prompt_last_id_ = last_id_ = chunks.back().empty() ? -1 : chunks.back().back();

  budget_ = limit - position_;
  at_budget_ = limit == context ? StopReason::kContext : StopReason::kLength;
  if (options.max_new_tokens && *options.max_new_tokens <= budget_) {
    budget_ = *options.max_new_tokens;
    at_budget_ = StopReason::kLength;
  }
  sampler_.emplace(std::move(sampler));
  stream_.emplace(*tokenizer_);
  stops_.emplace(std::move(stops));
  context_ids_ = wanted.ids();
  logprobs_ = options.logprobs;
  decoding_ = SpeculativeDecoding(options.draft_max);
}

std::span<float> Session::next_logits() {
  if (!sampler_ || last_.stop_reason) {
    return {};
  }
  if (logits_.empty()) {
    logits_ = last_.timings.eval.measure(1, [&] { return read_newest(); });
    ++position_;
    context_ids_.push_back(unread_.front());
    unread_.clear();
  }
  return logits_;
}

// Returns the logits after the newest token.
std::span<float> Session::read_newest() {
  cached_.shorten(position_);
  const int32_t id = unread_.front();
  const auto guess_next = [this](int most) { return guess(most); };
  const std::span<float> logits = decoding_.logits_after(program_, id, position_, budget_ - 1, guess_next);
  cached_.add_tokens(unread_);
  cached_.add_tokens(decoding_.ahead());
  last_.timings.drafted = decoding_.drafted();
  last_.timings.accepted = decoding_.accepted();
  return logits;
}

// Returns at most `most` tokens that may follow the newest one.
std::vector<int32_t> Session::guess(int most) {
  std::vector<int32_t> ids = context_ids_;
  ids.push_back(unread_.front());
  ids = draft_ ? draft_->guess(ids, most) : look_up(ids, most);
  const auto end = std::find_if(ids.begin(), ids.end(), [this](int32_t id) { return is_eos(id); });
  ids.erase(end == ids.end() ? end : end + 1, ids.end());  // what followed that answer will not follow this one
  return ids;
}

bool Session::can_choose() {
  const std::span<float> logits = next_logits();
  return logits.empty() || std::any_of(logits.begin(), logits.end(), [](float logit) { return std::isfinite(logit); });
}

std::optional<std::string> Session::next() {
  if (next_logits().empty()) {
    return std::nullopt;
  }
  const int32_t id = last_.timings.sample.measure(1, [&] { return sampler_->sample(logits_, context_ids_); });
  if (logprobs_) {
    last_.timings.sample.measure(0, [&] { last_.logprobs.push_back(token_logprobs(logits_, id, *logprobs_)); });
  }
  logits_ = {};
  unread_ = {id};
  last_.ids.push_back(id);
  if (is_eos(id)) {
    return end(StopReason::kEos);
  }
  last_id_ = id;
  const std::string text = stream_->push(id);
  const std::string shown = stops_->push(text, stream_->dropped());
  --budget_;
  if (stops_->found()) {
    last_.stop_reason = StopReason::kStop;
  }
  return budget_ == 0 ? shown + end(at_budget_) : shown;  // which does nothing where the answer has ended
}

void Session::set_answer(const std::string& text) {
  if (!sampler_) {
    throw PromptError("there is no answer that the text could stand for; ask first");
  }
  std::vector<int32_t> ids = tokenizer_->encode_answer(text);
  const int limit = card().max_context_len;
  check_room("the given answer", "the next turn", prompt_end_, prompt_end_ + int(ids.size()), limit);
  end(StopReason::kEos);
  position_ = prompt_end_;
  last_id_ = ids.empty() ? prompt_last_id_ : ids.back();
  last_.ids = unread_ = std::move(ids);
  last_.logprobs.clear();
  last_.stop_reason = StopReason::kEos;
  logits_ = {};
}

std::string Session::end(StopReason reason) {
  if (!sampler_ || last_.stop_reason) {
    return "";
  }
  const std::string rest = stops_->finish(stream_->flush());
  last_.stop_reason = stops_->found() ? StopReason::kStop : reason;
  return rest;
}

bool Session::is_eos(int32_t id) const {
  const auto& eos_ids = card().eos_ids;
  return std::find(eos_ids.begin(), eos_ids.end(), id) != eos_ids.end();
}

// Returns the ids of the text before, between and after the images. The first begins the turn.
std::vector<std::vector<int32_t>> Session::tokenized(const TurnText& text, int num_images, bool first_turn) const {
  const PromptTemplate& layout = card().prompt;
  const auto chunks = text.is_question ? question_chunks(text.text, layout, num_images, first_turn)
                                       : prompt_chunks(text.text, layout, num_images);
  if (first_turn) {
    return tokenizer_->encode_turn(chunks, std::nullopt);
  }
  auto ids = tokenizer_->encode_turn(chunks, last_id_);
  const auto unread = unread_text();
  ids.front().insert(ids.front().begin(), unread.begin(), unread.end());
  return ids;
}

// Returns the tokens of the newest answer that the model has not read yet, without its end. The template spells that,
// whether the model has come to it or was cut short.
std::span<const int32_t> Session::unread_text() const {
  const auto end = std::find_if(unread_.begin(), unread_.end(), [this](int32_t id) { return is_eos(id); });
  return {unread_.begin(), end};
}

// Returns the first `start` positions of the conversation with a turn behind them, which is not read yet.
Context Session::with_turn(
    int start, const std::vector<std::vector<int32_t>>& chunks, std::span<const PreparedImage> images) const {
  Context wanted = cached_;
  wanted.shorten(start);
  for (size_t i = 0; i < chunks.size(); ++i) {
    wanted.add_tokens(chunks[i]);
    if (i < images.size()) {
      wanted.add_image(images[i].digest, card().num_image_tokens);
    }
  }
  return wanted;
}

// Returns the rows of an image, valid until the next call.
const Rows& Session::features(const PreparedImage& image, Timings& timings) {
  const auto seen = std::find_if(
      features_.begin(), features_.end(), [&](const Features& features) { return features.image == image.digest; });
  if (seen != features_.end()) {
    std::rotate(seen, seen + 1, features_.end());
  } else {
    timings.image.ms += image.ms;
    Rows rows = timings.image.measure(card().num_image_tokens, [&] { return program_.encode_image(image.pixels); });
    if (features_.size() == kFeaturesKept) {
      features_.erase(features_.begin());
    }
    features_.push_back({image.digest, std::move(rows)});
  }
  return features_.back().rows;
}

// Reads a turn, which begins at position `turn`, and so brings the KV cache to what is wanted. What the cache holds
// already is not read again, but for the last position. Returns the logits after it.
std::span<float> Session::read(
    int turn,
    const std::vector<std::vector<int32_t>>& chunks,
    std::span<const PreparedImage> images,
    const Context& wanted,
    Timings& timings) {
  const int start = std::min(cached_.common_beginning(wanted), wanted.size() - 1);
  const size_t width = size_t(card().hidden_size);
  Rows rows;
  int at = turn;
  const auto add = [&](size_t count, const auto& all_rows) {
    const size_t skipped = size_t(std::clamp(start - at, 0, int(count)));
    if (skipped < count) {
      const Rows& all = all_rows();
      rows.insert(rows.end(), all.begin() + std::ptrdiff_t(skipped * width), all.end());
    }
    at += int(count);
  };
  Stage& prompt = timings.prompt;
  for (size_t i = 0; i < chunks.size(); ++i) {
    add(chunks[i].size(), [&] { return prompt.measure(0, [&] { return program_.embed(chunks[i]); }); });
    if (i < images.size()) {
      add(size_t(card().num_image_tokens), [&]() -> const Rows& { return features(images[i], timings); });
    }
  }
  cached_.shorten(start);  // where reading fails, the rest may be overwritten
  const auto logits = prompt.measure(wanted.size() - start, [&] { return program_.decode(rows, start); });
  cached_ = wanted;
  return logits;
}

}  // namespace llava
