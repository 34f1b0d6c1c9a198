// The texts of a PNG that may have its orientation.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "image/formats/orientation.h"

namespace llava {

class PngTexts {
 public:
  // Takes a chunk of the kind tEXt, zTXt, iTXt or eXIf. A later one takes the place of an earlier one.
  void add(std::string_view kind, std::string_view data);

  Metadata metadata() const;

 private:
  struct Text {
    std::string content;
    bool is_bytes = false;  // otherwise it is text for Pillow, which does not take it for EXIF data or such XMP
  };

  void add_international(std::string_view key, std::string_view data);

  std::map<std::string, Text, std::less<>> texts_;
};

}  // namespace llava
