// Runs one part of llava_main alone, for tests/integration/test_llava_main.py: input on stdin or in files, results as
// bytes on stdout.
//
//   parts image FILE IMAGE_SIZE HOW       the image that the vision encoder would get, as uint8 [3, H, W]
//   parts images IMAGE_SIZE HOW           the same for each path on stdin (ended by a zero byte): its length in a line,
//                                         then the bytes; or "refused" and the message in a line
//   parts pixels                          for each path on stdin (ended by a zero byte) a line with width and height
//   and
//                                         the bytes [H, W, 3], or a line with the error
//   parts encode TOKENIZER                for each string on stdin (ended by a zero byte) its ids, one line each
//   parts decode TOKENIZER                for each line of ids on stdin the bytes of the text in hex, one line each
//   parts prompt HAS_IMAGE                the chunks of the prompt on stdin, each ended by a zero byte
//   parts question HAS_IMAGE FIRST_TURN   the chunks of the question on stdin, likewise
//   parts card                            the largest side of the images that the model card on stdin is for
//   parts throw WHAT                      nothing: it ends as a program does that has a bug, or no memory left
#include <cstdio>
#include <iostream>
#include <iterator>
#include <new>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "base/errors.h"
#include "base/exit.h"
#include "image/prepare_image.h"
#include "text/prompt.h"
#include "text/tokenizer.h"

namespace llava {
namespace {

std::string everything_on_stdin() {
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

void write(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
}

std::string prepared(const std::string& path, const std::string& image_size, const std::string& how) {
  ModelCard card{};
  card.image_size = std::stoi(image_size);
  card.image_mean = {0.48145466, 0.4578275, 0.40821073};
  const ImageCHW image = prepare_image(read_image(path), card, how);
  return {image.bytes.begin(), image.bytes.end()};
}

void run(const std::vector<std::string>& arguments) {
  const std::string& part = arguments.at(0);
  if (part == "image") {
    write(prepared(arguments.at(1), arguments.at(2), arguments.at(3)));
  } else if (part == "images") {
    std::istringstream paths(everything_on_stdin());
    for (std::string path; std::getline(paths, path, '\0');) {
      try {
        const std::string bytes = prepared(path, arguments.at(1), arguments.at(2));
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
    const Tokenizer tokenizer = Tokenizer::open(arguments.at(1));
    std::istringstream strings(everything_on_stdin());
    for (std::string text; std::getline(strings, text, '\0');) {
      for (int32_t id : tokenizer.encode(text)) {
        write(std::to_string(id) + " ");
      }
      write("\n");
    }
  } else if (part == "decode") {
    const Tokenizer tokenizer = Tokenizer::open(arguments.at(1));
    for (std::string line; std::getline(std::cin, line);) {
      TextStream stream(tokenizer);
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
  } else if (part == "prompt" || part == "question") {
    const PromptTemplate layout{"System. ", "USER: ", " ASSISTANT:", "\n"};
    const std::string text = everything_on_stdin();
    const bool has_image = arguments.at(1) == "1";
    for (const std::string& chunk : part == "prompt"
                                        ? prompt_chunks(text, layout, has_image)
                                        : question_chunks(text, layout, has_image, arguments.at(2) == "1")) {
      write(chunk + '\0');
    }
  } else if (part == "card") {
    write(std::to_string(ModelCard::from_json(everything_on_stdin()).image_size));
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
