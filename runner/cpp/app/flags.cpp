#include "app/flags.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "base/errors.h"

namespace llava {
namespace {

template <typename T>
T number(const std::string& flag, const std::string& text, T (*parse)(const char*, char**)) {
  char* end = nullptr;
  errno = 0;
  const T value = parse(text.c_str(), &end);
  if (text.empty() || *end != '\0' || errno == ERANGE) {
    fail_option(flag + " '" + text + "' is not a number");
  }
  return value;
}

}  // namespace

void fail_option(const std::string& message) {
  throw UserError(message + "; --help lists the options");
}

int whole_number(const std::string& flag, const std::string& text) {
  const long value = number<long>(flag, text, [](const char* from, char** end) { return std::strtol(from, end, 10); });
  if (value < INT32_MIN || value > INT32_MAX) {
    fail_option(flag + " " + text + " is out of range");
  }
  return int(value);
}

uint64_t seed_number(const std::string& flag, const std::string& text) {
  if (text.starts_with("-")) {
    fail_option(flag + " " + text + ": it must be from 0 to 2^64 - 1");
  }
  return number<unsigned long long>(
      flag, text, [](const char* from, char** end) { return std::strtoull(from, end, 10); });
}

double real_number(const std::string& flag, const std::string& text) {
  return number<double>(flag, text, [](const char* from, char** end) { return std::strtod(from, end); });
}

size_t one_of(const std::string& flag, const std::string& value, const std::vector<std::string>& choices) {
  const auto found = std::find(choices.begin(), choices.end(), value);
  if (found == choices.end()) {
    std::string names;
    for (const std::string& choice : choices) {
      names += (names.empty() ? "" : ", ") + choice;
    }
    fail_option(flag + " '" + value + "': choose from " + names);
  }
  return size_t(found - choices.begin());
}

void Flags::program(ProgramOptions& options) {
  value("--model_path", [&](auto&, auto& value) { options.model_path = value; });
  value("--packed_cache_path", [&](auto&, auto& value) { options.packed_cache_path = value; });
  value("--cpu_threads", [&](auto& flag, auto& value) {
    options.load.cpu_threads = whole_number(flag, value);
    if (options.load.cpu_threads < 0) {
      fail_option(flag + " " + value + ": it must be 1 or more");
    }
  });
  value("--workspace_sharing", [&](auto& flag, auto& value) {
    options.load.workspace_sharing = WorkspaceSharing(one_of(flag, value, {"disabled", "per_model", "global"}));
  });
}

bool Flags::parse(int argc, const char* const* argv) const {
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(0, equals);
    if (name == "--help" || name == "-h") {
      return false;
    }
    if (const auto found = switches_.find(name); found != switches_.end()) {
      *found->second = true;
      continue;
    }
    const auto found = values_.find(name);
    if (found == values_.end()) {
      fail_option("there is no option " + name);
    }
    if (equals == std::string::npos && i + 1 == argc) {
      fail_option(name + " needs a value");
    }
    found->second(name, equals == std::string::npos ? argv[++i] : argument.substr(equals + 1));
  }
  return true;
}

}  // namespace llava
