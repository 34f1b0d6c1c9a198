// Reads the tensor in a file of torch.save, which is a zip archive with a pickle in it.
#include "image/formats/tensor_file.h"

#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string_view>
#include <variant>
#include <vector>

#include "base/errors.h"
#include "base/files.h"

// torch.save writes a zip archive without compression. <name>/data.pkl is a pickle with the tensor's type, shape and
// strides, and <name>/data/0 has its bytes. A pickle is a program for a small machine; the opcodes below are those that
// such a pickle consists of. Nothing is ever called: a function is kept as its name.
namespace llava {
namespace {

[[noreturn]] void fail(const std::string& path) {
  throw ImageError(path + " is not an image tensor written by torch.save (uint8 [3, H, W])");
}

// Returns the little-endian number at a place in bytes; nullopt beyond their end.
template <typename T>
std::optional<T> number_at(std::string_view bytes, size_t offset) {
  if (offset > bytes.size() || bytes.size() - offset < sizeof(T)) {
    return std::nullopt;
  }
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

// Returns the files of an archive, by their names after the first slash; none for what is no archive, or compressed.
std::map<std::string_view, std::string_view> stored_files(std::string_view archive) {
  constexpr size_t kEndSize = 22, kEntrySize = 46, kLocalSize = 30;
  const size_t end = archive.rfind("PK\5\6");
  if (end == archive.npos || archive.size() - end < kEndSize) {
    return {};
  }
  std::map<std::string_view, std::string_view> files;
  const uint16_t count = *number_at<uint16_t>(archive, end + 10);
  size_t entry = *number_at<uint32_t>(archive, end + 16);
  for (uint16_t i = 0; i < count; ++i) {
    const auto is_compressed = number_at<uint16_t>(archive, entry + 10);
    const auto size = number_at<uint32_t>(archive, entry + 24);
    const auto name_length = number_at<uint16_t>(archive, entry + 28);
    const auto extra_length = number_at<uint16_t>(archive, entry + 30);
    const auto comment_length = number_at<uint16_t>(archive, entry + 32);
    const auto local = number_at<uint32_t>(archive, entry + 42);
    if (!local || archive.substr(entry, 4) != "PK\1\2" || *is_compressed) {
      return {};
    }
    const auto local_name = number_at<uint16_t>(archive, size_t(*local) + 26);
    const auto local_extra = number_at<uint16_t>(archive, size_t(*local) + 28);
    if (!local_name || !local_extra || archive.size() - entry < kEntrySize + *name_length) {
      return {};
    }
    const size_t content = size_t(*local) + kLocalSize + *local_name + *local_extra;
    if (content > archive.size() || archive.size() - content < *size) {
      return {};
    }
    const std::string_view name = archive.substr(entry + kEntrySize, *name_length);
    const size_t slash = name.find('/');
    files[slash == name.npos ? name : name.substr(slash + 1)] = archive.substr(content, *size);
    entry += kEntrySize + size_t(*name_length) + *extra_length + *comment_length;
  }
  return files;
}

struct Mark {};
struct Other {};  // a value that the tensor does not depend on
struct Call;
struct Tuple;
using Value = std::variant<Other, Mark, int64_t, std::string, std::shared_ptr<Tuple>, std::shared_ptr<Call>>;
struct Tuple {
  std::vector<Value> items;
};
struct Call {  // a function's name and its arguments; "" for an object with a persistent id
  std::string function;
  std::vector<Value> arguments;
};

// Runs a pickle. The result is nullopt for what is no pickle, or has another opcode.
class Unpickler {
 public:
  explicit Unpickler(std::string_view bytes) : bytes_(bytes) {}

  std::optional<Value> run() {
    while (position_ < bytes_.size()) {
      const char opcode = bytes_[position_++];
      if (opcode == '.') {
        return pop();
      }
      if (!step(opcode)) {
        return std::nullopt;
      }
    }
    return std::nullopt;
  }

 private:
  bool step(char opcode) {
    switch (opcode) {
      case '\x80':  // protocol
        return take<uint8_t>().has_value();
      case 'c': {  // module and name of a function or class
        const auto module = take_line(), name = take_line();
        return module && name && push(std::string(*module) + "." + std::string(*name));
      }
      case 'q':  // remember, under one byte
        return remember(take<uint8_t>());
      case 'r':
        return remember(take<uint32_t>());
      case 'h':  // recall
        return recall(take<uint8_t>());
      case 'j':
        return recall(take<uint32_t>());
      case '(':
        return push(Mark());
      case 'X': {  // text
        const auto length = take<uint32_t>();
        const auto text = length ? take_bytes(*length) : std::nullopt;
        return text && push(std::string(*text));
      }
      case 'K':
        return push_number(take<uint8_t>());
      case 'M':
        return push_number(take<uint16_t>());
      case 'J':
        return push_number(take<int32_t>());
      case '\x88':  // true
      case '\x89':  // false
      case 'N':     // none
      case '}':     // empty dict
        return push(Other());
      case ')':
        return push(std::make_shared<Tuple>());
      case '\x85':
      case '\x86':
      case '\x87':
        return push_tuple(opcode - '\x84');
      case 't': {  // tuple of all since the mark
        size_t count = 0;
        while (count < stack_.size() && !std::holds_alternative<Mark>(stack_[stack_.size() - 1 - count])) {
          ++count;
        }
        return count < stack_.size() && push_tuple(count, /*has_mark=*/true);
      }
      case 'Q': {  // what has a persistent id: the storage
        auto id = pop();
        const auto* tuple = id ? std::get_if<std::shared_ptr<Tuple>>(&*id) : nullptr;
        return tuple && push(std::make_shared<Call>(Call{"", (*tuple)->items}));
      }
      case 'R': {  // call
        auto arguments = pop(), function = pop();
        const auto* tuple = arguments ? std::get_if<std::shared_ptr<Tuple>>(&*arguments) : nullptr;
        const auto* name = function ? std::get_if<std::string>(&*function) : nullptr;
        return tuple && name && push(std::make_shared<Call>(Call{*name, (*tuple)->items}));
      }
      default:
        return false;
    }
  }

  template <typename T>
  std::optional<T> take() {
    const auto value = number_at<T>(bytes_, position_);
    position_ += sizeof(T);
    return value;
  }

  std::optional<std::string_view> take_bytes(size_t length) {
    if (position_ > bytes_.size() || bytes_.size() - position_ < length) {
      return std::nullopt;
    }
    position_ += length;
    return bytes_.substr(position_ - length, length);
  }

  std::optional<std::string_view> take_line() {
    const size_t end = bytes_.find('\n', position_);
    if (end == bytes_.npos) {
      return std::nullopt;
    }
    const auto line = take_bytes(end - position_);
    ++position_;
    return line;
  }

  bool push(Value value) {
    stack_.push_back(std::move(value));
    return true;
  }

  template <typename T>
  bool push_number(std::optional<T> value) {
    return value && push(int64_t(*value));
  }

  bool push_tuple(size_t count, bool has_mark = false) {
    if (stack_.size() < count + has_mark) {
      return false;
    }
    auto tuple = std::make_shared<Tuple>();
    tuple->items.assign(stack_.end() - count, stack_.end());
    stack_.resize(stack_.size() - count - has_mark);
    return push(tuple);
  }

  std::optional<Value> pop() {
    if (stack_.empty()) {
      return std::nullopt;
    }
    Value value = std::move(stack_.back());
    stack_.pop_back();
    return value;
  }

  bool remember(std::optional<uint32_t> index) {
    if (!index || stack_.empty()) {
      return false;
    }
    memory_[*index] = stack_.back();
    return true;
  }

  bool recall(std::optional<uint32_t> index) {
    const auto found = index ? memory_.find(*index) : memory_.end();
    return found != memory_.end() && push(found->second);
  }

  std::string_view bytes_;
  size_t position_ = 0;
  std::vector<Value> stack_;
  std::map<uint32_t, Value> memory_;
};

std::vector<int64_t> numbers(const Value& value) {
  std::vector<int64_t> result;
  if (const auto* tuple = std::get_if<std::shared_ptr<Tuple>>(&value)) {
    for (const Value& item : (*tuple)->items) {
      const auto* number = std::get_if<int64_t>(&item);
      result.push_back(number ? *number : -1);
    }
  }
  return result;
}

template <typename T>
T item(const std::vector<Value>& values, size_t index) {
  const T* value = index < values.size() ? std::get_if<T>(&values[index]) : nullptr;
  return value ? *value : T();
}

}  // namespace

ImageCHW read_tensor_file(const std::string& path) {
  const std::string archive = read_file<ImageError>(path);
  const auto files = stored_files(archive);
  const auto pickle = files.find("data.pkl");
  if (pickle == files.end()) {
    fail(path);
  }
  const auto value = Unpickler(pickle->second).run();
  const auto* tensor = value ? std::get_if<std::shared_ptr<Call>>(&*value) : nullptr;
  // _rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)
  if (!tensor || (*tensor)->function != "torch._utils._rebuild_tensor_v2" || (*tensor)->arguments.size() < 4) {
    fail(path);
  }
  const auto& arguments = (*tensor)->arguments;
  const auto storage = item<std::shared_ptr<Call>>(arguments, 0);
  const auto offset = item<int64_t>(arguments, 1);
  const auto shape = numbers(arguments[2]);
  const auto strides = numbers(arguments[3]);
  // The storage's id: ("storage", type, key, device, size)
  if (!storage || !storage->function.empty() || item<std::string>(storage->arguments, 1) != "torch.ByteStorage") {
    fail(path);
  }
  const std::string key = "data/" + item<std::string>(storage->arguments, 2);
  const auto bytes = files.find(key);
  constexpr int64_t kMaxSide = 1 << 15;
  if (bytes == files.end() || shape.size() != 3 || strides.size() != 3 || shape[0] != 3 || shape[1] < 1 ||
      shape[2] < 1 || shape[1] > kMaxSide || shape[2] > kMaxSide || offset < 0) {
    fail(path);
  }
  const int64_t size = int64_t(bytes->second.size());
  int64_t last = offset;
  for (size_t i = 0; i < 3; ++i) {
    if (strides[i] < 0 || strides[i] > size) {
      fail(path);
    }
    last += (shape[i] - 1) * strides[i];
  }
  if (last >= size) {
    fail(path);
  }
  ImageCHW image{int(shape[1]), int(shape[2]), {}};
  image.bytes.reserve(size_t(shape[0] * shape[1] * shape[2]));
  for (int64_t channel = 0; channel < 3; ++channel) {
    for (int64_t y = 0; y < shape[1]; ++y) {
      for (int64_t x = 0; x < shape[2]; ++x) {
        image.bytes.push_back(uint8_t(bytes->second[offset + channel * strides[0] + y * strides[1] + x * strides[2]]));
      }
    }
  }
  return image;
}

}  // namespace llava
