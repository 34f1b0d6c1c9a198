// llava_main: answers questions about an image. The answer is streamed, timings follow it.
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <utility>

#include "app/options.h"
#include "base/exit.h"
#include "image/read_image.h"
#include "package/program_file.h"
#include "runtime/session.h"

namespace llava {
namespace {

void show(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

// Reads the next line of stdin. Returns false where the conversation ends.
bool read_question(std::string& question) {
  show("> ");
  return std::getline(std::cin, question) && !question.empty();
}

Session open_session(const Options& options) {
  Stage load;
  check_program_file(options.program.model_path);
  // The tokenizer comes first: a wrong one is noticed before gigabytes are loaded.
  const std::filesystem::path folder = std::filesystem::path(options.program.model_path).parent_path();
  const std::string path =
      options.tokenizer_path.empty() ? (folder / "tokenizer.bin").string() : options.tokenizer_path;
  Tokenizer tokenizer = load.measure(0, [&] { return Tokenizer::open(path); });
  Program program = load.measure(0, [&] { return open_program(options.program); });
  return Session(std::move(program), std::move(tokenizer), load);
}

void run(Options options) {
  Sampler sampler(options.temperature, options.top_p, options.seed);
  // The image comes first: a broken one is noticed before anything is packed or loaded. Resizing needs the model's
  // card, so it comes later, in Session::answer.
  std::optional<TurnImage> image;
  if (!options.image_path.empty()) {
    image = TurnImage{read_image(options.image_path), options.image_aspect_ratio};
  }
  options.program.model_path = find_program(options.program.model_path);
  Session session = open_session(options);
  const auto ask = [&](const TurnImage* image, const std::string& prompt) {
    const StopReason reason = session.answer(image, prompt, sampler, options.limits, show);
    show("\n");
    if (reason == StopReason::kContext) {
      std::fprintf(stderr, "note: the answer ends where the context of %d is full\n", session.card().max_context_len);
    }
    std::fputs(session.timings().report().c_str(), stderr);
  };
  const TurnImage* unseen = image ? &*image : nullptr;  // the first turn shows it
  if (!options.prompt.empty()) {
    ask(std::exchange(unseen, nullptr), options.prompt);
  }
  for (std::string prompt; options.interactive && read_question(prompt);) {
    ask(std::exchange(unseen, nullptr), prompt);
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
