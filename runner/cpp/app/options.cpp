// The flags of llava_main, declared once for both parsing and help.
#include "app/options.h"

#include "app/command_line.h"

namespace llava {
namespace {

constexpr const char* kFooter = R"(A prompt is one of three kinds:
  "What is this?"             a plain question, to which the model's prompt
                              template is added
  "What is this? ASSISTANT:"  with the assistant's cue: taken literally, after
                              the system sentence, "USER: " and the image
  "USER: <image> What ..."    with <image>: taken literally as a whole

With --interactive, /image PATH shows an image to the next question, /reset
forgets the conversation, and /quit or the end of stdin ends it. Anything else
is a plain question, even with <image> or ASSISTANT: in it.

Underscores may stand for hyphens, as in --model_path. --image-path is another
name of --image, and --cpu-threads of --threads.

Example:
  llava_main --model-path=llava.pte --image=photo.jpg \
      --prompt="What is in the image?"
)";

// Replaces \n, as it is typed in a shell, by a new line.
std::string with_new_lines(std::string text) {
  for (size_t at = 0; (at = text.find("\\n", at)) != std::string::npos; ++at) {
    text.replace(at, 2, 1, '\n');
  }
  return text;
}

}  // namespace

std::optional<Options> parse_options(int argc, const char* const* argv) {
  Options options;
  CommandLine line(
      "llava_main", "--model-path PATH --prompt TEXT [--image PATH] [option ...]",
      "Ask an exported LLaVA model about an image. The answer goes to stdout, timings go to stderr.", kFooter);
  line.heading("Question");
  line.model(options.program.model_path);
  line.images(options.image_paths);
  line.value(
      "--prompt", "TEXT", "question or prompt, see below; \\n in it stands for a new line",
      [&](auto&, auto& value) { options.prompt = with_new_lines(value); });
  line.toggle("--interactive", "go on with questions from stdin, one a line; see below", options.interactive);
  line.value(
      "--tokenizer-path", "PATH", "the tokenizer (default: tokenizer.bin or tokenizer.json in the program's folder)",
      options.tokenizer_path);
  line.value(
      "--image-aspect-ratio", "HOW", "pad, crop or stretch the image to a square (default: as the checkpoint says)",
      [&](auto& flag, auto& value) {
        one_of(flag, value, kImageAspectRatios);
        options.image_aspect_ratio = value;
      });
  AnswerOptions& answer = options.answer;
  SamplingOptions& sampling = answer.sampling;
  line.heading("Answer");
  line.value(
      "--seq-len", "N", "most positions of prompt and answer together (default: the model's context)",
      [&](auto& flag, auto& value) { answer.seq_len = positive_number(flag, value); });
  line.value(
      "--max-new-tokens", "N", "most tokens of the answer (default: what --seq-len leaves)",
      [&](auto& flag, auto& value) { answer.max_new_tokens = positive_number(flag, value); });
  line.values(
      "--stop", "TEXT", "end the answer before this text; may be given several times, \\n in it stands for a new line",
      [&](auto&, auto& value) { answer.stops.push_back(with_new_lines(value)); });
  line.toggle("--json", "print the answer as one line of JSON, with its ids and timings", options.json);
  line.value(
      "--logprobs", "N", "with --json, also the log probability of each token, and of the N most likely in its place",
      [&](auto& flag, auto& value) { answer.logprobs = number_within(flag, value, 0, kLogprobsAtMost); });
  line.draft_max(answer.draft_max);
  line.value(
      "--draft-model-path,--model-draft", "PATH",
      "a package with the same tokenizer, whose small model guesses (default: what was said before is looked up)",
      options.program.draft_model_path);
  line.heading("Sampling");
  line.value(
      "--temperature", "T", "0 always takes the most likely token; more is more random (default: 0)",
      [&](auto& flag, auto& value) { sampling.temperature = real_number(flag, value); });
  line.value(
      "--top-k", "N", "sample from the N most likely tokens only; 0 stands for all (default: 0)",
      [&](auto& flag, auto& value) { sampling.top_k = whole_number(flag, value); });
  line.value(
      "--top-p", "P", "sample from the most likely tokens only, which have this probability together (default: 1)",
      [&](auto& flag, auto& value) { sampling.top_p = real_number(flag, value); });
  line.value(
      "--min-p", "P", "sample only from tokens that are at least P times as likely as the most likely one (default: 0)",
      [&](auto& flag, auto& value) { sampling.min_p = real_number(flag, value); });
  line.value(
      "--repetition-penalty", "R", "above 1 makes tokens that the conversation already has less likely (default: 1)",
      [&](auto& flag, auto& value) { sampling.repetition_penalty = real_number(flag, value); });
  line.value("--seed", "N", "makes sampling repeatable", [&](auto& flag, auto& value) {
    sampling.seed = seed_number(flag, value);
  });
  line.heading("Computation");
  line.computation(options.program);
  if (!line.parse(argc, argv)) {
    return std::nullopt;
  }
  if (options.program.model_path.empty()) {
    fail_option("--model-path is missing");
  }
  if (options.prompt.empty() && !options.interactive) {
    fail_option("--prompt is missing; --interactive takes questions from stdin instead");
  }
  if (answer.logprobs && !options.json) {
    fail_option("--logprobs needs --json");
  }
  return options;
}

}  // namespace llava
