// Finds, checks, makes and removes files of packed weights.
#include "cache/packed_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

#include "base/digest.h"
#include "base/errors.h"
#include "base/own_process.h"
#include "package/manifest.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

// A file's name: STEM.PROGRAM-MACHINE-CONTENT.packed, the last three digests. A file is only used if its content is
// what its name says: torn, truncated and altered files have another content. While it is made, its name is
// STEM.RANDOM.packing.
constexpr std::string_view kSuffix = ".packed";
constexpr std::string_view kUnfinished = ".packing";
constexpr size_t kKeyDigits = 16;   // of the digests of program and machine: enough to tell a few apart
constexpr size_t kPlaceDigits = 8;  // of the digest of a program's path
constexpr mode_t kByOthers = S_IWGRP | S_IWOTH;

void note(const std::string& message) {
  std::fprintf(stderr, "note: %s\n", message.c_str());
}

std::string key_of(const std::string& text) {
  return hexadecimal(digest(bytes_of(text))).substr(0, kKeyDigits);
}

// Returns a key of what packing depends on, the program apart: the processor's features and XNNPACK's build.
std::string key_of_machine() {
  utsname system{};
  uname(&system);
  std::string features = std::string(LLAVA_EXECUTORCH_VERSION) + system.machine;
  std::ifstream cpuinfo("/proc/cpuinfo");
  for (std::string line; std::getline(cpuinfo, line);) {
    if (line.starts_with("flags") || line.starts_with("Features") || line.starts_with("CPU part")) {
      features += line;  // of every core, since they may differ
    }
  }
  return key_of(features);
}

// Returns what the names of a program's files begin with. In a folder that programs share, several may have the same
// name: there the name is followed by a digest of the program's place.
std::string stem_of(const fs::path& program, const fs::path& folder) {
  std::error_code error;
  const std::string name = program.stem().string();
  const fs::path own = program.parent_path().empty() ? fs::path(".") : program.parent_path();
  if (fs::equivalent(own, folder, error)) {
    return name;
  }
  return name + "-" + key_of(fs::weakly_canonical(program, error).string()).substr(0, kPlaceDigits);
}

bool are_digits(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789abcdef") == text.npos;
}

// Returns whether `text` begins with PROGRAM-MACHINE and goes on with nothing but digits and hyphens.
bool has_key(std::string_view text) {
  constexpr size_t kSize = 2 * kKeyDigits + 1;
  return text.size() >= kSize && text[kKeyDigits] == '-' && are_digits(text.substr(0, kKeyDigits)) &&
         are_digits(text.substr(kKeyDigits + 1, kKeyDigits)) &&
         text.find_first_not_of("0123456789abcdef-", kSize) == text.npos;
}

// Returns the part of a file's name between `begin` and `end`, if it has both.
std::optional<std::string_view> between(std::string_view name, std::string_view begin, std::string_view end) {
  if (name.size() < begin.size() + end.size() || !name.starts_with(begin) || !name.ends_with(end)) {
    return std::nullopt;
  }
  return name.substr(begin.size(), name.size() - begin.size() - end.size());
}

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  return names;
}

std::optional<struct stat> status_of(const Descriptor& file) {
  struct stat status{};
  return fstat(file.number(), &status) == 0 ? std::optional(status) : std::nullopt;
}

uint64_t size_of(const Descriptor& file) {
  const auto status = status_of(file);
  return status ? uint64_t(status->st_size) : 0;
}

// Returns whether nobody but this user and root can have made the file, or can write to it.
bool is_trusted(const Descriptor& file) {
  const auto status = status_of(file);
  return status && S_ISREG(status->st_mode) && (status->st_uid == geteuid() || status->st_uid == 0) &&
         !(status->st_mode & kByOthers);
}

// Returns the path by which another part of this process, or a child, opens the same file again.
std::string path_of(const Descriptor& file) {
  return "/proc/self/fd/" + std::to_string(file.number());
}

// Waits until no other process has the folder locked. Returns false after ten minutes. Where the file system has no
// locks, there is nothing to wait for.
bool lock(const Descriptor& folder) {
  constexpr auto kPause = std::chrono::milliseconds(50);
  constexpr int kNoteAfter = 40, kGiveUpAfter = 12'000;  // pauses
  for (int i = 0; i < kGiveUpAfter; ++i) {
    if (flock(folder.number(), LOCK_EX | LOCK_NB) == 0 || (errno != EWOULDBLOCK && errno != EINTR)) {
      return true;
    }
    if (i == kNoteAfter) {
      note("waiting for another process, which packs weights");
    }
    std::this_thread::sleep_for(kPause);
  }
  return false;
}

// Returns whether `size` bytes of a file, or of nothing, can be mapped into this process.
bool has_address_space(uint64_t size, int flags, int file) {
  void* const map = mmap(nullptr, size, PROT_READ, flags, file, 0);
  if (map == MAP_FAILED) {
    return false;
  }
  munmap(map, size);
  return true;
}

std::string random_digits() {
  uint64_t number = 0;
  if (getrandom(&number, sizeof(number), 0) != sizeof(number)) {
    throw std::system_error(errno, std::generic_category(), "getrandom");
  }
  return hexadecimal({number, 0}).substr(0, kKeyDigits);
}

// Lets everybody whom the umask allows read the file, and nobody write to it.
bool protect(const Descriptor& file) {
  const mode_t mask = umask(0);
  umask(mask);
  return fchmod(file.number(), (S_IRUSR | S_IRGRP | S_IROTH) & ~mask) == 0;
}

}  // namespace

