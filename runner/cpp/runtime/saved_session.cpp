// A conversation that is kept: what the KV cache holds of it, in a file or in memory.
//
// The eight bytes of kMagic, the size of the header (uint64), the header in JSON, for each tensor of the cache the
// positions of the conversation, and the digest of all bytes before. Numbers are little-endian.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <functional>
#include <utility>

#include "base/descriptor.h"
#include "base/errors.h"
#include "base/files.h"
#include "package/json.h"
#include "runtime/session.h"

namespace llava {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little);
constexpr std::string_view kMagic = "llavakv2";
constexpr uint64_t kBeforeHeader = 16;        // bytes of magic and size
constexpr uint64_t kDigest = sizeof(Digest);  // bytes at the end

[[noreturn]] void fail(const std::string& what, const std::string& reason) {
  throw StateError(what + " cannot be restored: " + reason);
}

// Spells a context: the ids of tokens, and for each image where it is, how many rows it has, and its digest.
json spelled(const Context& context) {
  json ids = json::array(), images = json::array();
  const auto& entries = context.entries();
  for (size_t at = 0; at < entries.size(); ++at) {
    const Entry& entry = entries[at];
    if (!entry.is_image) {
      ids.push_back(entry.number);
    } else if (entry.number == 0) {
      images.push_back({{"at", at}, {"rows", 1}, {"digest", {entry.image.high, entry.image.low}}});
    } else {
      images.back()["rows"] = entry.number + 1;
    }
  }
  return {{"ids", ids}, {"images", images}};
}

// Returns the context that `spelled` has spelled. Throws nlohmann's exceptions, and StateError for what none is.
Context context_of(const json& header, const ModelCard& card, const std::string& what) {
  Context context;
  const std::vector<int32_t> ids = header.at("ids");
  size_t done = 0;
  const auto add_ids = [&](size_t until) {
    if (until < size_t(context.size()) || until - size_t(context.size()) > ids.size() - done) {
      fail(what, "its images overlap");
    }
    const size_t count = until - size_t(context.size());
    context.add_tokens(std::span(ids).subspan(done, count));
    done += count;
  };
  for (const json& image : header.at("images")) {
    add_ids(image.at("at"));
    if (image.at("rows") != card.num_image_tokens || context.size() > card.max_context_len) {
      fail(what, "an image in it has another size");
    }
    context.add_image({image.at("digest").at(0), image.at("digest").at(1)}, card.num_image_tokens);
  }
  add_ids(size_t(context.size()) + ids.size() - done);
  for (const int32_t id : ids) {
    if (id < 0 || id >= card.vocab_size) {
      fail(what, "it has a token that the model has not");
    }
  }
  return context;
}

}  // namespace

struct Session::Saved {
  Context context;
  int32_t last_id = -1;
  std::vector<int32_t> unread;
  uint64_t caches_at = 0;  // bytes before the first tensor
};

void Session::write_saved(const Write& write) const {
  if (position_ > 0 && program_.caches().empty()) {
    throw StateError("the conversation cannot be saved: the program writes its KV cache in a way that is not known");
  }
  Context context = cached_;
  context.shorten(position_);
  json header = spelled(context);
  header["program"] = program_.structure();
  header["last_id"] = last_id_;
  header["unread"] = unread_;
  const std::string text = header.dump();
  const uint64_t size = text.size();
  write(kMagic.data(), kMagic.size());
  write(&size, sizeof(size));
  write(text.data(), size);
  for (const CacheTensor& tensor : program_.caches()) {
    write(tensor.bytes, uint64_t(position_) * tensor.position_bytes);
  }
}

// Checks what was saved, and returns all of it but the tensors. `what` names it in messages.
Session::Saved Session::read_saved(const Read& read, uint64_t size, const Digest& content, const std::string& what) {
  char begin[kBeforeHeader] = {};
  uint64_t header_size = 0;
  Digest expected;
  if (size < kBeforeHeader + kDigest || !read(begin, sizeof(begin), 0) ||
      std::string_view(begin, kMagic.size()) != kMagic) {
    fail(what, "it is no saved conversation");
  }
  std::memcpy(&header_size, begin + kMagic.size(), sizeof(header_size));
  if (!read(&expected, kDigest, size - kDigest) || expected != content ||
      header_size > std::min<uint64_t>(size - kBeforeHeader - kDigest, kJsonAtMost)) {
    fail(what, "it is damaged");
  }
  std::string text(header_size, '\0');
  if (!read(text.data(), header_size, kBeforeHeader)) {
    fail(what, "it cannot be read");
  }
  Saved saved;
  saved.caches_at = kBeforeHeader + header_size;
  try {
    const json header = parse_json(text, what);
    if (header.at("program") != program_.structure()) {
      fail(what, "it was saved with another program");
    }
    saved.context = context_of(header, card(), what);
    saved.last_id = header.at("last_id");
    saved.unread = header.at("unread").get<std::vector<int32_t>>();
  } catch (const json::exception& error) {
    fail(what, std::string("its header is wrong: ") + error.what());
  } catch (const PackageError& error) {
    fail(what, error.what());
  }
  uint64_t position_bytes = 0;
  for (const CacheTensor& tensor : program_.caches()) {
    position_bytes += tensor.position_bytes;
  }
  const uint64_t position = uint64_t(saved.context.size());
  const auto is_unknown = [this](int32_t id) { return uint32_t(id) >= uint32_t(card().vocab_size); };
  if (saved.context.size() >= card().max_context_len ||
      position + saved.unread.size() > uint64_t(card().max_context_len) ||
      std::any_of(saved.unread.begin(), saved.unread.end(), is_unknown) ||
      size != saved.caches_at + position * position_bytes + kDigest) {
    fail(what, "it has another size than this program's");
  }
  return saved;
}

