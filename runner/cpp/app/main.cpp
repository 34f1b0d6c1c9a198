// llava_main: answers questions about an image. The answer is streamed, timings follow it.
#include <unistd.h>
#include <cstdio>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "app/answer_json.h"
#include "app/conversation.h"
#include "app/options.h"
#include "base/exit.h"
#include "image/read_image.h"
#include "runtime/open_session.h"
#include "text/prompt.h"

namespace llava {
namespace {

std::string name_of(StopReason reason) {
  switch (reason) {
    case StopReason::kEos:
      return "eos";
    case StopReason::kStop:
      return "stop";
    case StopReason::kLength:
      return "length";
    case StopReason::kContext:
      return "context";
    case StopReason::kCancelled:
      break;
  }
  return "cancelled";
}

// Prints the answer as one line of JSON when it has ended.
void show_json(Session& session, bool with_logprobs) {
  AnswerRecord record;
  while (const std::optional<std::string> piece = session.next()) {
    record.text += *piece;
  }
  const Answer& answer = session.last();
  record.ids = answer.ids;
  record.stop_reason = name_of(*answer.stop_reason);
  record.timings = answer.timings;
  if (with_logprobs) {
    record.logprobs = answer.logprobs;
  }
  show(answer_json(record));
}

// Prints the answer as it comes, and then its timings.
void show_answer(Session& session) {
  while (const std::optional<std::string> piece = session.next()) {
    show(*piece);
  }
  show("\n");
  if (session.last().stop_reason == StopReason::kContext) {
    const std::string context = std::to_string(session.card().max_context_len);
    note("note: the answer ends where the context of " + context + " is full\n");
  }
  note(session.last().timings.report(columns_of(STDERR_FILENO)));
}

void run(Options options) {
  // What can be wrong is looked at before anything is packed or loaded. Resizing an image needs the model's card, so it
  // comes later.
  Sampler{options.answer.sampling};
  StopStrings{options.answer.stops};
  if (!options.prompt.empty()) {
    check_prompt(options.prompt, int(options.image_paths.size()));
  }
  std::vector<Image> images;
  for (const std::string& path : options.image_paths) {
    images.push_back(read_image(path));
  }
  Session session = open_session(options.program, options.tokenizer_path);
  if (!options.program.draft_model_path.empty() && session.card().logits_to_keep == 1) {
    note(
        "note: --draft-model-path is not used: the program gives the logits of one token a call, so it can check no "
        "guess; export it again\n");
  }
  const auto answer = [&](const std::vector<Image>& shown, const TurnText& text) {
    std::vector<PreparedImage> prepared;
    for (const Image& image : shown) {
      prepared.push_back(session.prepare(image, options.image_aspect_ratio));
    }
    session.begin(prepared, text, options.answer);
    options.json ? show_json(session, options.answer.logprobs.has_value()) : show_answer(session);
  };
  if (!options.prompt.empty()) {
    answer(images, {options.prompt, false});
    images.clear();
  }
  if (options.interactive) {
    const auto ask = [&](const std::vector<Image>& shown, const std::string& question) {
      answer(shown, {question, true});
    };
    converse(stdin, std::move(images), ask, [&] { session.reset(); }, options.json ? "" : "> ");
  }
}

}  // namespace
}  // namespace llava

int main(int argc, char** argv) {
  return llava::exit_cleanly([&] {
    if (const auto options = llava::parse_options(argc, argv)) {
      llava::run(*options);
    }
  });
}
