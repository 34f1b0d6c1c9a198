// Takes a tokenizer.json apart as it is parsed: its large tables never become values of the JSON library.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "text/tokenizer_json.h"

namespace llava {

// The events of parsing. Fills tokens and merges, and keeps the rest that matters in `rest`.
class TokenizerJsonReader final : public nlohmann::json_sax<nlohmann::json> {
 public:
  using Json = nlohmann::json;
  using Fail = std::function<void(const std::string&)>;  // throws

  TokenizerJsonReader(TokenizerJson& found, const Fail& fail) : found_(found), fail_(fail) {}

  Json rest;

  bool null() override { return scalar(nullptr); }
  bool boolean(bool value) override { return scalar(value); }
  bool number_integer(number_integer_t value) override { return scalar(value); }
  bool number_unsigned(number_unsigned_t value) override;
  bool number_float(number_float_t value, const string_t&) override { return scalar(value); }
  bool string(string_t& value) override;
  bool binary(binary_t&) override { return false; }  // JSON has none
  bool start_object(size_t) override { return begin(true); }
  bool key(string_t& name) override;
  bool end_object() override { return end(); }
  bool start_array(size_t) override { return begin(false); }
  bool end_array() override { return end(); }
  bool parse_error(size_t position, const std::string&, const Json::exception&) override;

 private:
  // Where the parser is. A part that is skipped is one that the runner does not need.
  enum class Part { kRest, kVocab, kMerges, kPair, kSkipped };

  bool begin(bool is_object);
  bool end();
  bool scalar(Json value);
  Json* add(Json value);
  TokenizerJson::Place keep(std::string_view text);
  void take_merge(std::string_view left, std::string_view right);

  TokenizerJson& found_;
  const Fail& fail_;
  Part part_ = Part::kRest;
  Part next_ = Part::kRest;  // what the next value is, by its key
  bool in_model_ = false;    // whether the value at depth 1 is the model
  int depth_ = 0;
  int skipped_depth_ = 0;
  std::vector<Json*> open_;  // the objects and lists of `rest` around the next value
  std::string key_;
  size_t kept_ = 0;                // values in `rest`
  std::vector<std::string> pair_;  // a merge that is a list of two texts
};

}  // namespace llava
