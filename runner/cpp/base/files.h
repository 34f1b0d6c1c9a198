// Reads whole files.
#pragma once

#include <sys/stat.h>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>

namespace llava {

// Returns the content of a file. Throws `Error` for what is missing, no file, or cannot be read.
template <typename Error>
std::string read_file(const std::string& path) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) {
    throw Error(path + (errno == ENOENT ? " does not exist" : std::string(": ") + std::strerror(errno)));
  }
  if (!S_ISREG(info.st_mode)) {
    throw Error(path + " is not a file");
  }
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  if (info.st_size > 0 && !(content << file.rdbuf())) {
    throw Error(path + " cannot be read: " + std::strerror(errno));
  }
  return std::move(content).str();
}

}  // namespace llava
