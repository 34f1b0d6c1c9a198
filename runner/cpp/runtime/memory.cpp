// Reads the memory of this process from /proc/self/status.
#include "runtime/memory.h"

#include <fstream>
#include <string>

namespace llava {
namespace {

int64_t status_bytes(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(name + ":")) {
      return 1024 * std::stoll(line.substr(name.size() + 1));  // given in kB
    }
  }
  return 0;
}

}  // namespace

int64_t peak_memory() {
  return status_bytes("VmHWM");
}

int64_t anonymous_memory() {
  return status_bytes("RssAnon");
}

}  // namespace llava
