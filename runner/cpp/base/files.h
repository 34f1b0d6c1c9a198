// Paths, and whole files.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "base/descriptor.h"

namespace llava {

// Reads `size` bytes of an open file, from `offset` on. Returns false where that fails.
inline bool read_at(int file, void* to, uint64_t size, uint64_t offset) {
  auto* next = static_cast<uint8_t*>(to);
  while (size > 0) {
    const ssize_t count = pread(file, next, size, off_t(offset));
    if (count <= 0) {
      return false;
    }
    next += count;
    size -= uint64_t(count);
    offset += uint64_t(count);
  }
  return true;
}

// Returns a path with the user's home folder in place of ~ at its beginning. A shell does so, but not in --flag=~/path.
inline std::string with_home(const std::string& path) {
  const char* home = std::getenv("HOME");
  return home && (path == "~" || path.starts_with("~/")) ? home + path.substr(1) : path;
}

// Throws `Error` for what is missing, or no file. Opening a pipe would wait, and a device has no end.
template <typename Error>
void check_is_file(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    throw Error(path + (errno == ENOENT ? " does not exist" : std::string(": ") + std::strerror(errno)));
  }
  if (!S_ISREG(info.st_mode)) {
    throw Error(path + " is not a file");
  }
}

// Returns the content of a file. Throws `Error` for what is missing, no file, of more bytes than `at_most`, or cannot
// be read.
template <typename Error>
std::string read_file(const std::string& path, uint64_t at_most) {
  check_is_file<Error>(path);
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat info;
  const bool opened = file && fstat(file.number(), &info) == 0;
  const uint64_t size = opened ? uint64_t(info.st_size) : 0;
  std::string content(size <= at_most ? size : 0, '\0');
  uint64_t have = 0;
  ssize_t count = opened ? 1 : -1;
  while (count > 0 && have < content.size()) {
    count = read(file.number(), content.data() + have, content.size() - have);
    have += count > 0 ? uint64_t(count) : 0;
  }
  if (count < 0) {
    throw Error(path + " cannot be read: " + std::strerror(errno));
  }
  if (size > at_most) {
    throw Error(
        path + " is too large: " + std::to_string(size) + " bytes; at most " + std::to_string(at_most) + " are read");
  }
  content.resize(have);
  return content;
}

}  // namespace llava
