// Reads the tensor in a file of torch.save, which is a zip archive with a pickle in it.
#include "image/formats/tensor_file.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

#include "base/errors.h"
#include "base/files.h"
#include "image/formats/stored_files.h"

// torch.save writes FOLDER/data.pkl, a pickle with the tensor's shape and strides, and FOLDER/data/0, its bytes. A
// pickle is a program for a small machine. Here nothing is run: an image tensor's pickle has always the same opcodes,
// and any other is refused.
namespace llava {
namespace {

constexpr size_t kArchiveAtMost = 256 << 20;  // bytes; of a slice torch.save writes the whole tensor
constexpr size_t kPickleAtMost = 4 << 10;     // bytes; that of a tensor has less than 300

[[noreturn]] void fail(const std::string& path) {
  throw ImageError(path + " is not an image tensor written by torch.save (uint8 [3, H, W])");
}

// What a pickle says of a tensor.
struct Description {
  std::string_view key;  // of its storage: the name of a file in data/
  std::string_view device;
  int64_t size;    // of its storage, in bytes
  int64_t offset;  // of its first value in the storage
  std::array<int64_t, 3> shape;
  std::array<int64_t, 3> strides;
};

// Takes a pickle apart from its front. Each function returns whether it found what it is named after.
class Pickle {
 public:
  explicit Pickle(std::string_view bytes) : bytes_(bytes) {}

  bool is(std::string_view expected) {
    skip_memory();
    return take(expected.size()) == expected;
  }

  bool text(std::string_view& value) {
    const auto length = is("X") ? number<uint32_t>() : std::nullopt;
    value = length ? take(*length) : std::string_view();
    const auto is_plain = [](char c) { return c >= ' ' && c <= '~'; };
    return length && value.size() == *length && std::all_of(value.begin(), value.end(), is_plain);
  }

  bool whole(int64_t& value) {
    skip_memory();
    const std::string_view opcode = take(1);
    const auto set = [&](auto found) {
      value = found ? int64_t(*found) : -1;
      return value >= 0;
    };
    return opcode == "K"   ? set(number<uint8_t>())
           : opcode == "M" ? set(number<uint16_t>())
           : opcode == "J" ? set(number<int32_t>())
                           : false;
  }

  bool whole_3(std::array<int64_t, 3>& values) {
    return whole(values[0]) && whole(values[1]) && whole(values[2]) && is("\x87");
  }

 private:
  // Skips what only stores a value for later: an image tensor's pickle never comes back to it.
  void skip_memory() {
    while (!bytes_.empty() && (bytes_.front() == 'q' || bytes_.front() == 'r')) {
      take(bytes_.front() == 'q' ? 2 : 5);
    }
  }

  template <typename T>
  std::optional<T> number() {
    return number_at<T>(take(sizeof(T)), 0);
  }

  std::string_view take(size_t length) {
    const std::string_view taken = bytes_.substr(0, length);
    bytes_.remove_prefix(taken.size());
    return taken;
  }

  std::string_view bytes_;
};

// Reads _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad=False, hooks=OrderedDict()), in which
// storage is ("storage", torch.ByteStorage, key, device, size).
std::optional<Description> described(std::string_view bytes) {
  Pickle pickle(bytes);
  Description tensor;
  std::string_view kind;
  const bool has_protocol = pickle.is("\x80\x02") || Pickle(bytes).is("\x80\x03");
  const bool fits = has_protocol && pickle.is("ctorch._utils\n_rebuild_tensor_v2\n") && pickle.is("(") &&
                    pickle.is("(") && pickle.text(kind) && kind == "storage" && pickle.is("ctorch\nByteStorage\n") &&
                    pickle.text(tensor.key) && pickle.text(tensor.device) && pickle.whole(tensor.size) &&
                    pickle.is("t") && pickle.is("Q") && pickle.whole(tensor.offset) && pickle.whole_3(tensor.shape) &&
                    pickle.whole_3(tensor.strides) && pickle.is("\x89") && pickle.is("ccollections\nOrderedDict\n") &&
                    pickle.is(")") && pickle.is("R") && pickle.is("t") && pickle.is("R") && pickle.is(".");
  return fits ? std::optional(tensor) : std::nullopt;
}

}  // namespace

ImageCHW read_tensor_file(const std::string& path) {
  const std::string archive = read_file<ImageError>(path, kArchiveAtMost);
  const auto files = stored_files(archive);
  const auto content = [&](const std::string& name) {
    const auto found = files ? files->find(name) : decltype(files->end())();
    return files && found != files->end() ? std::optional(found->second) : std::nullopt;
  };
  const auto pickle = content("data.pkl");
  const auto tensor = pickle && pickle->size() <= kPickleAtMost ? described(*pickle) : std::nullopt;
  const auto bytes = tensor ? content("data/" + std::string(tensor->key)) : std::nullopt;
  if (!bytes || int64_t(bytes->size()) != tensor->size) {
    fail(path);
  }
  const auto [channels, height, width] = tensor->shape;
  const auto& strides = tensor->strides;
  if (channels != 3 || height < 1 || width < 1) {
    fail(path);
  }
  // No sum of these overflows: each number has 31 bits.
  const auto place = [&](int64_t channel, int64_t y, int64_t x) {
    return tensor->offset + channel * strides[0] + y * strides[1] + x * strides[2];
  };
  if (place(channels - 1, height - 1, width - 1) >= tensor->size) {
    fail(path);
  }
  if (std::max(height, width) > kImageSideAtMost) {
    throw ImageError(
        path + ": the image tensor has " + std::to_string(width) + "x" + std::to_string(height) +
        " pixels and no model sees more than " + std::to_string(kImageSideAtMost) + "x" +
        std::to_string(kImageSideAtMost) + "; give the image itself, or a tensor resized to fit");
  }
  ImageCHW image{int(height), int(width), {}};
  image.bytes.reserve(size_t(channels * height * width));
  for (int64_t channel = 0; channel < channels; ++channel) {
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t x = 0; x < width; ++x) {
        image.bytes.push_back(uint8_t((*bytes)[size_t(place(channel, y, x))]));
      }
    }
  }
  return image;
}

}  // namespace llava
