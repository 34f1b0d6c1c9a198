// The turns of a conversation: prefill of prompt and image, then decoding, token by token.
#include "runtime/session.h"

#include <algorithm>

#include "base/errors.h"
#include "text/prompt.h"

namespace llava {
namespace {

void check_room(int start, int end, int num_image_tokens, int limit) {
  if (end < limit) {
    return;
  }
  std::string needed = "the prompt takes " + std::to_string(end - start) + " positions";
  if (num_image_tokens > 0) {
    needed += " (" + std::to_string(num_image_tokens) + " of them the image)";
  }
  if (start > 0) {
    needed += " after the " + std::to_string(start) + " of the conversation so far";
  }
  throw PromptError(
      needed + " and the answer needs at least 1, but the limit is " + std::to_string(limit) +
      "; shorten it or start afresh");
}

ChatTokenizer tokenizer_of(const ModelCard& card, std::unique_ptr<Tokenizer> pieces) {
  ChatTokenizer tokenizer(std::move(pieces), card.tokenizer, card.bos_id);
  if (tokenizer.vocab_size() != card.tokenizer_vocab_size) {
    throw PackageError(
        "the tokenizer has " + std::to_string(tokenizer.vocab_size()) + " tokens and the model was trained with " +
        std::to_string(card.tokenizer_vocab_size) + "; use the tokenizer that was exported with it");
  }
  return tokenizer;
}

}  // namespace

Session::Session(Program program, std::unique_ptr<Tokenizer> tokenizer, Stage load)
    : program_(std::move(program)), tokenizer_(tokenizer_of(program_.card(), std::move(tokenizer))), load_(load) {
  reset();
}

void Session::reset() {
  position_ = 0;
  unread_.reset();
  last_ids_.clear();
  timings_ = Timings();
  timings_.load = load_;
}

StopReason Session::answer(
    const TurnImage* image,
    const TurnText& text,
    Sampler& sampler,
    const AnswerLimits& limits,
    const std::function<void(const std::string&)>& show) {
  const int context = card().max_context_len;
  const int limit = limits.seq_len.value_or(context);
  if (limit < 1 || limit > context) {
    throw PromptError(
        "seq_len " + std::to_string(limit) + ": it must be from 1 to the context, " + std::to_string(context));
  }
  if (limits.max_new_tokens && *limits.max_new_tokens < 1) {
    throw PromptError("max_new_tokens " + std::to_string(*limits.max_new_tokens) + ": it must be at least 1");
  }
  Timings timings;
  timings.load = load_;
  const auto chunks = timings.prompt.measure(0, [&] { return tokenized(text, image != nullptr); });
  const int num_image_tokens = image ? card().num_image_tokens : 0;
  int end = position_ + num_image_tokens;
  for (const auto& chunk : chunks) {
    end += int(chunk.size());
  }
  check_room(position_, end, num_image_tokens, limit);
  std::optional<ImageCHW> prepared;
  if (image) {
    prepared = timings.image.measure(0, [&] { return prepare_image(image->image, card(), image->aspect_ratio); });
  }

  // Nothing the caller gave can be wrong any more.
  timings_ = timings;
  last_ids_.clear();
  std::span<const float> logits = read_turn(chunks, prepared ? &*prepared : nullptr);
  position_ = end;
  unread_.reset();
  last_id_ = chunks.back().empty() ? -1 : chunks.back().back();

  int budget = limit - end;
  StopReason stop_reason = limit == context ? StopReason::kContext : StopReason::kLength;
  if (limits.max_new_tokens && *limits.max_new_tokens <= budget) {
    budget = *limits.max_new_tokens;
    stop_reason = StopReason::kLength;
  }
  TextStream stream(tokenizer_);
  const auto& eos_ids = card().eos_ids;
  for (int i = 0; i < budget; ++i) {
    if (i > 0) {
      logits = timings_.eval.measure(1, [&] {
        const Rows row = program_.embed(std::span(&*unread_, 1));
        return program_.decode(row, position_);
      });
      ++position_;
    }
    const int32_t id = timings_.sample.measure(1, [&] { return sampler.sample(logits); });
    unread_ = id;
    last_ids_.push_back(id);
    if (std::find(eos_ids.begin(), eos_ids.end(), id) != eos_ids.end()) {
      stop_reason = StopReason::kEos;
      break;
    }
    last_id_ = id;
    if (const std::string piece = stream.push(id); !piece.empty()) {
      show(piece);
    }
  }
  if (const std::string rest = stream.flush(); !rest.empty()) {
    show(rest);
  }
  return stop_reason;
}

// Returns the ids of the chunks before and after the image, or of the one chunk. The first begins the turn.
std::vector<std::vector<int32_t>> Session::tokenized(const TurnText& text, bool has_image) const {
  const bool first_turn = position_ == 0;
  const PromptTemplate& layout = card().prompt;
  const auto chunks = text.is_question ? question_chunks(text.text, layout, has_image, first_turn)
                                       : prompt_chunks(text.text, layout, has_image);
  if (first_turn) {
    return tokenizer_.encode_turn(chunks, std::nullopt);
  }
  auto ids = tokenizer_.encode_turn(chunks, last_id_);
  // The template spells the end of the answer, whether the model has come to it or was cut short.
  const auto& eos_ids = card().eos_ids;
  if (unread_ && std::find(eos_ids.begin(), eos_ids.end(), *unread_) == eos_ids.end()) {
    ids.front().insert(ids.front().begin(), *unread_);
  }
  return ids;
}

// Runs everything before the answer. Returns the logits of its first token.
std::span<const float> Session::read_turn(const std::vector<std::vector<int32_t>>& chunks, const ImageCHW* image) {
  Rows features;
  if (image) {
    features = timings_.image.measure(card().num_image_tokens, [&] { return program_.encode_image(*image); });
  }
  return timings_.prompt.measure(0, [&] {
    Rows rows;
    for (size_t i = 0; i < chunks.size(); ++i) {
      if (!chunks[i].empty()) {
        const Rows embedded = program_.embed(chunks[i]);
        rows.insert(rows.end(), embedded.begin(), embedded.end());
      }
      if (i == 0) {
        rows.insert(rows.end(), features.begin(), features.end());
      }
    }
    timings_.prompt.count = int(rows.size() / size_t(card().hidden_size));
    return program_.decode(rows, position_);
  });
}

}  // namespace llava
