// Runs one part of llava_main alone, for tests/integration/test_llava_main.py: input on stdin or in files, results as
// bytes on stdout.
//
//   parts image FILE IMAGE_SIZE HOW       the image that the vision encoder would get, as uint8 [3, H, W]
//   parts images IMAGE_SIZE HOW           the same for each path on stdin (ended by a zero byte): its length in a line,
//                                         then the bytes; or "refused" and the message in a line
//   parts pixels                          for each path on stdin (ended by a zero byte) a line with width and height,
//                                         and the bytes [H, W, 3]; or a line with the error
//   parts encode TOKENIZER                for each string on stdin (ended by a zero byte) its ids, one line each
//   parts decode TOKENIZER                for each line of ids on stdin the bytes of the text in hex, one line each
//   parts speed TOKENIZER                 the milliseconds that opening takes, and encoding the text on stdin: medians
//                                         of 9
//   parts turn TOKENIZER                  the texts and ids of the turns on stdin, as the card there says
//   parts card                            the largest side of the images that the model card on stdin is for
//   parts sample                          for each line of JSON on stdin the probabilities of its logits
//   parts logprobs                        for each line of JSON on stdin, how likely a token is by its logits
//   parts stop TOKENIZER                  for each line of JSON on stdin, how its ids are shown up to a stop string
//   parts look_up                         for each line of JSON on stdin, the guess that its ids have
//   parts draft_length                    for each line of JSON on stdin, the lengths of the guesses it records
//   parts json                            the JSON of an answer that has the text on stdin
//   parts throw WHAT                      nothing: it ends as a program does that has a bug, or no memory left
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <functional>
#include <iostream>
#include <iterator>
#include <limits>
#include <new>
#include <sstream>
#include <stdexcept>
#include <thread>

#include <nlohmann/json.hpp>

#include "app/answer_json.h"
#include "base/errors.h"
#include "base/exit.h"
#include "image/prepare_image.h"
#include "runtime/draft.h"
#include "runtime/logprobs.h"
#include "runtime/sampler.h"
#include "text/chat_tokenizer.h"
#include "text/prompt.h"
#include "text/stop_strings.h"
#include "text/tokenizer.h"

