// Normalizes text by utf8proc.
#include "text/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "base/errors.h"

namespace llava {
namespace {

// Characters before U+0300, which begin with smaller bytes than this, are composed, and combine with none of them.
constexpr uint8_t kFirstThatChanges = 0xCC;

}  // namespace

std::string nfc(std::string_view text) {
  const bool changes = std::any_of(text.begin(), text.end(), [](char c) { return uint8_t(c) >= kFirstThatChanges; });
  if (!changes) {
    return std::string(text);
  }
  utf8proc_uint8_t* found = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(
      reinterpret_cast<const utf8proc_uint8_t*>(text.data()), utf8proc_ssize_t(text.size()), &found,
      utf8proc_option_t(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(found, std::free);
  if (size == UTF8PROC_ERROR_NOMEM) {
    throw std::bad_alloc();
  }
  if (size < 0) {
    throw PromptError("the prompt cannot be normalized: " + std::string(utf8proc_errmsg(size)));
  }
  return {reinterpret_cast<const char*>(found), size_t(size)};
}

}  // namespace llava
