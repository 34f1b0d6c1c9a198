// Looks for stop strings in text that comes in pieces; see stop_strings.h.
#include "text/stop_strings.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>

#include "base/errors.h"
#include "text/utf8.h"

namespace llava {
namespace {

constexpr size_t kStopStringsAtMost = 16;

void check_stop(const std::string& stop) {
  if (stop.empty()) {
    throw PromptError("a stop string is empty");
  }
  size_t characters = 0;
  for (size_t at = 0; at < stop.size(); ++characters) {
    const size_t length = character_length(std::string_view(stop).substr(at));
    if (length == kInvalid || length == kIncomplete) {
      throw PromptError("a stop string is not valid Unicode at character " + std::to_string(characters));
    }
    at += length;
  }
}

}  // namespace

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
  if (stops_.size() > kStopStringsAtMost) {
    throw PromptError(
        "there are " + std::to_string(stops_.size()) + " stop strings; at most " + std::to_string(kStopStringsAtMost) +
        " are taken");
  }
  std::for_each(stops_.begin(), stops_.end(), check_stop);
}

std::string StopStrings::push(const std::string& text, const std::string& hidden) {
  held_ += hidden + text;
  hidden_ += hidden.size();
  // The first that is complete counts, and of those that end together the longest.
  std::optional<std::pair<size_t, size_t>> first;  // where it ends and begins
  for (const std::string& stop : stops_) {
    if (const size_t at = held_.find(stop); at != std::string::npos) {
      const std::pair<size_t, size_t> place(at + stop.size(), at);
      first = first ? std::min(*first, place) : place;
    }
  }
  found_ = first.has_value();
  return release(first ? first->second : held_.size() - undecided());
}

std::string StopStrings::finish(const std::string& text) {
  const std::string shown = push(text);
  return found_ ? shown : shown + release(held_.size());
}

// Returns how many bytes at the end of the text may begin a stop string. They are whole characters, as the text is.
size_t StopStrings::undecided() const {
  size_t longest = 0;
  for (const std::string& stop : stops_) {
    longest = std::max(longest, stop.size() - 1);
  }
  for (size_t length = std::min(longest, held_.size()); length > 0; --length) {
    const std::string_view end = std::string_view(held_).substr(held_.size() - length);
    const auto begins = [&](const std::string& stop) { return stop.starts_with(end); };
    if (std::any_of(stops_.begin(), stops_.end(), begins)) {
      return length;
    }
  }
  return 0;
}

// Returns the text that is held back up to a place, and holds only the rest.
std::string StopStrings::release(size_t end) {
  const size_t begin = std::min(hidden_, end);
  const std::string shown = held_.substr(begin, end - begin);
  held_.erase(0, end);
  hidden_ -= begin;
  return shown;
}

}  // namespace llava
