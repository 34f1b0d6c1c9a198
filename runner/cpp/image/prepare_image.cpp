// The two ways in which LLaVA models make a square of an image.
#include "image/prepare_image.h"

#include <algorithm>
#include <cstring>

#include "base/errors.h"
#include "image/resize.h"

namespace llava {
namespace {

std::string size_of(int width, int height) {
  return std::to_string(width) + "x" + std::to_string(height) + " pixels";
}

ImageHWC padded_to_square(const ImageHWC& image, const std::array<double, 3>& mean) {
  const int side = std::max(image.width, image.height);
  const int left = (side - image.width) / 2;
  const int top = (side - image.height) / 2;
  ImageHWC square(side, side);
  for (size_t i = 0; i < square.bytes.size(); ++i) {
    square.bytes[i] = uint8_t(mean[i % 3] * 255);
  }
  for (int y = 0; y < image.height; ++y) {
    std::memcpy(square.row(top + y) + 3 * left, image.row(y), size_t(image.width) * 3);
  }
  return square;
}

ImageHWC cropped_to_square(const ImageHWC& image, int size) {
  // Truncated, not rounded, and the offsets floored: CLIPImageProcessor's arithmetic.
  const double shorter = std::min(image.width, image.height);
  const int width = int(double(int64_t(size) * image.width) / shorter);
  const int height = int(double(int64_t(size) * image.height) / shorter);
  const ImageHWC resized = resize_bicubic(image, width, height);
  const int left = (width - size) / 2;
  const int top = (height - size) / 2;
  ImageHWC square(size, size);
  for (int y = 0; y < size; ++y) {
    std::memcpy(square.row(y), resized.row(top + y) + 3 * left, size_t(size) * 3);
  }
  return square;
}

ImageCHW channels_first(const ImageHWC& image) {
  ImageCHW out{image.height, image.width, std::vector<uint8_t>(image.bytes.size())};
  const size_t plane = size_t(image.width) * image.height;
  for (size_t i = 0; i < plane; ++i) {
    for (size_t channel = 0; channel < 3; ++channel) {
      out.bytes[channel * plane + i] = image.bytes[3 * i + channel];
    }
  }
  return out;
}

}  // namespace

ImageCHW preprocess(const ImageHWC& image, const ModelCard& card, const std::string& image_aspect_ratio) {
  const int64_t shorter = std::min(image.width, image.height);
  const int64_t longer = std::max(image.width, image.height);
  if (shorter * card.image_size < kMinImageSide * longer) {
    throw ImageError(
        size_of(image.width, image.height) + " is too thin: scaled to " + std::to_string(card.image_size) +
        " pixels its shorter side would be less than 2 pixels");
  }
  if (image_aspect_ratio == "pad") {
    return channels_first(resize_bicubic(padded_to_square(image, card.image_mean), card.image_size, card.image_size));
  }
  if (image_aspect_ratio == "crop") {
    return channels_first(cropped_to_square(image, card.image_size));
  }
  throw ImageError("image_aspect_ratio '" + image_aspect_ratio + "': choose from pad, crop");
}

ImageCHW prepare_image(const Image& image, const ModelCard& card, const std::string& image_aspect_ratio) {
  if (const auto* tensor = std::get_if<ImageCHW>(&image)) {
    if (std::max(tensor->height, tensor->width) > card.image_size) {
      throw ImageError(
          "the image tensor has " + size_of(tensor->width, tensor->height) + " and the model sees " +
          std::to_string(card.image_size) + "x" + std::to_string(card.image_size) +
          "; give the image itself, or a tensor resized to fit");
    }
    return *tensor;
  }
  return preprocess(
      std::get<ImageHWC>(image), card, image_aspect_ratio.empty() ? card.image_aspect_ratio : image_aspect_ratio);
}

}  // namespace llava
