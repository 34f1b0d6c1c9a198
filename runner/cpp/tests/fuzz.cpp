// The targets of libFuzzer, one for each kind of input that others may have made. Whatever the input, it must be read
// or refused with a UserError: soon, with little memory, and without an error that a sanitizer sees.
//
// LLAVA_FUZZ_TARGET in the environment names the target. -DLLAVA_FUZZ=ON builds this with clang, and `make fuzz` runs
// it.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "base/errors.h"
#include "image/formats/tensor_file.h"
#include "image/prepare_image.h"
#include "package/manifest.h"
#include "package/model_card.h"
#include "package/program_file.h"
#include "text/chat_tokenizer.h"
#include "text/prompt.h"
#include "text/tokenizer.h"

namespace llava {
namespace {

// Returns the path of a file with this content. It lies in memory: files on a disk would take most of the time.
std::string file_with(std::string_view content, const std::string& name) {
  static const std::filesystem::path folder = [] {
    std::string pattern = (std::filesystem::temp_directory_path() / "llava_fuzz_XXXXXX").string();
    return std::filesystem::path(mkdtemp(pattern.data()) ? pattern : "");
  }();
  static std::map<std::string, int> files;
  const auto [found, is_new] = files.try_emplace(name, -1);
  int& file = found->second;
  if (is_new) {
    file = memfd_create("input", MFD_CLOEXEC);
    std::filesystem::create_symlink("/proc/self/fd/" + std::to_string(file), folder / name);
  }
  if (ftruncate(file, 0) != 0 || pwrite(file, content.data(), content.size(), 0) != ssize_t(content.size())) {
    std::perror("the input cannot be written");
    std::abort();
  }
  return folder / name;
}

// With sanitizers, resizing the largest images takes longer than an input may.
constexpr int64_t kPreparedAtMost = 1 << 20;  // pixels

void image(std::string_view input) {
  const Image image = read_image(file_with(input, "image"));
  const ImageHWC* pixels = std::get_if<ImageHWC>(&image);
  if (!pixels || int64_t(pixels->width) * pixels->height > kPreparedAtMost) {
    return;
  }
  ModelCard card{};
  card.image_size = 112;
  card.image_resize = 128;
  card.image_resample = "lanczos";
  for (const std::string& image_aspect_ratio : kImageAspectRatios) {
    prepare_image(image, card, image_aspect_ratio);
  }
}

void tensor(std::string_view input) {
  read_tensor_file(file_with(input, "image.pt"));
}

void tokenizer(std::string_view input) {
  const std::unique_ptr<Tokenizer> tokenizer = Tokenizer::open(file_with(input, "tokenizer.bin"));
  TextStream stream(*tokenizer);
  for (const int32_t id : tokenizer->encode("What is in the image? \xC3\xA4\xF0\x9F\x99\x82 <image>")) {
    stream.push(id);
  }
  stream.flush();
}

// Returns a tokenizer with all bytes, some ordinary pieces, and some that were added.
std::unique_ptr<Tokenizer> some_tokenizer() {
  std::string file;
  const auto append = [&file](const auto& value) { file.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
  const std::string_view added[] = {"<unk>", "<s>", "</s>", "<image>", "  ", "<imag"};
  const std::string_view ordinary[] = {" ", "a", " a", "aa", " aa", "an", "is", " is", "\xC3\xA4", "\xC3\xA4\xC3\xA4"};
  append(uint32_t(std::size(added) + 256 + std::size(ordinary)));
  append(uint32_t(1));
  append(uint32_t(2));
  append(uint32_t(8));
  const auto append_piece = [&](std::string_view text, float score) {
    append(score);
    append(uint32_t(text.size()));
    file += text;
  };
  for (const std::string_view text : added) {
    append_piece(text, 0);
  }
  for (int byte = 0; byte < 256; ++byte) {
    char text[7];
    std::snprintf(text, sizeof(text), "<0x%02X>", unsigned(byte));
    append_piece(text, 0);
  }
  float score = 0;
  for (const std::string_view text : ordinary) {
    append_piece(text, -++score);
  }
  return Tokenizer::open(file_with(file, "tokenizer.bin"));
}

// Added tokens of every kind, some of them in the template.
TokenizerRules rules(PrependScheme scheme) {
  return {
      .prepend_scheme = scheme,
      .image_begins_text = scheme == PrependScheme::kAlways,
      .adds_bos = true,
      .added_tokens = {
          {1, "<s>", true, false, false, false},
          {2, "</s>", true, true, false, false},
          {3, "[A]", false, true, true, false},
          {4, "[A][A]", false, false, false, false},
          {5, " \n", false, true, true, true},
          {6, "\u00e9", false, false, true, true},
      }};
}

// The first byte chooses what is asked, and the rest is the prompt. Then its bytes are taken for tokens.
void prompt(std::string_view input) {
  static const ChatTokenizer tokenizers[] = {
      {some_tokenizer(), rules(PrependScheme::kFirst), 1},
      {some_tokenizer(), rules(PrependScheme::kAlways), 1},
      {some_tokenizer(), rules(PrependScheme::kNever), 1},
      {some_tokenizer(), rules(PrependScheme::kPrepend), 1}};
  const uint8_t choice = input.empty() ? 0 : uint8_t(input.front());
  const ChatTokenizer& tokenizer = tokenizers[choice >> 6];
  const std::string text(input.substr(std::min<size_t>(input.size(), 1)));
  TextStream stream(tokenizer);
  for (const char byte : text) {
    stream.push(int32_t(uint8_t(byte)) + (choice & 4 ? 20 : 0));
  }
  stream.flush();
  const PromptTemplate layout{
      .system = "<s>System. ",
      .user = "USER: ",
      .assistant = choice & 8 ? "" : " ASSISTANT:",
      .image_separator = "\n",
      .image_start = choice & 4 ? "[A]" : "",
      .image_end = choice & 4 ? "</s>" : "",
      .answer_end = "</s>",
      .image_last = bool(choice & 32),
      .trims = bool(choice & 8)};
  const int num_images = choice & 1 ? 1 + (choice >> 6) : 0;
  const bool first_turn = choice & 16;
  const auto chunks =
      choice & 2 ? prompt_chunks(text, layout, num_images) : question_chunks(text, layout, num_images, first_turn);
  for (const auto& ids : tokenizer.encode_turn(chunks, first_turn ? std::nullopt : std::optional(7))) {
    for (const int32_t id : ids) {
      stream.push(id);
    }
  }
}

// Returns a tokenizer.json with all bytes and some merges, which splits text by a list of steps in JSON.
std::string some_byte_level_file(const std::string& steps) {
  std::string vocab, merges;
  const auto add = [&](const std::string& token) {
    static int next_id = 0;
    vocab += (vocab.empty() ? "" : ", ") + nlohmann::json(token).dump() + ": " + std::to_string(next_id++ % 300);
  };
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool is_printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    const int point = is_printable ? byte : next++;
    add(point < 0x80 ? std::string(1, char(point)) : std::string{char(0xC0 | point >> 6), char(0x80 | (point & 0x3F))});
  }
  for (int i = 0; i < 44; ++i) {  // runs of each letter from a on
    const std::string letter(1, char('a' + i % 11)), run(size_t(1 + i / 11), letter[0]);
    add(run + letter);
    merges += (merges.empty() ? "[\"" : ", [\"") + run + "\", \"" + letter + "\"]";
  }
  return R"({"model": {"type": "BPE", "vocab": {)" + vocab + "}, \"merges\": [" + merges +
         R"(]}, "normalizer": {"type": "NFC"}, "decoder": {"type": "ByteLevel"},)" +
         R"("pre_tokenizer": {"type": "Sequence", "pretokenizers": [)" + steps + "]}}";
}

// The same with byte-level BPE. The first byte chooses how text is split and who wrote it.
void byte_level(std::string_view input) {
  const auto make = [](const std::string& steps) {
    return ChatTokenizer(
        Tokenizer::open(file_with(some_byte_level_file(steps), "tokenizer.json")), rules(PrependScheme::kNever), 1);
  };
  static const ChatTokenizer tokenizers[] = {
      make(
          R"({"type": "Split", "behavior": "Isolated", "pattern": {"Regex": "(?i:'s|'ll)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|)"
          R"(\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},)"
          R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false})"),
      make(
          R"({"type": "Digits", "individual_digits": true},)"
          R"({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true})"),
  };
  const uint8_t choice = input.empty() ? 0 : uint8_t(input.front());
  const ChatTokenizer& tokenizer = tokenizers[choice & 1];
  const std::string text(input.substr(std::min<size_t>(input.size(), 1)));
  TextStream stream(tokenizer);
  for (const char byte : text) {
    stream.push(int32_t(uint8_t(byte)));
  }
  stream.flush();
  size_t middle = std::min<size_t>(choice >> 2, text.size());
  while (middle < text.size() && (uint8_t(text[middle]) & 0xC0) == 0x80) {  // spans have whole characters
    ++middle;
  }
  const bool begins_with_user = choice & 2;
  const Chunk chunk{{text.substr(0, middle), !begins_with_user}, {text.substr(middle), begins_with_user}};
  for (const auto& ids : tokenizer.encode_turn({chunk}, std::nullopt)) {
    for (const int32_t id : ids) {
      stream.push(id);
    }
  }
  stream.flush();
}

