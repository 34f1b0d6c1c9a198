// Reads JSON whose every byte may be wrong.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "base/errors.h"

namespace llava {

constexpr size_t kJsonAtMost = 32 << 20;  // bytes; a manifest has a few thousand
constexpr int kJsonDepth = 64;            // of objects and lists in each other; a manifest has 4

// Returns the value that a text spells. Throws PackageError, which calls the text `what`.
inline nlohmann::json parse_json(const std::string& text, const std::string& what) {
  const auto check_depth = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json&) {
    using Event = nlohmann::json::parse_event_t;
    const bool begins = event == Event::object_start || event == Event::array_start;
    if (begins && depth >= kJsonDepth) {  // comparing, printing and destroying a value take a call for each level
      throw PackageError(what + " is not JSON that can be read: it nests too deeply");
    }
    return true;
  };
  if (text.size() > kJsonAtMost) {
    throw PackageError(what + " is too large: " + std::to_string(text.size()) + " bytes");
  }
  try {
    return nlohmann::json::parse(text, check_depth);
  } catch (const nlohmann::json::parse_error& error) {
    throw PackageError(what + " is not JSON: there is a mistake at byte " + std::to_string(error.byte));
  } catch (const nlohmann::json::exception&) {
    throw PackageError(what + " is not JSON that can be read: a number is too large");
  }
}

}  // namespace llava
