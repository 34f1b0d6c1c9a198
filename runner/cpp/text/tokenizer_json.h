// Reads a tokenizer.json of the library tokenizers, whose every byte may be wrong.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace llava {

// What a tokenizer.json says. Texts are those of the file, so that a space is "Ġ".
struct TokenizerJson {
  // The place of a text in `texts`.
  struct Place {
    uint32_t begin;
    uint32_t length;
  };
  struct Token {
    Place text;
    int32_t id;
  };
  struct Merge {
    Place left;
    Place right;  // just behind `left`
  };

  std::string texts;
  std::vector<Token> tokens;
  std::vector<Merge> merges;
  bool ignore_merges = false;
  bool is_nfc = false;
  std::vector<std::string> patterns;  // by which text is split, in this order
  std::vector<int32_t> special_ids;
  int32_t vocab_size = 0;  // 1 + the largest id, of an added token too

  std::string_view text_at(Place place) const { return std::string_view(texts).substr(place.begin, place.length); }

  // Throws PackageError, which names the path, for what is no tokenizer.json, and for parts that are not known.
  static TokenizerJson parse(const std::string& content, const std::string& path);
};

}  // namespace llava
