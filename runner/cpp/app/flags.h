// Command lines of the form --name=value or --name value, and --name for switches.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "runtime/open_program.h"

namespace llava {

class Flags {
 public:
  // `set` is given the flag, for its messages, and the value.
  using Set = std::function<void(const std::string& flag, const std::string& value)>;

  void value(const std::string& name, Set set) { values_[name] = std::move(set); }
  void toggle(const std::string& name, bool& on) { switches_[name] = &on; }

  // How every program here opens a model.
  void program(ProgramOptions& options);

  // --help, and -h, end the parsing: false then. Throws UserError for flags that do not exist, lack their value, or have
  // one of the wrong kind.
  bool parse(int argc, const char* const* argv) const;

 private:
  std::map<std::string, Set> values_;
  std::map<std::string, bool*> switches_;
};

// All throw UserError, which names the flag and mentions --help.
[[noreturn]] void fail_option(const std::string& message);
int whole_number(const std::string& flag, const std::string& text);
uint64_t seed_number(const std::string& flag, const std::string& text);
double real_number(const std::string& flag, const std::string& text);
size_t one_of(const std::string& flag, const std::string& value, const std::vector<std::string>& choices);

}  // namespace llava
