// Opens image files.
#include "image/image_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdint>
#include <cstring>

#include "base/descriptor.h"
#include "base/errors.h"
#include "image/formats/known_formats.h"

namespace llava {
namespace {

constexpr size_t kMaxFileBytes = size_t(1) << 30;
constexpr size_t kChunkBytes = size_t(1) << 20;

bool is_url(const std::string& path) {
  const auto is_of_scheme = [](uint8_t c) { return std::isalnum(c) || c == '+' || c == '.' || c == '-'; };
  const size_t end = path.find("://");
  const bool has_scheme = end != path.npos && end > 1 && std::isalpha(uint8_t(path[0])) &&
                          std::all_of(path.begin(), path.begin() + std::ptrdiff_t(end), is_of_scheme);
  return has_scheme || path.starts_with("data:");
}

[[noreturn]] void fail_to_open(const std::string& path, int error) {
  throw ImageError(path + " cannot be read: " + std::strerror(error));
}

class File {
 public:
  explicit File(const std::string& path) : path_(path), descriptor_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (!descriptor_) {
      fail_to_open(path, errno);
    }
  }

  // Appends up to `count` bytes, fewer only at the end of the file.
  void append(std::string& content, size_t count) const {
    const size_t begin = content.size();
    content.resize(begin + count);
    size_t have = 0;
    while (have < count) {
      const ssize_t got = read(descriptor_.number(), content.data() + begin + have, count - have);
      if (got < 0 && errno != EINTR) {
        fail_to_open(path_, errno);
      }
      if (got == 0) {
        break;
      }
      have += got > 0 ? size_t(got) : 0;
    }
    content.resize(begin + have);
  }

  // Returns the size of a file; 0 for a pipe.
  size_t size() const {
    struct stat info{};
    return fstat(descriptor_.number(), &info) == 0 && S_ISREG(info.st_mode) ? size_t(info.st_size) : 0;
  }

 private:
  const std::string& path_;
  Descriptor descriptor_;
};

}  // namespace

void check_image_path(const std::string& path) {
  if (path.empty()) {
    throw ImageError("the path of the image is empty");
  }
  struct stat info{};
  if (stat(path.c_str(), &info) != 0) {
    const int error = errno;
    if (is_url(path)) {
      throw ImageError(path.substr(0, 100) + " is a URL; download the image first, and give the path of its file");
    }
    if (error == ENOENT || error == ENOTDIR) {
      throw ImageError(path + " does not exist");
    }
    fail_to_open(path, error);
  }
  if (S_ISDIR(info.st_mode)) {
    throw ImageError(path + " is a folder, not an image");
  }
  if (S_ISCHR(info.st_mode) || S_ISBLK(info.st_mode)) {
    throw ImageError(path + " is a device, not an image");
  }
}

std::string read_image_file(const std::string& path) {
  check_image_path(path);
  const File file(path);
  std::string content;
  file.append(content, kHeadBytes);
  check_format(path, content);
  const auto check_bytes = [&](size_t size) {
    if (size > kMaxFileBytes) {
      throw ImageError(path + " is too large: at most " + std::to_string(kMaxFileBytes) + " bytes are read");
    }
  };
  check_bytes(file.size());
  if (file.size() > content.size()) {
    file.append(content, file.size() - content.size());
  }
  for (size_t before = 0; before != content.size() && file.size() == 0;) {  // a pipe, to its end
    before = content.size();
    file.append(content, kChunkBytes);
    check_bytes(content.size());
  }
  return content;
}

}  // namespace llava
