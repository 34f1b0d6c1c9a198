// Prints the timings of an answer.
#include "runtime/timings.h"

#include <cstdio>

#include "runtime/memory.h"

namespace llava {
namespace {

template <typename... Values>
std::string formatted(const char* format, Values... values) {
  char buffer[256];
  std::snprintf(buffer, sizeof(buffer), format, values...);
  return buffer;
}

std::string line(const char* label, double value, const char* unit) {
  return formatted("llava_print_timings: %16s = %10.2f %s", label, value, unit);
}

std::string rate(const Stage& stage, const char* noun) {
  return formatted(
      " / %5d %-6s (%8.2f ms per token, %8.2f tokens per second)", stage.count, noun,
      stage.count ? stage.ms / stage.count : 0.0, stage.ms > 0 ? 1000 * stage.count / stage.ms : 0.0);
}

}  // namespace

std::string Timings::report() const {
  std::string text;
  text += line("load time", load.ms, "ms") + "\n";
  text += line("image eval time", image.ms, "ms") + rate(image, "tokens") + "\n";
  text += line("sample time", sample.ms, "ms") + rate(sample, "runs") + "\n";
  text += line("prompt eval time", prompt.ms, "ms") + rate(prompt, "tokens") + "\n";
  text += line("eval time", eval.ms, "ms") + rate(eval, "runs") + "\n";
  text += line("total time", load.ms + image.ms + sample.ms + prompt.ms + eval.ms, "ms") + "\n";
  text += line("peak memory", double(peak_memory()) / (1 << 20), "MiB") + "\n";
  return text;
}

}  // namespace llava
