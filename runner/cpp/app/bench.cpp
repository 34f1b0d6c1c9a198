// llava_bench: times the stages of an answer one by one, at given lengths, and prints a line of JSON.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "app/command_line.h"
#include "base/errors.h"
#include "base/exit.h"
#include "image/prepare_image.h"
#include "package/program_file.h"
#include "runtime/memory.h"
#include "runtime/open_program.h"
#include "runtime/sampler.h"
#include "runtime/timings.h"
#ifdef LLAVA_ETDUMP
#include "runtime/etdump.h"
#endif

namespace llava {
namespace {

constexpr const char* kFooter = R"(Underscores may stand for hyphens, as in --model_path. --image-path is another
name of --image, and --cpu-threads of --threads.

Example:
  llava_bench --model-path=llava.pte --image=photo.jpg --depth=0,600
)";

struct Options {
  ProgramOptions program;
  std::string image_path;
  std::string etdump_path;
  int prompt_tokens = 0;  // 0: the default, which depends on the image
  int decode_tokens = 32;
  std::vector<int> depths = {0, 600};
};

struct Decoding {
  int depth;
  Stage stage;
};

std::optional<Options> parse(int argc, const char* const* argv) {
  Options options;
  CommandLine line(
      "llava_bench", "--model-path PATH [--image PATH] [option ...]",
      "Time an exported LLaVA model: load, image, prompt, and decoding with so much in the cache already. "
      "The result is one line of JSON, times in milliseconds.",
      kFooter);
  line.heading("Work");
  line.model(options.program.model_path);
  line.image(options.image_path);
  line.value(
      "--prompt-tokens", "N",
      "positions of the prompt, the image's among them (default: 600, and at least 24 beside the image)",
      [&](auto& flag, auto& value) { options.prompt_tokens = positive_number(flag, value); });
  line.value("--decode-tokens", "N", "tokens to decode at each depth (default: 32)", [&](auto& flag, auto& value) {
    options.decode_tokens = positive_number(flag, value);
  });
  line.value(
      "--depth", "N,N,...", "positions in the cache where decoding begins (default: 0,600)",
      [&](auto& flag, auto& value) { options.depths = whole_numbers(flag, value); });
  line.heading("Computation");
  line.computation(options.program);
  line.value(
      "--etdump-path", "DIR", "also trace every operator, which takes time, to DIR/METHOD.etdump", options.etdump_path);
  if (!line.parse(argc, argv)) {
    return std::nullopt;
  }
  if (options.program.model_path.empty()) {
    fail_option("--model-path is missing");
  }
  return options;
}

void check_room(const Options& options, const ModelCard& card) {
  const int least = options.image_path.empty() ? 1 : card.num_image_tokens + 1;
  const std::string context = std::to_string(card.max_context_len);
  if (options.prompt_tokens < least || options.prompt_tokens > card.max_context_len) {
    throw PromptError(
        "prompt_tokens " + std::to_string(options.prompt_tokens) + ": it must be from " + std::to_string(least) +
        " to the context, " + context);
  }
  for (const int depth : options.depths) {
    if (depth < 0 || depth > card.max_context_len - options.decode_tokens) {
      throw PromptError(
          "depth " + std::to_string(depth) + " and " + std::to_string(options.decode_tokens) +
          " decoded tokens do not fit into the context of " + context);
    }
  }
}

// Returns token ids to time with. Which ones they are does not change the time.
std::vector<int32_t> some_ids(int count, const ModelCard& card) {
  std::vector<int32_t> ids;
  for (int i = 0; i < count; ++i) {
    ids.push_back(int32_t((int64_t(i) * 7919 + card.bos_id) % card.tokenizer_vocab_size));
  }
  return ids;
}

// Returns milliseconds rounded to microseconds.
double rounded(double ms) {
  return std::round(ms * 1000) / 1000;
}

void print(const Stage& load, const Stage& image, const Stage& prompt, const std::vector<Decoding>& decodings) {
  nlohmann::ordered_json decode = nlohmann::ordered_json::array();
  for (const Decoding& decoding : decodings) {
    decode.push_back({{"depth", decoding.depth}, {"tokens", decoding.stage.count}, {"ms", rounded(decoding.stage.ms)}});
  }
  const nlohmann::ordered_json line = {
      {"load_ms", rounded(load.ms)},
      {"image_ms", rounded(image.ms)},
      {"prompt_tokens", prompt.count},
      {"prompt_ms", rounded(prompt.ms)},
      {"decode", decode},
      {"peak_bytes", peak_memory()},
      {"anonymous_bytes", anonymous_memory()},
  };
  std::puts(line.dump().c_str());
}

void run(Options options) {
#ifdef LLAVA_ETDUMP
  EtDump trace;
  if (!options.etdump_path.empty()) {
    std::error_code unreadable;
    if (!std::filesystem::is_directory(options.etdump_path, unreadable)) {
      throw UserError("--etdump-path " + options.etdump_path + " is not a folder");
    }
    options.program.load.trace = &trace;
  }
#else
  if (!options.etdump_path.empty()) {
    throw UserError("--etdump-path: the ExecuTorch that this was built against has no event tracer");
  }
#endif
  Stage load, image;
  std::optional<Image> unprepared;  // read first, as llava_main does
  if (!options.image_path.empty()) {
    unprepared = image.measure(0, [&] { return read_image(options.image_path); });
  }
  options.program.model_path = find_program(options.program.model_path);
  Program program = load.measure(0, [&] { return open_program(options.program); });
  const ModelCard& card = program.card();
  if (options.prompt_tokens == 0) {
    options.prompt_tokens = std::max(600, options.image_path.empty() ? 0 : card.num_image_tokens + 24);
  }
  check_room(options, card);
  Sampler greedy({});

  Rows features;
  if (unprepared) {
    features = image.measure(
        0, [&] { return program.encode_image(prepare_image(*unprepared, card, card.image_aspect_ratio)); });
  }
  Stage prompt;
  const int num_text_tokens = options.prompt_tokens - int(features.size() / size_t(card.hidden_size));
  int32_t next = prompt.measure(options.prompt_tokens, [&] {
    Rows rows = program.embed(some_ids(num_text_tokens, card));
    rows.insert(rows.begin() + card.hidden_size, features.begin(), features.end());  // behind the first token
    return greedy.sample(program.decode(rows, 0), {});
  });

  int depth_in_cache = options.prompt_tokens;
  std::vector<Decoding> decodings;
  for (const int depth : options.depths) {
    if (depth > depth_in_cache) {
      program.decode(program.embed(some_ids(depth, card)), 0);
    }
    depth_in_cache = std::max(depth, depth_in_cache);
    Stage stage;
    for (int i = 0; i < options.decode_tokens; ++i) {
      next = stage.measure(
          1, [&] { return greedy.sample(program.decode(program.embed(std::span(&next, 1)), depth + i), {}); });
    }
    decodings.push_back({depth, stage});
  }
  print(load, image, prompt, decodings);
#ifdef LLAVA_ETDUMP
  if (!options.etdump_path.empty()) {
    trace.write(options.etdump_path);
  }
#endif
}

}  // namespace
}  // namespace llava

int main(int argc, char** argv) {
  return llava::exit_cleanly([&] {
    if (const auto options = llava::parse(argc, argv)) {
      llava::run(*options);
    }
  });
}
