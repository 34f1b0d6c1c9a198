// Normalizes text by utf8proc.
#include "text/nfc.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <new>
#include <utility>

#include "base/errors.h"
#include "text/utf8.h"

namespace llava {
namespace {

// Characters before U+0300, which begin with smaller bytes than this, are composed, and combine with none of them.
constexpr uint8_t kFirstThatChanges = 0xCC;

// Marks and composed characters that are newer than Unicode 9, which the library tokenizers normalizes by: there they
// stay where they are, and nothing passes them.
constexpr std::pair<uint32_t, uint32_t> kNewer[] = {
    {0x7FD, 0x7FD},     {0x898, 0x89F},     {0x8CA, 0x8D3},     {0x9FE, 0x9FE},     {0xC3C, 0xC3C},
    {0xD3B, 0xD3C},     {0xEBA, 0xEBA},     {0x1715, 0x1715},   {0x1ABF, 0x1ACE},   {0x1DF6, 0x1DFA},
    {0xA82C, 0xA82C},   {0x10D24, 0x10D27}, {0x10EAB, 0x10EAC}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50},
    {0x10F82, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x1145E, 0x1145E}, {0x11839, 0x1183A},
    {0x11930, 0x11930}, {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0},
    {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42}, {0x11D44, 0x11D45},
    {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x16FF0, 0x16FF1}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136},
    {0x1E2AE, 0x1E2AE}, {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}};

bool is_newer(uint32_t point) {
  const auto range = std::upper_bound(
      std::begin(kNewer), std::end(kNewer), point, [](uint32_t p, const auto& each) { return p < each.first; });
  return range != std::begin(kNewer) && point <= std::prev(range)->second;
}

// Normalizes a text without such characters.
std::string composed(std::string_view text) {
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

}  // namespace

std::string nfc(std::string_view text) {
  std::string found;
  size_t done = 0;
  for (size_t at = 0, length; at < text.size(); at += length) {
    length = character_length(text.substr(at));
    if (length > 1 && is_newer(code_point(text.substr(at, length)))) {
      found += composed(text.substr(done, at - done));
      found += text.substr(at, length);
      done = at + length;
    }
  }
  return found + composed(text.substr(done));
}

}  // namespace llava
