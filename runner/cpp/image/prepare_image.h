// Makes of an image what the vision encoder of a model reads.
#pragma once

#include <string>

#include "image/image.h"
#include "image/read_image.h"
#include "package/model_card.h"

namespace llava {

// Prepares an image for the vision encoder. `image_aspect_ratio`, one of kImageAspectRatios, stands in for the model's
// own unless it is empty. Throws ImageError for an image too thin to be scaled, and for a tensor larger than the
// model's images.
//
// Who pads an image, and when: an image file is padded here, half on either side, with the mean color, before it is
// resized. A tensor is not changed here. Where it is smaller than the model's images, the vision encoder pads it
// inside the program, half on either side, after it has normalized it: with zeros, which then are the mean color.
ImageCHW prepare_image(const Image& image, const ModelCard& card, const std::string& image_aspect_ratio);

// Makes a square of image_size pixels. "pad": to a square with the mean color, then resized (the original LLaVA,
// MobileVLM). "crop": the shorter edge is resized, then the center square is cut out (CLIPImageProcessor). "stretch":
// both edges are resized. Each resizes to image_resize pixels and keeps the center.
ImageCHW preprocess(const ImageHWC& image, const ModelCard& card, const std::string& image_aspect_ratio);

}  // namespace llava
