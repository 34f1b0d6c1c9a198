// llava_bench: times the stages of an answer one by one, at given lengths, and prints a line of JSON.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <random>
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
#include "runtime/speculative_decoding.h"
#include "runtime/timings.h"
#ifdef LLAVA_ETDUMP
#include "runtime/etdump.h"
#endif

namespace llava {
namespace {

constexpr int kCallsTimed = 5;  // of each number of rows; the median counts

constexpr const char* kFooter = R"(Underscores may stand for hyphens, as in --model_path. --image-path is another
name of --image, and --cpu-threads of --threads.

With --accepted, the tokens of each depth are decoded once more for each
percentage. A draft that knows them guesses them, and each of its guesses is
right with this probability if those before it were. `changed` counts tokens
that came out otherwise than without it.

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
  std::vector<int> rows;
  std::vector<int> accepted;
  int draft_max = kDraftMax;
  uint64_t seed = 0;
};

struct Decoding {
  int depth;
  Stage stage;
  std::vector<int32_t> ids;  // the first that was read, and all that came
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
  line.value(
      "--rows", "N,N,...", "also time calls of the decoder with so many rows at each depth",
      [&](auto& flag, auto& value) { options.rows = whole_numbers(flag, value); });
  line.value(
      "--accepted", "P,P,...", "also decode with a draft that is right with so many percent, see below",
      [&](auto& flag, auto& value) { options.accepted = whole_numbers(flag, value); });
  line.draft_max(options.draft_max);
  line.value("--seed", "N", "decides which guesses are right (default: 0)", [&](auto& flag, auto& value) {
    options.seed = seed_number(flag, value);
  });
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
    for (const int rows : options.rows) {
      if (rows < 1 || rows > card.max_seq_len || depth > card.max_context_len - rows) {
        throw PromptError(
            "rows " + std::to_string(rows) + ": one call takes from 1 to " + std::to_string(card.max_seq_len) +
            ", as far as they fit into the context of " + context);
      }
    }
  }
  for (const int percent : options.accepted) {
    if (percent < 0 || percent > 100) {
      throw PromptError("accepted " + std::to_string(percent) + ": it must be from 0 to 100 percent");
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

// Times calls of the decoder with `count` rows at `depth`. Returns the median.
double time_rows(Program& program, int count, int depth) {
  const Rows rows = program.embed(some_ids(count, program.card()));
  std::vector<double> times;
  for (int i = 0; i < kCallsTimed; ++i) {
    Stage stage;
    stage.measure(1, [&] { program.decode(rows, depth); });
    times.push_back(stage.ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// Decodes the tokens again with a draft that knows them. Each of its guesses is right with `percent`.
nlohmann::ordered_json decode_with_draft(Program& program, const Decoding& plain, int percent, const Options& options) {
  Sampler greedy({});
  SpeculativeDecoding decoding(options.draft_max);
  std::mt19937_64 random(options.seed);
  Stage stage;
  int changed = 0;
  const int count = int(plain.ids.size()) - 1;
  for (int i = 0; i < count; ++i) {
    const auto guess = [&](int most) {
      std::vector<int32_t> ids(plain.ids.begin() + i + 1, plain.ids.begin() + i + 1 + most);
      for (int32_t& id : ids) {
        const bool is_right = random() % 100 < unsigned(percent);
        id = is_right ? id : (id + 1) % program.card().tokenizer_vocab_size;
      }
      return ids;
    };
    const int32_t next = stage.measure(1, [&] {
      return greedy.sample(
          decoding.logits_after(program, plain.ids[size_t(i)], plain.depth + i, count - i - 1, guess), {});
    });
    changed += next == plain.ids[size_t(i) + 1] ? 0 : 1;
  }
  return {
      {"depth", plain.depth},
      {"percent", percent},
      {"tokens", stage.count},
      {"ms", rounded(stage.ms)},
      {"drafted", decoding.drafted()},
      {"accepted", decoding.accepted()},
      {"changed", changed}};
}

void print(
    const Stage& load,
    const Stage& image,
    const Stage& prompt,
    const std::vector<Decoding>& decodings,
    const nlohmann::ordered_json& rows,
    const nlohmann::ordered_json& drafts) {
  nlohmann::ordered_json decode = nlohmann::ordered_json::array();
  for (const Decoding& decoding : decodings) {
    decode.push_back({{"depth", decoding.depth}, {"tokens", decoding.stage.count}, {"ms", rounded(decoding.stage.ms)}});
  }
  nlohmann::ordered_json line = {
      {"load_ms", rounded(load.ms)},
      {"image_ms", rounded(image.ms)},
      {"prompt_tokens", prompt.count},
      {"prompt_ms", rounded(prompt.ms)},
      {"decode", decode},
      {"peak_bytes", peak_memory()},
      {"anonymous_bytes", anonymous_memory()},
  };
  if (!rows.empty()) {
    line["rows"] = rows;
  }
  if (!drafts.empty()) {
    line["draft"] = drafts;
  }
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
  nlohmann::ordered_json rows = nlohmann::ordered_json::array(), drafts = nlohmann::ordered_json::array();
  for (const int depth : options.depths) {
    if (depth > depth_in_cache) {
      program.decode(program.embed(some_ids(depth, card)), 0);
    }
    depth_in_cache = std::max(depth, depth_in_cache);
    Decoding plain{depth, {}, {next}};
    for (int i = 0; i < options.decode_tokens; ++i) {
      next = plain.stage.measure(
          1, [&] { return greedy.sample(program.decode(program.embed(std::span(&next, 1)), depth + i), {}); });
      plain.ids.push_back(next);
    }
    for (const int percent : options.accepted) {
      drafts.push_back(decode_with_draft(program, plain, percent, options));
    }
    for (const int count : options.rows) {
      rows.push_back(
          {{"depth", depth},
           {"rows", count},
           {"calls", kCallsTimed},
           {"ms", rounded(time_rows(program, count, depth))}});
    }
    decodings.push_back(std::move(plain));
  }
  print(load, image, prompt, decodings, rows, drafts);
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