void Session::restore_from(const Read& read, uint64_t size, const Digest& content, const std::string& what) {
  if (program_.caches().empty()) {
    // The first call of the decoder tells where its cache is. What it writes is overwritten.
    program_.decode(Rows(size_t(card().hidden_size)), 0);
    cached_ = {};
  }
  const Saved saved = read_saved(read, size, content, what);
  reset();
  cached_ = {};  // if reading fails now, the conversation is lost
  uint64_t at = saved.caches_at;
  for (const CacheTensor& tensor : program_.caches()) {
    const uint64_t bytes = uint64_t(saved.context.size()) * tensor.position_bytes;
    if (!read(tensor.bytes, bytes, at)) {
      fail(what, "it cannot be read");
    }
    at += bytes;
  }
  cached_ = saved.context;
  position_ = cached_.size();
  last_id_ = saved.last_id;
  unread_ = saved.unread;
}

uint64_t Session::saved_size() const {
  uint64_t all = kDigest;
  write_saved([&](const void*, uint64_t size) { all += size; });
  return all;
}

void Session::save(std::span<uint8_t> to) const {
  size_t done = 0;
  const auto write = [&](const void* bytes, uint64_t size) {
    std::memcpy(to.subspan(done, size).data(), bytes, size);
    done += size;
  };
  write_saved(write);
  const Digest content = digest_as_file(to.first(done));
  write(&content, kDigest);
}

void Session::restore(std::span<const uint8_t> saved) {
  const auto read = [&](void* to, uint64_t size, uint64_t offset) {
    const bool is_there = offset <= saved.size() && size <= saved.size() - offset;
    if (is_there && size > 0) {
      std::memcpy(to, saved.data() + offset, size);
    }
    return is_there;
  };
  const size_t before_digest = saved.size() - std::min<size_t>(kDigest, saved.size());
  restore_from(read, saved.size(), digest_as_file(saved.first(before_digest)), "the saved conversation");
}

void Session::save(const std::string& path) const {
  const auto fail = [&]() { throw StateError(path + " cannot be written: " + std::strerror(errno)); };
  // A file of another name, so that the old one stays whole until the new one is.
  std::string unfinished = path + ".XXXXXX";
  const Descriptor file(mkstemp(unfinished.data()));
  if (!file) {
    fail();
  }
  uint64_t written = 0;
  const auto write = [&](const void* bytes, uint64_t size) {
    const char* next = static_cast<const char*>(bytes);
    while (size > 0) {
      const ssize_t count = ::write(file.number(), next, size);
      if (count < 0 && errno != EINTR) {
        fail();
      }
      const uint64_t done = count > 0 ? uint64_t(count) : 0;
      next += done;
      size -= done;
      written += done;
    }
  };
  try {
    write_saved(write);
    const std::optional<Digest> content = digest_of_file(file.number(), written);
    if (!content) {
      fail();
    }
    write(&*content, kDigest);
    if (fsync(file.number()) != 0 || std::rename(unfinished.c_str(), path.c_str()) != 0) {
      fail();
    }
  } catch (...) {
    unlink(unfinished.c_str());
    throw;
  }
}

void Session::restore(const std::string& path) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat info;
  if (!file || fstat(file.number(), &info) != 0) {
    fail(path, std::strerror(errno));
  }
  if (!S_ISREG(info.st_mode)) {
    fail(path, "it is not a file");
  }
  const uint64_t size = uint64_t(info.st_size);
  const auto read = [&](void* to, uint64_t count, uint64_t offset) {
    return read_at(file.number(), to, count, offset);
  };
  const std::optional<Digest> content = digest_of_file(file.number(), size - std::min(kDigest, size));
  if (!content) {
    fail(path, "it cannot be read");
  }
  restore_from(read, size, *content, path);
}

}  // namespace llava
