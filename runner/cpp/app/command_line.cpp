// Flags and help by CLI11; see command_line.h.
#include "app/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <sstream>

#include "base/errors.h"
#include "base/files.h"
#include "runtime/draft.h"

namespace llava {
namespace {

constexpr size_t kColumns = 80;
constexpr size_t kFlagColumns = 28;  // the longest flag with its placeholder, and what sets it off

constexpr const char* kImageFlags = "--image,--image-path";
constexpr const char* kImageHelp =
    "a JPEG, PNG, WebP, GIF, BMP, TIFF or PPM file, or a .pt file with a uint8 [3, H, W] tensor";

// Breaks text into lines of at most kColumns, all but the first indented.
std::string wrapped(const std::string& text, size_t indent) {
  std::string out;
  size_t column = indent;
  std::istringstream words(text);
  for (std::string word; words >> word;) {
    if (column > indent && column + 1 + word.size() > kColumns) {
      out += "\n" + std::string(indent, ' ');
      column = indent;
    }
    out += column > indent ? " " + word : word;
    column += word.size() + (column > indent ? 1 : 0);
  }
  return out;
}

// Lays the help out for a terminal of kColumns columns.
class Formatter : public CLI::Formatter {
 public:
  explicit Formatter(const std::string& usage) : usage_(usage) { column_width(kFlagColumns); }

  std::string make_help(const CLI::App* app, std::string, CLI::AppFormatMode mode) const override {
    return "usage: " + app->get_name() + " " + usage_ + "\n\n" + wrapped(app->get_description(), 0) + "\n\n" +
           make_groups(app, mode) + "\n" + app->get_footer();
  }

  std::string make_group(std::string group, bool, std::vector<const CLI::Option*> options) const override {
    std::string out = group + ":\n";
    for (const CLI::Option* option : options) {
      const auto& shorts = option->get_snames();
      std::string flag =
          "  " + (shorts.empty() ? "" : "-" + shorts.front() + ", ") + "--" + option->get_lnames().front();
      if (option->get_items_expected_max() > 0) {
        flag += " " + option->get_type_name();
      }
      flag.resize(std::max(flag.size() + 2, kFlagColumns), ' ');
      out += flag + wrapped(option->get_description(), kFlagColumns) + "\n";
    }
    return out;
  }