PackedCache::PackedCache(const PackedCacheOptions& options, const std::function<void(const std::string&)>& pack)
    : folder_path_(options.folder), may_fork_(options.may_fork) {
  if (folder_path_.empty()) {
    const std::string own = fs::path(options.program_path).parent_path().string();
    folder_path_ = own.empty() ? "." : own;
  }
  folder_ = Descriptor(open(folder_path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!folder_) {
    note("packed weights are not kept: " + folder_path_ + ": " + std::strerror(errno));
    return;
  }
  if (access(path_of(folder_).c_str(), F_OK) != 0) {
    note("packed weights are not kept: /proc is not there");
    return;
  }
  if (!lock(folder_)) {
    note("packed weights are not used: another process has locked " + folder_path_ + " for too long");
    return;
  }
  stem_ = stem_of(options.program_path, folder_path_);
  const std::string program_key = options.structure.substr(0, kKeyDigits);
  const std::string begin = stem_ + "." + program_key + "-" + key_of_machine() + "-";
  remove_leftovers(program_key);
  file_ = find(begin);
  if (!file_ && !options.may_pack) {
    note("packed weights are not kept: another program is loaded in this process");
  } else if (!file_) {
    file_ = make(begin, options.program_path, pack);
  }
  if (file_ && can_be_mapped(file_)) {
    path_ = path_of(file_);
  }
}

Descriptor PackedCache::find(const std::string& begin) const {
  for (const std::string& name : names_in(folder_path_)) {
    const auto content = between(name, begin, kSuffix);
    if (!content || !are_digits(*content)) {
      continue;
    }
    Descriptor file(openat(folder_.number(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
    if (!file || !is_trusted(file)) {
      note(named(name) + " is not used: it is not a file that only you or root can write");
      continue;
    }
    const auto digest = digest_of_file(file.number(), size_of(file));
    if (digest && *content == hexadecimal(*digest)) {
      return file;
    }
    note(named(name) + " is damaged: it is made anew");
    unlinkat(folder_.number(), name.c_str(), 0);
  }
  return {};
}

Descriptor PackedCache::make(
    const std::string& begin, const std::string& program, const std::function<void(const std::string&)>& pack) const {
  std::error_code error;
  const uint64_t program_size = fs::file_size(program, error);
  // XNNPACK writes to the file as if it were memory. If the disk becomes full, that kills the process.
  const uint64_t wanted = program_size / 8 * 9;
  const uint64_t available = fs::space(folder_path_, error).available;
  const std::string unfinished = stem_ + "." + random_digits() + std::string(kUnfinished);
  const auto give_up = [&](const std::string& why) {
    note("packed weights are not kept, so every start takes as long as this one: " + why);
    return Descriptor();
  };
  if (!has_address_space(program_size + wanted, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1)) {
    return give_up("the address space of this process is too small (ulimit -v)");
  }
  if (error || available < wanted) {
    return give_up(
        folder_path_ + " has " + std::to_string(available >> 20) + " MiB free of " + std::to_string(wanted >> 20));
  }
  const int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  Descriptor file(openat(folder_.number(), unfinished.c_str(), flags, S_IRUSR | S_IWUSR));
  if (!file) {
    return give_up(folder_path_ + " cannot be written to: " + std::strerror(errno));
  }
  const auto remove = [&] { unlinkat(folder_.number(), unfinished.c_str(), 0); };
  if (!is_trusted(file)) {  // a file system without owners
    remove();
    return give_up("others can write to the files in " + folder_path_);
  }
  note("packing weights for this processor, once");
  bool packed = false;
  try {
    const auto pack_it = [&] { pack(path_of(file)); };
    const auto check_it = [&] { check_whole_program(program); };
    if (may_fork_) {
      packed = in_own_process(pack_it, check_it);
    } else {
      check_it();
      pack_it();
      packed = true;
    }
  } catch (...) {
    remove();
    throw;
  }
  packed = packed && size_of(file) > 0 && protect(file) && fsync(file.number()) == 0;
  if (const auto content = packed ? digest_of_file(file.number(), size_of(file)) : std::nullopt) {
    const std::string name = begin + hexadecimal(*content) + std::string(kSuffix);
    if (renameat(folder_.number(), unfinished.c_str(), folder_.number(), name.c_str()) == 0) {
      return file;
    }
  }
  note("packed weights are not kept: " + named(unfinished) + " could not be written");
  remove();
  return {};
}

// Makes sure that ExecuTorch maps the file. Where it cannot, it would empty the file, which other processes may have
// mapped. It also locks the file before it writes, and this lock is in its way.
bool PackedCache::can_be_mapped(const Descriptor& file) const {
  if (flock(file.number(), LOCK_SH | LOCK_NB) != 0) {
    note("packed weights are not used: another process has locked their file");
    return false;
  }
  if (!has_address_space(size_of(file), MAP_SHARED, file.number())) {
    note("packed weights are not used: the address space of this process is too small for their file (ulimit -v)");
    return false;
  }
  return true;
}

// Removes the files of former programs at this one's place, and unfinished files. Nobody is writing those: their writer
// would hold the lock.
void PackedCache::remove_leftovers(const std::string& program_key) const {
  for (const std::string& name : names_in(folder_path_)) {
    const auto unfinished = between(name, stem_ + ".", kUnfinished);
    const auto packed = between(name, stem_ + ".", kSuffix);
    const bool is_unfinished =
        unfinished && ((unfinished->size() == kKeyDigits && are_digits(*unfinished)) || has_key(*unfinished));
    const bool is_former = packed && has_key(*packed) && !packed->starts_with(program_key + "-");
    struct stat status{};
    if ((is_unfinished || is_former) && fstatat(folder_.number(), name.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0 &&
        status.st_uid == geteuid()) {
      unlinkat(folder_.number(), name.c_str(), 0);
    }
  }
}

}  // namespace llava
