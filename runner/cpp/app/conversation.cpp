// Reads the lines of a conversation; see conversation.h.
#include "app/conversation.h"

#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "base/errors.h"
#include "base/files.h"
#include "text/prompt.h"
#include "text/utf8.h"

namespace llava {
namespace {

constexpr size_t kMaxLine = 1 << 16;  // bytes; no context holds a longer question

// Throws PromptError for a line that is not UTF-8 or has a zero byte.
void check_line(const std::string& line) {
  if (const size_t zero = line.find('\0'); zero != std::string::npos) {
    throw PromptError("the line has a zero byte, at byte " + std::to_string(zero));
  }
  for (size_t at = 0; at < line.size();) {
    const size_t length = character_length(std::string_view(line).substr(at));
    if (length == kInvalid || length == kIncomplete) {
      throw PromptError("the line is not UTF-8 at byte " + std::to_string(at));
    }
    at += length;
  }
}

// Returns the next line without its end, nullopt after the last. Throws PromptError for a line that cannot be used,
// which is then read to its end.
std::optional<std::string> read_line(std::FILE* lines) {
  std::string line;
  int byte;
  bool too_long = false;
  while ((byte = std::getc(lines)) != EOF && byte != '\n') {
    too_long = line.size() == kMaxLine;
    if (!too_long) {
      line.push_back(char(byte));
    }
  }
  if (byte == EOF && std::ferror(lines)) {
    throw UserError(std::string("stdin cannot be read: ") + std::strerror(errno));
  }
  if (too_long) {
    throw PromptError("the line has more than " + std::to_string(kMaxLine) + " bytes");
  }
  if (byte == EOF && line.empty()) {
    return std::nullopt;
  }
  line.erase(line.find_last_not_of('\r') + 1);
  check_line(line);
  return line;
}

Image open_image(const std::string& path) {
  if (path.empty()) {
    throw PromptError("/image takes the path of an image");
  }
  return read_image(with_home(path));
}

void print(std::FILE* stream, const std::string& text, const char* name) {
  if (std::fwrite(text.data(), 1, text.size(), stream) != text.size() || std::fflush(stream) != 0) {
    throw UserError(std::string(name) + " cannot be written: " + std::strerror(errno));
  }
}

}  // namespace

void show(const std::string& text) {
  print(stdout, text, "the output");
}

void note(const std::string& text) {
  print(stderr, text, "stderr");
}

void converse(
    std::FILE* lines,
    std::vector<Image> images,
    const std::function<void(const std::vector<Image>&, const std::string&)>& ask,
    const std::function<void()>& reset,
    const std::string& cue) {
  const auto take = [&](const std::string& line) {
    const size_t space = std::min(line.find_first_of(kSpaces), line.size());
    const std::string command = line.substr(0, space), rest = stripped(line.substr(space));
    if (command == "/reset") {
      reset();
      images.clear();
      note("note: all is forgotten, the image too\n");
    } else if (command == "/image") {
      Image opened = open_image(rest);  // may throw
      images.clear();
      images.push_back(std::move(opened));
      note("note: the next question is about " + rest + "\n");
    } else if (command.starts_with("/")) {
      throw PromptError(
          command + " is no command; /image PATH, /reset and /quit are. A space before it makes it a question.");
    } else if (stripped(line).empty()) {
      throw PromptError("the question is empty; /quit ends the conversation");
    } else {
      auto shown = std::exchange(images, {});
      try {
        ask(shown, line);
      } catch (const PromptError&) {
        images = std::move(shown);  // for the next question
        throw;
      }
    }
  };
  const auto complain = [](const UserError& error) { note(std::string("error: ") + error.what() + "\n"); };
  while (true) {
    show(cue);
    try {
      const auto line = read_line(lines);
      if (!line) {
        return show(cue.empty() ? "" : "\n");
      }
      if (line->substr(0, line->find_first_of(kSpaces)) == "/quit") {
        return;
      }
      take(*line);
    } catch (const PromptError& error) {
      complain(error);
    } catch (const ImageError& error) {
      complain(error);
    }
  }
}

}  // namespace llava
