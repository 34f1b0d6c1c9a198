#include "app/options.h"

#include "app/flags.h"

namespace llava {
namespace {

// \n typed in a shell means a new line.
std::string with_new_lines(std::string text) {
  for (size_t at = 0; (at = text.find("\\n", at)) != std::string::npos; ++at) {
    text.replace(at, 2, 1, '\n');
  }
  return text;
}

}  // namespace

Options parse_options(int argc, const char* const* argv) {
  Options options;
  Flags flags;
  flags.program(options.program);
  flags.value("--tokenizer_path", [&](auto&, auto& value) { options.tokenizer_path = value; });
  flags.value("--image_path", [&](auto&, auto& value) { options.image_path = value; });
  flags.value("--prompt", [&](auto&, auto& value) { options.prompt = with_new_lines(value); });
  flags.value("--seq_len", [&](auto& flag, auto& value) { options.limits.seq_len = whole_number(flag, value); });
  flags.value("--max_new_tokens", [&](auto& flag, auto& value) {
    options.limits.max_new_tokens = whole_number(flag, value);
  });
  flags.value("--temperature", [&](auto& flag, auto& value) { options.temperature = real_number(flag, value); });
  flags.value("--top_p", [&](auto& flag, auto& value) { options.top_p = real_number(flag, value); });
  flags.value("--seed", [&](auto& flag, auto& value) { options.seed = seed_number(flag, value); });
  flags.value("--image_aspect_ratio", [&](auto& flag, auto& value) {
    one_of(flag, value, {"pad", "crop"});
    options.image_aspect_ratio = value;
  });
  flags.toggle("--interactive", options.interactive);
  options.help = !flags.parse(argc, argv);
  if (options.help) {
    return options;
  }
  if (options.program.model_path.empty()) {
    fail_option("--model_path is missing");
  }
  if (options.prompt.empty() && !options.interactive) {
    fail_option("--prompt is missing");
  }
  return options;
}

const char* usage() {
  return R"(usage: llava_main --model_path PATH --prompt TEXT [--image_path PATH] [option ...]

Ask an exported LLaVA model about an image. The answer goes to stdout, timings to stderr.

  --model_path PATH          the .pte
  --tokenizer_path PATH      tokenizer.bin (default: beside the .pte)
  --image_path PATH          JPEG, PNG or PPM, or a .pt with a uint8 [3, H, W] tensor (default: no image)
  --prompt TEXT              question or prompt, see below; \n in it stands for a new line
  --interactive              go on with questions from stdin, one a line; an empty line ends the conversation
  --seq_len N                limit of prompt and answer in positions (default: the context)
  --max_new_tokens N         limit of the answer in tokens (default: what seq_len leaves)
  --temperature T            0 takes the likeliest token (default: 0)
  --top_p P                  sample from the likeliest tokens only (default: 1)
  --seed N                   makes sampling repeatable
  --cpu_threads N            threads to compute with (default: the machine's fast cores)
  --image_aspect_ratio HOW   pad or crop the image to a square (default: as the model was trained)
  --packed_cache_path DIR    where weights packed for this processor are kept (default: beside the .pte), or off
  --workspace_sharing HOW    memory of XNNPACK's delegates: disabled, per_model or global (default: per_model)

The prompt is a plain question; or it ends in the assistant's cue, as in "What is this? ASSISTANT:", and is taken
literally after the system sentence, "USER: " and the image; or it has <image> in it and is taken literally as a whole.

example:
  llava_main --model_path=llava.pte --image_path=photo.jpg --prompt="What is in the image?"
)";
}

}  // namespace llava
