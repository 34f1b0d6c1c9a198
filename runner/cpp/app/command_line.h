// Flags and help of a program: one declaration of a flag gives both.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "runtime/open_program.h"

namespace CLI {
class App;
}

namespace llava {

// The command line of a program, by CLI11. A flag is spelled with hyphens; underscores are accepted, too, and so are
// both --name=value and --name value, where the value may begin with a hyphen. No flag can be abbreviated. A flag that
// is given twice has its last value, unless it collects its values.
class CommandLine {
 public:
  // Called with the flag, for messages, and its value.
  using Set = std::function<void(const std::string& flag, const std::string& value)>;

  // `usage` stands behind the program's name in the help, `footer` at the end as it is.
  CommandLine(const std::string& program, const std::string& usage, const std::string& description, std::string footer);
  ~CommandLine();

  // Puts the flags that are declared next under a heading of their own.
  void heading(const std::string& text);

  // Declares a flag with a value. `names` are separated by commas; help shows the first, and `placeholder` for the
  // value.
  void value(const std::string& names, const std::string& placeholder, const std::string& help, Set set);

  // Declares a flag that may be given several times. `set` is called with each value.
  void values(const std::string& names, const std::string& placeholder, const std::string& help, Set set);

  // Declares a flag whose value is a path. An empty one is a mistake.
  void value(const std::string& names, const std::string& placeholder, const std::string& help, std::string& text);

  // Declares a flag without a value. --name=false switches it off again, --name=true on.
  void toggle(const std::string& name, const std::string& help, bool& on);

  // Declare --model-path and --image, which all programs here have. The image is one, or may be several.
  void model(std::string& path);
  void image(std::string& path);
  void images(std::vector<std::string>& paths);

  // Declares --draft-max.
  void draft_max(int& most);

  // Declares how the model is computed: threads, packed weights, memory.
  void computation(ProgramOptions& options);

  // Reads the flags. Returns false where --help or --version was asked for and is printed. Throws UserError for flags
  // that do not exist, lack their value, or have one of the wrong kind.
  bool parse(int argc, const char* const* argv);

 private:
  std::vector<std::string> arguments(int argc, const char* const* argv) const;

  std::unique_ptr<CLI::App> app_;
};

// These throw UserError, which names the flag and mentions --help. llava_runner/arguments.py reads the same numbers.
[[noreturn]] void fail_option(const std::string& message);
std::string path_given(const std::string& flag, const std::string& text);  // ~ is the home folder
int whole_number(const std::string& flag, const std::string& text);
int positive_number(const std::string& flag, const std::string& text);
int number_within(const std::string& flag, const std::string& text, int least, int most);
std::vector<int> whole_numbers(const std::string& flag, const std::string& text);  // a list like 0,600
uint64_t seed_number(const std::string& flag, const std::string& text);
double real_number(const std::string& flag, const std::string& text);

// Returns the index of `value` in `choices`.
size_t one_of(const std::string& flag, const std::string& value, const std::vector<std::string>& choices);

}  // namespace llava
