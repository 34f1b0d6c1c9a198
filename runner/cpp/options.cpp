#include "options.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <functional>
#include <map>
#include <utility>
#include <vector>

#include "errors.h"

namespace llava {
namespace {

[[noreturn]] void fail(const std::string& message) {
  throw UserError(message + "; --help lists the options");
}

template <typename T>
T number(const std::string& flag, const std::string& text, T (*parse)(const char*, char**)) {
  char* end = nullptr;
  errno = 0;
  const T value = parse(text.c_str(), &end);
  if (text.empty() || *end != '\0' || errno == ERANGE) {
    fail(flag + " '" + text + "' is not a number");
  }
  return value;
}

int whole_number(const std::string& flag, const std::string& text) {
  const long value = number<long>(flag, text, [](const char* from, char** end) { return std::strtol(from, end, 10); });
  if (value < INT32_MIN || value > INT32_MAX) {
    fail(flag + " " + text + " is out of range");
  }
  return int(value);
}

double real_number(const std::string& flag, const std::string& text) {
  return number<double>(flag, text, [](const char* from, char** end) { return std::strtod(from, end); });
}

// The value and its place among the choices.
std::pair<std::string, size_t> one_of(
    const std::string& flag, const std::string& value, const std::vector<std::string>& choices) {
  const auto found = std::find(choices.begin(), choices.end(), value);
  if (found == choices.end()) {
    std::string names;
    for (const std::string& choice : choices) {
      names += (names.empty() ? "" : ", ") + choice;
    }
    fail(flag + " '" + value + "': choose from " + names);
  }
  return {value, size_t(found - choices.begin())};
}

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
  const std::map<std::string, std::function<void(const std::string&, const std::string&)>> with_value = {
      {"--model_path", [&](auto&, auto& value) { options.model_path = value; }},
      {"--tokenizer_path", [&](auto&, auto& value) { options.tokenizer_path = value; }},
      {"--image_path", [&](auto&, auto& value) { options.image_path = value; }},
      {"--prompt", [&](auto&, auto& value) { options.prompt = with_new_lines(value); }},
      {"--seq_len", [&](auto& flag, auto& value) { options.limits.seq_len = whole_number(flag, value); }},
      {"--max_new_tokens", [&](auto& flag, auto& value) { options.limits.max_new_tokens = whole_number(flag, value); }},
      {"--temperature", [&](auto& flag, auto& value) { options.temperature = real_number(flag, value); }},
      {"--top_p", [&](auto& flag, auto& value) { options.top_p = real_number(flag, value); }},
      {"--seed",
       [&](auto& flag, auto& value) {
         if (value.starts_with("-")) {
           fail(flag + " " + value + ": it must be from 0 to 2^64 - 1");
         }
         options.seed = number<unsigned long long>(
             flag, value, [](const char* from, char** end) { return std::strtoull(from, end, 10); });
       }},
      {"--cpu_threads", [&](auto& flag, auto& value) { options.load.cpu_threads = whole_number(flag, value); }},
      {"--image_aspect_ratio",
       [&](auto& flag, auto& value) { options.image_aspect_ratio = one_of(flag, value, {"pad", "crop"}).first; }},
      {"--packed_cache_path", [&](auto&, auto& value) { options.packed_cache_path = value; }},
      {"--workspace_sharing",
       [&](auto& flag, auto& value) {
         const size_t mode = one_of(flag, value, {"disabled", "per_model", "global"}).second;
         options.load.workspace_sharing = WorkspaceSharing(mode);
       }},
  };
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    const std::string flag = argument.substr(0, equals);
    if (flag == "--help" || flag == "-h") {
      options.help = true;
      return options;
    }
    if (flag == "--interactive") {
      options.interactive = true;
      continue;
    }
    const auto found = with_value.find(flag);
    if (found == with_value.end()) {
      fail("there is no option " + flag);
    }
    if (equals == std::string::npos && i + 1 == argc) {
      fail(flag + " needs a value");
    }
    found->second(flag, equals == std::string::npos ? argv[++i] : argument.substr(equals + 1));
  }
  if (options.model_path.empty()) {
    fail("--model_path is missing");
  }
  if (options.prompt.empty() && !options.interactive) {
    fail("--prompt is missing");
  }
  if (options.load.cpu_threads < 0) {
    fail("--cpu_threads " + std::to_string(options.load.cpu_threads) + ": it must be 1 or more");
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
