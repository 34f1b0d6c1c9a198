#include "image/prepare_image.h"

#include <algorithm>
#include <cstring>

#include "base/errors.h"
#include "image/read_image.h"
#include "image/formats/tensor_file.h"

namespace llava {
namespace {

std::string size_of(int width, int height) {
  return std::to_string(width) + "x" + std::to_string(height) + " pixels";
}

void check_sides(const std::string& path, int width, int height) {
  if (std::min(width, height) < kMinImageSide) {
    throw ImageError(path + ": " + size_of(width, height) + " is too small; each side needs at least 2");
  }
}

Picture padded_to_square(const Picture& picture, const std::array<double, 3>& mean) {
  const int side = std::max(picture.width, picture.height);
  const int left = (side - picture.width) / 2;
  const int top = (side - picture.height) / 2;
  Picture square(side, side);
  for (size_t i = 0; i < square.pixels.size(); ++i) {
    square.pixels[i] = uint8_t(mean[i % 3] * 255);
  }
  for (int y = 0; y < picture.height; ++y) {
    std::memcpy(square.row(top + y) + 3 * left, picture.row(y), size_t(picture.width) * 3);
  }
  return square;
}

Picture cropped_to_square(const Picture& picture, int size) {
  // Truncated, not rounded, and the offsets floored: CLIPImageProcessor's arithmetic.
  const double shorter = std::min(picture.width, picture.height);
  const int width = int(double(int64_t(size) * picture.width) / shorter);
  const int height = int(double(int64_t(size) * picture.height) / shorter);
  const Picture resized = resize_bicubic(picture, width, height);
  const int left = (width - size) / 2;
  const int top = (height - size) / 2;
  Picture square(size, size);
  for (int y = 0; y < size; ++y) {
    std::memcpy(square.row(y), resized.row(top + y) + 3 * left, size_t(size) * 3);
  }
  return square;
}

Pixels channels_first(const Picture& picture) {
  Pixels pixels{picture.height, picture.width, std::vector<uint8_t>(picture.pixels.size())};
  const size_t plane = size_t(picture.width) * picture.height;
  for (size_t i = 0; i < plane; ++i) {
    for (size_t channel = 0; channel < 3; ++channel) {
      pixels.values[channel * plane + i] = picture.pixels[3 * i + channel];
    }
  }
  return pixels;
}

}  // namespace

Pixels preprocess(const Picture& picture, const ModelCard& card, const std::string& image_aspect_ratio) {
  const int64_t shorter = std::min(picture.width, picture.height);
  const int64_t longer = std::max(picture.width, picture.height);
  if (shorter * card.image_size < kMinImageSide * longer) {
    throw ImageError(
        size_of(picture.width, picture.height) + " is too thin: scaled to " + std::to_string(card.image_size) +
        " pixels its shorter side would be less than 2 pixels");
  }
  if (image_aspect_ratio == "pad") {
    return channels_first(
        resize_bicubic(padded_to_square(picture, card.image_mean), card.image_size, card.image_size));
  }
  if (image_aspect_ratio == "crop") {
    return channels_first(cropped_to_square(picture, card.image_size));
  }
  throw ImageError("image_aspect_ratio '" + image_aspect_ratio + "': choose from pad, crop");
}

Pixels prepare_image(const std::string& path, const ModelCard& card, const std::string& image_aspect_ratio) {
  if (path.ends_with(".pt")) {
    Pixels pixels = read_tensor_file(path);
    check_sides(path, pixels.width, pixels.height);
    if (std::max(pixels.height, pixels.width) > card.image_size) {
      throw ImageError(
          path + " has " + size_of(pixels.width, pixels.height) + " and the model sees " +
          size_of(card.image_size, card.image_size) + "; give the picture itself, or a tensor resized to fit");
    }
    return pixels;
  }
  const Picture picture = read_picture(path);
  check_sides(path, picture.width, picture.height);
  return preprocess(picture, card, image_aspect_ratio.empty() ? card.image_aspect_ratio : image_aspect_ratio);
}

}  // namespace llava
