// Pictures for the vision encoder: reading a file, and the two ways LLaVA models make a square of it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "package/model_card.h"
#include "image/resize.h"

namespace llava {

// RGB uint8 [3, H, W].
struct Pixels {
  int height = 0;
  int width = 0;
  std::vector<uint8_t> values;
};

constexpr int kMinImageSide = 2;

// Reads a picture (JPEG, PNG, PPM) and makes it what the vision encoder takes, or a tensor (.pt), which is taken as it
// is. `image_aspect_ratio`, "pad" or "crop", stands in for the model's own unless it is empty. Throws ImageError.
Pixels prepare_image(const std::string& path, const ModelCard& card, const std::string& image_aspect_ratio);

// "pad": to a square with the mean color, then bicubic to size (the original LLaVA, MobileVLM). "crop": the shorter
// edge to size, bicubic, then the center square (CLIPImageProcessor).
Pixels preprocess(const Picture& picture, const ModelCard& card, const std::string& image_aspect_ratio);

}  // namespace llava
