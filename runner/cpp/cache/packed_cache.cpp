// Finds, checks, makes and removes files of packed weights.
#include "cache/packed_cache.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>
#include <vector>

#include "base/digest.h"
#include "base/errors.h"
#include "package/program_file.h"

namespace llava {
namespace {

namespace fs = std::filesystem;

// A file's name: STEM.PROGRAM-MACHINE-CONTENT.packed, the last three digests. A file is only used if its content is
// what its name says: torn, truncated and altered files have another content.
constexpr const char* kSuffix = ".packed";
constexpr const char* kUnfinished = ".packing";
constexpr size_t kKeyDigits = 16;    // of the digests of program and machine: enough to tell a few apart
constexpr size_t kPathAtMost = 255;  // bytes; ExecuTorch cuts a longer one short, and it would name another file

void note(const std::string& message) {
  std::fprintf(stderr, "note: %s\n", message.c_str());
}

uint64_t size_of(const fs::path& path) {
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  return error ? 0 : uint64_t(size);
}

std::vector<fs::path> files_in(const std::string& folder) {
  std::vector<fs::path> paths;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    paths.push_back(entry->path());
  }
  return paths;
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
  return hexadecimal(digest(bytes_of(features))).substr(0, kKeyDigits);
}

// Runs `work` in a process of its own, and `meanwhile` in this one. Returns whether the other process succeeded.
bool in_own_process(const std::function<void()>& work, const std::function<void()>& meanwhile) {
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
      _exit(1);
    }
    try {
      work();
    } catch (const UserError&) {
      _exit(1);  // this process meets the same error later, and reports it
    }
    _exit(0);
  }
  try {
    meanwhile();
  } catch (...) {
    if (child > 0) {
      kill(child, SIGKILL);
      waitpid(child, nullptr, 0);
    }
    throw;
  }
  int status = 0;
  while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// Waits until all of a file has reached the disk. Returns false where it cannot.
bool is_written(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  const bool written = file >= 0 && fsync(file) == 0;
  if (file >= 0) {
    close(file);
  }
  return written;
}

}  // namespace

PackedCache::PackedCache(
    const std::string& program_path, const std::string& folder, const std::function<void(const std::string&)>& pack)
    : folder_(folder.empty() ? "." : folder), stem_(fs::path(program_path).stem().string()) {
  // Held while the file is made and while it is loaded, also by the process that packs.
  lock_ = open(folder_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ < 0) {
    note("packed weights are not kept: " + folder_ + ": " + std::strerror(errno));
    return;
  }
  while (flock(lock_, LOCK_EX) != 0 && errno == EINTR) {
  }
  const std::string program_key = hexadecimal(digest_of_structure(program_path)).substr(0, kKeyDigits);
  const std::string key = program_key + "-" + key_of_machine();
  if ((folder_ + "/" + stem_ + "." + key + "-" + hexadecimal({}) + kSuffix).size() > kPathAtMost) {
    note("packed weights are not kept: the path of their file in " + folder_ + " would be too long");
    return;
  }
  remove_leftovers(program_key);
  path_ = find(key);
  if (path_.empty()) {
    path_ = make(program_path, key, pack);
  }
}

PackedCache::~PackedCache() {
  // ExecuTorch keeps the file locked for as long as it is mapped, though it only reads it. Let others do so too.
  for (const fs::path& descriptor : files_in("/proc/self/fd")) {
    std::error_code error;
    if (!path_.empty() && fs::equivalent(descriptor, path_, error)) {
      flock(std::atoi(descriptor.filename().c_str()), LOCK_UN);
    }
  }
  if (lock_ >= 0) {
    close(lock_);
  }
}

std::string PackedCache::find(const std::string& key) const {
  const std::string begin = stem_ + "." + key + "-";
  for (const fs::path& path : files_in(folder_)) {
    const std::string name = path.filename().string();
    if (!name.starts_with(begin) || !name.ends_with(kSuffix)) {
      continue;
    }
    const auto content = digest_of_file(path.string(), size_of(path));
    if (content && name == begin + hexadecimal(*content) + kSuffix) {
      return path.string();
    }
    note(path.string() + " is damaged: it is made anew");
    std::error_code error;
    fs::remove(path, error);
  }
  return "";
}

std::string PackedCache::make(
    const std::string& program_path,
    const std::string& key,
    const std::function<void(const std::string&)>& pack) const {
  std::error_code error;
  // XNNPACK writes to the file as if it were memory. If the disk becomes full, that kills the process.
  const uint64_t wanted = size_of(program_path) / 8 * 9;
  const uint64_t available = fs::space(folder_, error).available;
  if (error || available < wanted || access(folder_.c_str(), W_OK) != 0) {
    note(
        "packed weights are not kept, so every start takes as long as this one: " + folder_ +
        (access(folder_.c_str(), W_OK) != 0
             ? " cannot be written to"
             : " has " + std::to_string(available >> 20) + " MiB free of " + std::to_string(wanted >> 20)));
    return "";
  }
  note("packing weights for this processor, once");
  const std::string unfinished = folder_ + "/" + stem_ + "." + key + kUnfinished;
  bool packed = false;
  try {
    packed = in_own_process([&] { pack(unfinished); }, [&] { check_against_manifest(program_path); });
  } catch (const PackageError&) {
    fs::remove(unfinished, error);
    throw;
  }
  packed = packed && size_of(unfinished) > 0 && is_written(unfinished);
  if (const auto content = packed ? digest_of_file(unfinished, size_of(unfinished)) : std::nullopt) {
    const std::string path = folder_ + "/" + stem_ + "." + key + "-" + hexadecimal(*content) + kSuffix;
    // Read-only for all: ExecuTorch would add to the file whatever it does not find there.
    fs::permissions(unfinished, fs::perms::owner_read | fs::perms::group_read | fs::perms::others_read, error);
    fs::rename(unfinished, path, error);
    if (!error) {
      return path;
    }
  }
  note("packed weights are not kept: " + unfinished + " could not be written");
  fs::remove(unfinished, error);
  return "";
}

void PackedCache::remove_leftovers(const std::string& program_key) const {
  for (const fs::path& path : files_in(folder_)) {
    const std::string name = path.filename().string();
    if (!name.starts_with(stem_ + ".")) {
      continue;
    }
    const bool of_this_program = name.substr(stem_.size() + 1).starts_with(program_key + "-");
    // Nobody is writing an unfinished file: its writer would hold the lock.
    if (name.ends_with(kUnfinished) || (name.ends_with(kSuffix) && !of_this_program)) {
      std::error_code error;
      fs::remove(path, error);
    }
  }
}

}  // namespace llava