namespace llava {
namespace {

std::string everything_on_stdin() {
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

void write(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
}

// Prepares an image. After the path come image_size, image_aspect_ratio, and perhaps image_resize and image_resample.
std::string prepared(const std::string& path, const std::vector<std::string>& how) {
  ModelCard card{};
  card.image_size = std::stoi(how.at(0));
  card.image_mean = {0.48145466, 0.4578275, 0.40821073};
  card.image_resize = how.size() > 2 ? std::stoi(how[2]) : card.image_size;
  card.image_resample = how.size() > 3 ? how[3] : "bicubic";
  const ImageCHW image = prepare_image(read_image(path), card, how.at(1));
  return {image.bytes.begin(), image.bytes.end()};
}

// Returns how long a processor works for a call.
double median_ms(const std::function<void()>& call) {
  std::vector<double> times;
  for (int i = 0; i < 9; ++i) {
    const std::clock_t start = std::clock();
    call();
    times.push_back(1000.0 * double(std::clock() - start) / CLOCKS_PER_SEC);
  }
  std::nth_element(times.begin(), times.begin() + 4, times.end());
  return times[4];
}

// Returns the logits in a line. JSON has no infinity: null stands for a token that cannot come.
std::vector<float> logits_in(const nlohmann::json& line) {
  std::vector<float> logits;
  for (const auto& logit : line.at("logits")) {
    logits.push_back(logit.is_null() ? -std::numeric_limits<float>::infinity() : logit.get<float>());
  }
  return logits;
}

// Returns the probabilities that a line's options make of its logits after its context, and a token that is chosen.
nlohmann::json sampled(const nlohmann::json& line) {
  SamplingOptions options{
      .temperature = line.value("temperature", 0.0),
      .top_p = line.value("top_p", 1.0),
      .top_k = line.value("top_k", 0),
      .min_p = line.value("min_p", 0.0),
      .repetition_penalty = line.value("repetition_penalty", 1.0),
      .seed = line.value("seed", uint64_t{0}),
  };
  const std::vector<float> logits = logits_in(line);
  const std::vector<int32_t> context = line.at("context");
  Sampler sampler(options);
  const bool is_greedy = options.temperature == 0;
  return {
      {"chosen", sampler.sample(logits, context)},
      {"probabilities", is_greedy ? std::vector<double>() : sampler.probabilities(logits, context)},
  };
}

nlohmann::json likely(const nlohmann::json& line) {
  const TokenLogprobs found = token_logprobs(logits_in(line), line.at("id"), line.at("count"));
  auto top = nlohmann::json::array();
  for (const Logprob& token : found.top) {
    top.push_back({{"id", token.id}, {"logprob", token.logprob}});
  }
  return {{"id", found.chosen.id}, {"logprob", found.chosen.logprob}, {"top", top}};
}

// Returns the pieces that are shown of a line's ids, as a session shows them, and how many ids are taken.
nlohmann::json stopped(const Tokenizer& tokenizer, const nlohmann::json& line) {
  StopStrings stops(line.at("stops").get<std::vector<std::string>>());
  TextStream stream(tokenizer);
  auto pieces = nlohmann::json::array();
  int taken = 0;
  for (const int32_t id : line.at("ids").get<std::vector<int32_t>>()) {
    const std::string text = stream.push(id);
    pieces.push_back(stops.push(text, stream.dropped()));
    ++taken;
    if (stops.found()) {
      break;
    }
  }
  if (!stops.found()) {
    pieces.push_back(stops.finish(stream.flush()));
  }
  return {{"pieces", pieces}, {"taken", taken}, {"found", stops.found()}};
}

// Returns what is guessed to follow a line's ids.
nlohmann::json looked_up(const nlohmann::json& line) {
  return {{"guess", look_up(line.at("ids").get<std::vector<int32_t>>(), line.at("most"))}};
}

// Returns how long a line's guesses are: each was right so far as `right` says, where it was as long.
nlohmann::json draft_lengths(const nlohmann::json& line) {
  DraftLength length(line.at("most"));
  auto lengths = nlohmann::json::array();
  for (const int right : line.at("right").get<std::vector<int>>()) {
    const int guessed = length.next();
    lengths.push_back(guessed);
    if (guessed > 0) {
      length.record(guessed, std::min(guessed, right));
    }
  }
  return {{"lengths", lengths}};
}

// Writes what `answer` makes of each line of JSON on stdin, or its error.
void for_each_line(const std::function<nlohmann::json(const nlohmann::json&)>& answer) {
  for (std::string line; std::getline(std::cin, line);) {
    nlohmann::json found;
    try {
      found = answer(nlohmann::json::parse(line));
    } catch (const PromptError& error) {
      found["error"] = error.what();
    }
    write(found.dump(-1, ' ', true) + "\n");
  }
}

void run(const std::vector<std::string>& arguments) {
  const std::string& part = arguments.at(0);
  if (part == "image") {
    write(prepared(arguments.at(1), {arguments.begin() + 2, arguments.end()}));
  } else if (part == "images") {
    std::istringstream paths(everything_on_stdin());
    for (std::string path; std::getline(paths, path, '\0');) {
      try {
        const std::string bytes = prepared(path, {arguments.begin() + 1, arguments.end()});
        write(std::to_string(bytes.size()) + "\n" + bytes);
      } catch (const UserError& error) {
        write("refused " + std::string(error.what()) + "\n");
      }
    }
  } else if (part == "pixels") {
    std::istringstream paths(everything_on_stdin());
    for (std::string path; std::getline(paths, path, '\0');) {
      try {
        const auto image = std::get<ImageHWC>(read_image(path));
        write(std::to_string(image.width) + " " + std::to_string(image.height) + "\n");
        write(std::string(image.bytes.begin(), image.bytes.end()));
      } catch (const ImageError& error) {
        write(std::string("error: ") + error.what() + "\n");
      }
    }
  } else if (part == "encode") {
    const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::open(arguments.at(1));
    std::istringstream strings(everything_on_stdin());
    for (std::string text; std::getline(strings, text, '\0');) {
      for (int32_t id : tokenizer->encode(text)) {
        write(std::to_string(id) + " ");
      }
      write("\n");
    }
  } else if (part == "decode") {
    const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::open(arguments.at(1));
    for (std::string line; std::getline(std::cin, line);) {
      TextStream stream(*tokenizer);
      std::istringstream ids(line);
      std::string text;
      for (int32_t id; ids >> id;) {
        text += stream.push(id);
      }
      text += stream.flush();
      for (uint8_t byte : text) {
        std::printf("%02x", byte);
      }
      write("\n");
    }
  } else if (part == "speed") {
    const std::string text = everything_on_stdin();
    const double opening = median_ms([&] { Tokenizer::open(arguments.at(1)); });
    const auto tokenizer = Tokenizer::open(arguments.at(1));
    write(std::to_string(opening) + " " + std::to_string(median_ms([&] { tokenizer->encode(text); })) + "\n");
  } else if (part == "turn") {
    // A card, a zero byte, and turns in JSON, one a line: text, whether it is a question, how many images it has, and
    // the token that it comes after. The text of each chunk and its ids are written as JSON.
    const std::string input = everything_on_stdin();
    const size_t end = input.find('\0');
    const ModelCard card = ModelCard::from_json(input.substr(0, end));
    const ChatTokenizer tokenizer(Tokenizer::open(arguments.at(1)), card.tokenizer, card.bos_id);
    std::istringstream lines(input.substr(end + 1));
    for (std::string line; std::getline(lines, line);) {
      const auto turn = nlohmann::json::parse(line);
      const std::string text = turn.at("text");
      const int num_images = turn.at("num_images");
      const bool first_turn = turn.at("before").is_null();
      const auto chunks = turn.at("is_question") ? question_chunks(text, card.prompt, num_images, first_turn)
                                                 : prompt_chunks(text, card.prompt, num_images);
      auto texts = nlohmann::json::array();
      for (const Chunk& chunk : chunks) {
        texts.push_back("");
        for (const Span& span : chunk) {
          texts.back() = texts.back().get<std::string>() + span.text;
        }
      }
      const auto before = first_turn ? std::nullopt : std::optional<int32_t>(turn.at("before"));
      const auto ids = tokenizer.encode_turn(chunks, before);
      TextStream stream(tokenizer);
      std::string shown;
      for (const int32_t id : turn.at("answer").get<std::vector<int32_t>>()) {
        shown += stream.push(id);
      }
      write(nlohmann::json({{"texts", texts}, {"ids", ids}, {"shown", shown + stream.flush()}}).dump() + "\n");
    }
  } else if (part == "card") {
    write(std::to_string(ModelCard::from_json(everything_on_stdin()).image_size));
  } else if (part == "sample") {
    for_each_line(sampled);
  } else if (part == "logprobs") {
    for_each_line(likely);
  } else if (part == "look_up") {
    for_each_line(looked_up);
  } else if (part == "draft_length") {
    for_each_line(draft_lengths);
  } else if (part == "stop") {
    const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::open(arguments.at(1));
    for_each_line([&](const nlohmann::json& line) { return stopped(*tokenizer, line); });
  } else if (part == "json") {
    AnswerRecord answer{
        .text = everything_on_stdin(), .ids = {1, 2}, .stop_reason = "eos", .timings = {}, .logprobs = {}};
    write(answer_json(answer));
  } else if (part == "throw") {
    if (arguments.at(1) == "memory") {
      throw std::bad_alloc();
    } else if (arguments.at(1) == "bug") {
      throw std::logic_error("index 7\nof 3");
    } else if (arguments.at(1) == "thread") {
      std::thread([] { throw std::logic_error("index 7\nof 3"); }).join();
    }
    throw 5;
  }
}

}  // namespace
}  // namespace llava

int main(int argc, char** argv) {
  return llava::exit_cleanly([&] { llava::run({argv + 1, argv + argc}); });
}
