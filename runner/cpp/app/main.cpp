// llava_main: answers questions about an image. The answer is streamed, timings follow it.
#include <unistd.h>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "app/conversation.h"
#include "app/options.h"
#include "base/exit.h"
#include "image/read_image.h"
#include "package/program_file.h"
#include "runtime/session.h"
#include "text/prompt.h"

namespace llava {
namespace {

// Returns the path of the tokenizer in a package.
std::string find_tokenizer(const std::filesystem::path& folder) {
  const std::filesystem::path bin = folder / "tokenizer.bin", json = folder / "tokenizer.json";
  std::error_code error;
  return !std::filesystem::exists(bin, error) && std::filesystem::exists(json, error) ? json : bin;
}

Session open_session(const Options& options) {
  Stage load;
  check_program_file(options.program.model_path);
  // The tokenizer comes first: a wrong one is noticed before gigabytes are loaded.
  const std::filesystem::path folder = std::filesystem::path(options.program.model_path).parent_path();
  const std::string path = options.tokenizer_path.empty() ? find_tokenizer(folder) : options.tokenizer_path;
  std::unique_ptr<Tokenizer> tokenizer = load.measure(0, [&] { return Tokenizer::open(path); });
  Program program = load.measure(0, [&] { return open_program(options.program); });
  return Session(std::move(program), std::move(tokenizer), load);
}

void run(Options options) {
  // What can be wrong is looked at before anything is packed or loaded. Resizing an image needs the model's card, so it
  // comes later, in Session::answer.
  Sampler sampler(options.temperature, options.top_p, options.seed);
  if (!options.prompt.empty()) {
    check_prompt(options.prompt, !options.image_path.empty());
  }
  std::optional<TurnImage> image;
  if (!options.image_path.empty()) {
    image = TurnImage{read_image(options.image_path), options.image_aspect_ratio};
  }
  options.program.model_path = find_program(options.program.model_path);
  Session session = open_session(options);
  const auto answer = [&](const TurnImage* image, const TurnText& text) {
    const StopReason reason = session.answer(image, text, sampler, options.limits, show);
    show("\n");
    if (reason == StopReason::kContext) {
      const std::string context = std::to_string(session.card().max_context_len);
      note("note: the answer ends where the context of " + context + " is full\n");
    }
    note(session.timings().report(columns_of(STDERR_FILENO)));
  };
  if (!options.prompt.empty()) {
    answer(image ? &*image : nullptr, {options.prompt, false});
    image.reset();
  }
  if (options.interactive) {
    const auto ask = [&](const TurnImage* image, const std::string& question) { answer(image, {question, true}); };
    converse(stdin, std::move(image), options.image_aspect_ratio, ask, [&] { session.reset(); });
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