 private:
  std::string usage_;
};

// Returns where the sign ends, if there is one at `at`.
size_t after_sign(const std::string& text, size_t at) {
  return at < text.size() && (text[at] == '+' || text[at] == '-') ? at + 1 : at;
}

// Returns where the digits end that begin at `at`.
size_t after_digits(const std::string& text, size_t at) {
  return std::min(text.find_first_not_of("0123456789", at), text.size());
}

bool is_whole(const std::string& text) {
  const size_t digits = after_sign(text, 0);
  return digits < text.size() && after_digits(text, digits) == text.size();
}

bool is_real(const std::string& text) {
  const size_t begin = after_sign(text, 0);
  size_t at = after_digits(text, begin);
  size_t digits = at - begin;
  if (at < text.size() && text[at] == '.') {
    const size_t end = after_digits(text, at + 1);
    digits += end - (at + 1);
    at = end;
  }
  if (at < text.size() && (text[at] == 'e' || text[at] == 'E')) {
    const size_t exponent = after_sign(text, at + 1);
    at = after_digits(text, exponent);
    digits = at == exponent ? 0 : digits;
  }
  return digits > 0 && at == text.size();
}

void check_whole(const std::string& flag, const std::string& text) {
  if (!is_whole(text)) {
    fail_option(flag + ": '" + text + "' is not a whole number");
  }
}

}  // namespace

void fail_option(const std::string& message) {
  throw UserError(message + "; --help lists the options");
}

std::string path_given(const std::string& flag, const std::string& text) {
  if (text.empty()) {  // most often a variable of the shell that is not set
    fail_option(flag + ": the path is empty");
  }
  return with_home(text);
}

int whole_number(const std::string& flag, const std::string& text) {
  check_whole(flag, text);
  errno = 0;
  const long long value = std::strtoll(text.c_str(), nullptr, 10);
  if (errno == ERANGE || value < -INT32_MAX || value > INT32_MAX) {
    fail_option(flag + ": " + text + " is out of range");
  }
  return int(value);
}

int positive_number(const std::string& flag, const std::string& text) {
  const int value = whole_number(flag, text);
  if (value < 1) {
    fail_option(flag + ": " + std::to_string(value) + " must be at least 1");
  }
  return value;
}

int number_within(const std::string& flag, const std::string& text, int least, int most) {
  const int value = whole_number(flag, text);
  if (value < least || value > most) {
    fail_option(
        flag + ": " + std::to_string(value) + " must be from " + std::to_string(least) + " to " + std::to_string(most));
  }
  return value;
}

std::vector<int> whole_numbers(const std::string& flag, const std::string& text) {
  std::vector<int> numbers;
  for (const std::string& part : CLI::detail::split(text + ",", ',')) {  // which ignores what follows the last comma
    if (!is_whole(part)) {
      fail_option(flag + ": '" + text + "' is not a list of whole numbers like 0,600");
    }
    numbers.push_back(whole_number(flag, part));
  }
  return numbers;
}

uint64_t seed_number(const std::string& flag, const std::string& text) {
  check_whole(flag, text);
  errno = 0;
  const uint64_t value = std::strtoull(text.c_str() + after_sign(text, 0), nullptr, 10);
  if (errno == ERANGE || (text.starts_with("-") && value != 0)) {
    fail_option(flag + ": " + text + " must be from 0 to 2^64 - 1");
  }
  return value;
}

double real_number(const std::string& flag, const std::string& text) {
  if (!is_real(text)) {
    fail_option(flag + ": '" + text + "' is not a number");
  }
  const double value = std::strtod(text.c_str(), nullptr);
  if (std::isinf(value)) {
    fail_option(flag + ": " + text + " is out of range");
  }
  return value;
}

size_t one_of(const std::string& flag, const std::string& value, const std::vector<std::string>& choices) {
  const auto found = std::find(choices.begin(), choices.end(), value);
  if (found == choices.end()) {
    fail_option(flag + ": '" + value + "' is unknown; choose from " + CLI::detail::join(choices, ", "));
  }
  return size_t(found - choices.begin());
}

CommandLine::CommandLine(
    const std::string& program, const std::string& usage, const std::string& description, std::string footer)
    : app_(std::make_unique<CLI::App>(description, program)) {
  app_->formatter(std::make_shared<Formatter>(usage));
  app_->footer(std::move(footer));
  app_->set_help_flag();  // in parse(), so that the two stand at the end of the help
  app_->option_defaults()->take_last();
}

CommandLine::~CommandLine() = default;

void CommandLine::heading(const std::string& text) {
  app_->option_defaults()->group(text);
}

void CommandLine::value(const std::string& names, const std::string& placeholder, const std::string& help, Set set) {
  const std::string flag = names.substr(0, names.find(','));
  app_->add_option_function<std::string>(
          names, [=](const std::string& value) { set(flag, value); }, help)
      ->type_name(placeholder);
}

void CommandLine::values(const std::string& names, const std::string& placeholder, const std::string& help, Set set) {
  const std::string flag = names.substr(0, names.find(','));
  const CLI::callback_t set_all = [=](const CLI::results_t& given) {
    for (const std::string& value : given) {
      set(flag, value);
    }
    return true;
  };
  app_->add_option(names, set_all, help)->take_all()->type_name(placeholder);
}

void CommandLine::value(
    const std::string& names, const std::string& placeholder, const std::string& help, std::string& text) {
  value(names, placeholder, help, [&text](auto& flag, auto& value) { text = path_given(flag, value); });
}

void CommandLine::toggle(const std::string& name, const std::string& help, bool& on) {
  app_->add_flag(name, on, help);
}

void CommandLine::model(std::string& path) {
  value("--model-path", "PATH", "a .pte, or the folder of a package", path);
}

void CommandLine::image(std::string& path) {
  value(kImageFlags, "PATH", std::string(kImageHelp) + " (default: no image)", path);
}

void CommandLine::images(std::vector<std::string>& paths) {
  values(
      kImageFlags, "PATH", std::string(kImageHelp) + "; may be given several times (default: no image)",
      [&paths](auto& flag, auto& value) { paths.push_back(path_given(flag, value)); });
}

void CommandLine::draft_max(int& most) {
  value(
      "--draft-max", "N",
      "guess up to N tokens at a time, and check them at once; 0 guesses none (default: " + std::to_string(most) + ")",
      [&most](auto& flag, auto& value) { most = number_within(flag, value, 0, kDraftMaxAtMost); });
}

void CommandLine::computation(ProgramOptions& options) {
  value(
      "--threads,--cpu-threads", "N", "threads to compute with (default: the machine's fast cores)",
      [&options](const std::string& flag, const std::string& value) {
        options.load.cpu_threads = number_within(flag, value, 1, kThreadsAtMost);
      });
  value(
      "--packed-cache-path", "DIR",
      "folder for the weights that are packed for this processor at the first start (default: the program's "
      "folder); off keeps none",
      options.packed_cache_path);
  toggle(
      "--check", "compare all of the program with its manifest first; without it, weights are not compared",
      options.check);
  value(
      "--workspace-sharing", "HOW",
      "who shares the memory that XNNPACK computes in: disabled, per_model or global (default: "
      "per_model)",
      [&options](const std::string& flag, const std::string& value) {
        options.load.workspace_sharing = WorkspaceSharing(one_of(flag, value, {"disabled", "per_model", "global"}));
      });
}

bool CommandLine::parse(int argc, const char* const* argv) {
  heading("Other");
  app_->set_help_flag("-h,--help", "print this and end");
  const std::string versions = LLAVA_VERSION " (ExecuTorch " LLAVA_EXECUTORCH_VERSION ")";
  app_->set_version_flag("--version", app_->get_name() + " " + versions)->description("print the version and end");
  try {
    std::vector<std::string> reversed = arguments(argc, argv);
    std::reverse(reversed.begin(), reversed.end());
    app_->parse(std::move(reversed));
    return true;
  } catch (const CLI::CallForHelp&) {
    std::fputs(app_->help().c_str(), stdout);
  } catch (const CLI::CallForVersion& version) {
    std::puts(version.what());
  } catch (const CLI::ParseError& error) {
    fail_option(error.what());
  }
  return false;
}

// Returns the arguments as CLI11 is to see them: flags spelled with hyphens, and each value apart from its flag, since
// CLI11 takes --name= for a flag whose value follows.
std::vector<std::string> CommandLine::arguments(int argc, const char* const* argv) const {
  std::vector<std::string> found;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    std::string name = argument.substr(0, equals);
    if (name.starts_with("--")) {
      std::replace(name.begin(), name.end(), '_', '-');
    }
    const CLI::Option* option = name.starts_with("-") && name.size() > 1 ? app_->get_option_no_throw(name) : nullptr;
    if (argument == "--" && i + 1 == argc) {
      break;  // nothing follows
    }
    if (!name.starts_with("-") || argument == "--") {
      fail_option("'" + (argument == "--" ? argv[i + 1] : argument) + "' is one argument too many");
    }
    if (!option) {
      fail_option("there is no option " + name);
    }
    const std::string value = equals == std::string::npos ? "" : argument.substr(equals + 1);
    if (option == app_->get_help_ptr() || option == app_->get_version_ptr()) {
      if (equals != std::string::npos) {
        fail_option(name + " takes no value");
      }
      return {name};  // whatever else there is
    }
    if (option->get_items_expected_max() == 0) {
      if (equals != std::string::npos && value != "true" && value != "false") {
        fail_option(name + ": '" + value + "' is neither true nor false");
      }
      found.push_back(equals == std::string::npos ? name : name + "=" + value);
      continue;
    }
    if (equals == std::string::npos && i + 1 == argc) {
      fail_option(name + " needs a value");
    }
    found.push_back(name);
    found.push_back(equals == std::string::npos ? argv[++i] : value);
  }
  return found;
}

}  // namespace llava