void card(std::string_view input) {
  ModelCard::from_json(std::string(input));
}

void program(std::string_view input) {
  const std::string path = file_with(input, "llava.pte");
  check_program_file(path);
  const ProgramStructure structure(path);
  structure.uses_xnnpack();
  structure.sees_images();
}

void manifest(std::string_view input) {
  static const std::string program = file_with("program", "llava.pte");
  file_with(input, "llava.json");
  check_structure(program, std::string(64, '0'));
  check_whole_program(program);
}

using Target = void (*)(std::string_view);

constexpr std::pair<const char*, Target> kTargets[] = {
    {"image", image},           {"tensor", tensor}, {"tokenizer", tokenizer}, {"prompt", prompt},
    {"byte_level", byte_level}, {"card", card},     {"program", program},     {"manifest", manifest},
};

Target chosen_target() {
  const char* name = std::getenv("LLAVA_FUZZ_TARGET");
  for (const auto& [known, target] : kTargets) {
    if (name && std::string_view(name) == known) {
      return target;
    }
  }
  std::fprintf(stderr, "LLAVA_FUZZ_TARGET is not set to a target\n");
  std::exit(2);
}

}  // namespace
}  // namespace llava

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const llava::Target target = llava::chosen_target();
  try {
    target({reinterpret_cast<const char*>(data), size});
  } catch (const llava::UserError&) {
  }
  return 0;
}
