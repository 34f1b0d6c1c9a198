// The ways in which LLaVA models make a square of an image.
#include "image/prepare_image.h"

#include <algorithm>
#include <array>
#include <new>

#include "base/errors.h"
#include "image/resize.h"

namespace llava {
namespace {

std::string size_of(int width, int height) {
  return std::to_string(width) + "x" + std::to_string(height) + " pixels";
}

// Returns how a side of `total` pixels is resized to `size`, of which the center is kept.
Side center(const ModelCard& card, int total, int size, int before = 0) {
  return {total, size, card.image_size, before, (size - card.image_size) / 2};
}

ImageHWC padded_square(const ImageHWC& image, const ModelCard& card) {
  const int total = std::max(image.width, image.height);
  const auto side = [&](int length) { return center(card, total, card.image_resize, (total - length) / 2); };
  std::array<uint8_t, 3> color;
  std::transform(card.image_mean.begin(), card.image_mean.end(), color.begin(), [](double channel) {
    return uint8_t(channel * 255);
  });
  return resize(image, side(image.width), side(image.height), card.image_resample, color);
}

ImageHWC center_square(const ImageHWC& image, const ModelCard& card) {
  const double shorter = std::min(image.width, image.height);
  const auto side = [&](int length) {
    // Truncated, not rounded, and the offsets floored: CLIPImageProcessor's arithmetic.
    return center(card, length, int(double(int64_t(card.image_resize) * length) / shorter));
  };
  return resize(image, side(image.width), side(image.height), card.image_resample, {});
}

ImageHWC stretched_square(const ImageHWC& image, const ModelCard& card) {
  const auto side = [&](int length) { return center(card, length, card.image_resize); };
  return resize(image, side(image.width), side(image.height), card.image_resample, {});
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
  if (image_aspect_ratio == "stretch") {
    return channels_first(stretched_square(image, card));
  }
  return channels_first(image_aspect_ratio == "crop" ? center_square(image, card) : padded_square(image, card));
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
  const auto& pixels = std::get<ImageHWC>(image);
  try {
    return preprocess(pixels, card, image_aspect_ratio.empty() ? card.image_aspect_ratio : image_aspect_ratio);
  } catch (const std::bad_alloc&) {
    throw ImageError("there is not enough memory to resize an image of " + size_of(pixels.width, pixels.height));
  }
}

}  // namespace llava
