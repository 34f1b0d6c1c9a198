// Reads EXIF and XMP from the texts of a PNG, as Pillow does.
#include "image/formats/png_text.h"

#include <zlib.h>

#include <optional>

#include "text/utf8.h"

namespace llava {
namespace {

constexpr size_t kMaxTextBytes = size_t(1) << 20;  // of a text that is stored deflated; longer ones are left out
constexpr std::string_view kExif = "exif", kRawProfile = "Raw profile type exif";
constexpr std::string_view kXmpText = "XML:com.adobe.xmp", kXmp = "xmp";

// Cuts off what comes before the next zero byte, and the byte. Without one, all is cut off, and `found` is false.
std::string_view cut(std::string_view& rest, bool& found) {
  const size_t end = rest.find('\0');
  found = end != rest.npos;
  const std::string_view head = rest.substr(0, end);
  rest = found ? rest.substr(end + 1) : std::string_view();
  return head;
}

// Returns the inflated data, also where it ends early; nothing where it is damaged. Sets `is_long` for a long text.
std::optional<std::string> inflated(std::string_view data, bool& is_long) {
  z_stream stream{};
  if (inflateInit(&stream) != Z_OK) {
    return std::nullopt;
  }
  std::string out(kMaxTextBytes, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
  stream.avail_in = uInt(data.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = uInt(out.size());
  const int result = data.empty() ? Z_OK : inflate(&stream, Z_SYNC_FLUSH);
  out.resize(out.size() - stream.avail_out);
  is_long = result == Z_OK && stream.avail_out == 0 && stream.avail_in > 0;
  inflateEnd(&stream);
  if (result != Z_OK && result != Z_STREAM_END && result != Z_BUF_ERROR) {
    return std::nullopt;
  }
  return out;
}

bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = character_length(text);
    if (length == kInvalid || length == kIncomplete) {
      return false;
    }
    text.remove_prefix(length);
  }
  return true;
}

// Returns the bytes that ImageMagick wrote as hexadecimal digits after three lines. Returns nothing for other content.
std::optional<std::string> from_raw_profile(std::string_view text) {
  for (int line = 0; line < 3; ++line) {
    const size_t end = text.find('\n');
    text = end == text.npos ? std::string_view() : text.substr(end + 1);
  }
  std::string out;
  int digits = 0, value = 0;
  for (const char c : text) {
    const int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
    if (digit >= 0) {
      value = value << 4 | digit;
      if (++digits % 2 == 0) {
        out.push_back(char(value));
      }
    } else if (c != '\n' && (digits % 2 || std::string_view(" \t\r\v\f").find(c) == std::string_view::npos)) {
      return std::nullopt;
    }
  }
  return digits % 2 ? std::nullopt : std::optional(out);
}

}  // namespace

void PngTexts::add(std::string_view kind, std::string_view data) {
  if (kind == "eXIf") {
    texts_[std::string(kExif)] = {std::string(data), true};
    return;
  }
  bool found = false;
  const std::string key(cut(data, found));
  if (key != kExif && key != kRawProfile && key != kXmpText && key != kXmp) {
    return;
  }
  if (kind == "tEXt") {
    texts_[key] = {std::string(data), key == kExif};
  } else if (kind == "zTXt") {
    bool is_long = false;
    const auto text = inflated(data.substr(data.empty() ? 0 : 1), is_long);
    if (!is_long) {
      texts_[key] = {text.value_or(""), false};
    }
  } else if (found) {
    add_international(key, data);
  }
}

void PngTexts::add_international(std::string_view key, std::string_view data) {
  if (data.size() < 2) {
    return;
  }
  const bool is_deflated = data[0] != 0, is_known = data[1] == 0;
  data.remove_prefix(2);
  bool has_language = false, has_keyword = false;
  const std::string_view language = cut(data, has_language), keyword = cut(data, has_keyword);
  if (!has_language || !has_keyword) {
    return;
  }
  std::string text(data);
  if (is_deflated) {
    bool is_long = false;
    const auto result = is_known ? inflated(data, is_long) : std::nullopt;
    if (!result || is_long) {
      return;
    }
    text = *result;
  }
  if (key == kXmpText) {
    texts_[std::string(kXmp)] = {text, true};
  }
  if (is_utf8(language) && is_utf8(keyword) && is_utf8(text)) {
    texts_[std::string(key)] = {text, false};
  }
}

Metadata PngTexts::metadata() const {
  Metadata found;
  if (const auto exif = texts_.find(kExif); exif != texts_.end()) {
    found.exif = exif->second.content;
    found.is_malformed = !exif->second.is_bytes && !found.exif->empty();
  } else if (const auto raw = texts_.find(kRawProfile); raw != texts_.end()) {
    found.exif = from_raw_profile(raw->second.content);
    found.is_malformed = !found.exif;
  }
  const auto xmp_text = texts_.find(kXmpText), xmp = texts_.find(kXmp);
  if (xmp_text != texts_.end() && !xmp_text->second.content.empty()) {
    found.xmp = xmp_text->second.content;
  } else if (xmp != texts_.end() && xmp->second.is_bytes) {
    found.xmp = xmp->second.content;
  }
  return found;
}

}  // namespace llava
