// Prints the timings of an answer.
#include "runtime/timings.h"

#include <sys/ioctl.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "runtime/memory.h"

namespace llava {
namespace {

constexpr int kNarrow = 80;  // columns; in fewer, llama.cpp's lines are not readable any more

template <typename... Values>
std::string formatted(const char* format, Values... values) {
  char buffer[256];
  std::snprintf(buffer, sizeof(buffer), format, values...);
  return buffer;
}

double per_second(const Stage& stage) {
  return stage.ms > 0 ? 1000 * stage.count / stage.ms : 0.0;
}

// Returns a line as llama.cpp prints it. `stage` is null where nothing is counted.
std::string long_line(const char* label, double value, const char* unit, const Stage* stage, const char* noun) {
  std::string text = formatted("llava_print_timings: %16s = %10.2f %s", label, value, unit);
  if (stage) {
    text += formatted(
        " / %5d %-6s (%8.2f ms per token, %8.2f tokens per second)", stage->count, noun,
        stage->count ? stage->ms / stage->count : 0.0, per_second(*stage));
  }
  return text;
}

// Returns a line of at most 40 columns: the stage, its time, the number of tokens, and how many a second.
std::string short_line(const char* label, double value, const char* unit, const Stage* stage, const char*) {
  const std::string name(label, std::strcspn(label, " "));
  std::string text = formatted("%-6s %9.2f %s", name.c_str(), value, unit);
  if (stage) {
    text += formatted(" %5d %9.2f/s", stage->count, per_second(*stage));
  }
  return text;
}

}  // namespace

std::string Timings::report(std::optional<int> columns) const {
  const auto line = columns && *columns < kNarrow ? short_line : long_line;
  const std::vector<std::string> lines = {
      line("load time", load.ms, "ms", nullptr, ""),
      line("image eval time", image.ms, "ms", &image, "tokens"),
      line("sample time", sample.ms, "ms", &sample, "runs"),
      line("prompt eval time", prompt.ms, "ms", &prompt, "tokens"),
      line("eval time", eval.ms, "ms", &eval, "runs"),
      line("total time", total_ms(), "ms", nullptr, ""),
      line("peak memory", double(peak_memory()) / (1 << 20), "MiB", nullptr, ""),
  };
  std::string text;
  for (const std::string& each : lines) {
    text += each + "\n";
  }
  if (drafted > 0) {
    const char* format = columns && *columns < kNarrow ? "%-6s %5d accepted of %d\n"
                                                       : "llava_print_timings: %16s = %7d    accepted of %d\n";
    text += formatted(format, "draft", accepted, drafted);
  }
  return text;
}

std::optional<int> columns_of(int descriptor) {
  const char* columns = std::getenv("COLUMNS");
  if (const int given = columns ? std::atoi(columns) : 0; given > 0) {
    return given;
  }
  winsize size{};
  if (ioctl(descriptor, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) {
    return size.ws_col;
  }
  return std::nullopt;
}

}  // namespace llava
