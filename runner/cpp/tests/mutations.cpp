// Reads damaged files of every kind that llava_main reads: each must be read or refused with a UserError, without an
// error of memory. To be built with sanitizers (-DLLAVA_SANITIZE=ON).
//
//   mutations COUNT FILE...     reads COUNT damaged forms of each file, always the same
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <random>
#include <string>

#include "base/errors.h"
#include "base/files.h"
#include "image/prepare_image.h"
#include "package/model_card.h"
#include "package/program_file.h"
#include "text/tokenizer.h"

namespace llava {
namespace {

// Returns the content damaged: some bytes changed, a piece cut out or repeated, or the end missing. Half of the damage
// is in the first bytes, where lengths and counts often lie.
std::string damaged(std::string content, std::mt19937_64& random) {
  const auto below = [&](size_t bound) { return bound ? random() % bound : 0; };
  const auto place = [&] { return below(2) ? below(content.size()) : below(std::min<size_t>(content.size(), 128)); };
  switch (below(4)) {
    case 0:
      content.resize(below(content.size()));
      break;
    case 1: {
      const size_t from = place();
      content.erase(from, below(64));
      break;
    }
    case 2: {
      const size_t from = place();
      content.insert(place(), content.substr(from, below(64)));
      break;
    }
    default:
      for (size_t i = 1 + below(8); i > 0 && !content.empty(); --i) {
        const uint8_t values[] = {0, 0xFF, 0x7F, 0x80, uint8_t(random())};
        content[place()] = char(values[below(std::size(values))]);
      }
  }
  return content;
}

// Reads the file as what it is, and uses what was read.
void read(const std::string& path, const std::string& suffix) {
  if (suffix == ".bin") {
    const Tokenizer tokenizer = Tokenizer::open(path);
    TextStream stream(tokenizer);
    for (const int32_t id : tokenizer.encode("What is in the image? \xC3\xA4\xF0\x9F\x99\x82")) {
      stream.push(id);
    }
    stream.flush();
  } else if (suffix == ".pte") {
    digest_of_structure(path);
  } else if (suffix == ".json") {
    ModelCard::from_json(read_file<PackageError>(path));
  } else {
    ModelCard card{};
    card.image_size = 112;
    prepare_image(read_image(path), card, "pad");
  }
}

int run(int count, const std::string& original) {
  const std::string content = read_file<UserError>(original);
  const std::string suffix = original.substr(std::min(original.rfind('.'), original.size()));
  std::mt19937_64 random(content.size());
  int refused = 0;
  for (int i = 0; i < count; ++i) {
    const std::string bytes = damaged(content, random);
    const int file = memfd_create("damaged", 0);
    if (file < 0 || write(file, bytes.data(), bytes.size()) != ssize_t(bytes.size())) {
      std::perror("memfd");
      return 1;
    }
    // A file with a tensor is told from an image file by its name.
    const std::string path = "/tmp/mutation" + std::to_string(getpid()) + suffix;
    unlink(path.c_str());
    if (symlink(("/proc/self/fd/" + std::to_string(file)).c_str(), path.c_str()) != 0) {
      std::perror("symlink");
      return 1;
    }
    try {
      read(path, suffix);
    } catch (const UserError&) {
      ++refused;
    }
    unlink(path.c_str());
    close(file);
  }
  std::printf("%s: %d damaged forms, %d refused\n", original.c_str(), count, refused);
  return 0;
}

}  // namespace
}  // namespace llava

int main(int argc, char** argv) {
  int code = argc < 3 ? 2 : 0;
  for (int i = 2; i < argc; ++i) {
    code |= llava::run(std::atoi(argv[1]), argv[i]);
  }
  return code;
}
