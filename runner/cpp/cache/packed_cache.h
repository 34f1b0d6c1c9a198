// A file of weights in the order in which XNNPACK's kernels read them: made once, mapped from then on.
//
// Without it every start packs all weights. That takes as long as the rest of the start, and memory that the system can
// neither drop nor share between processes.
#pragma once

#include <functional>
#include <string>

namespace llava {

class PackedCache {
 public:
  // Finds the file that was made of this program on this processor by this ExecuTorch, and checks every byte of it. If
  // there is none, `pack` makes it, at the path it is given. It does so in a process of its own: if that one fails, on
  // a full disk for example, this one goes on without the file. Meanwhile this process compares the program with its
  // manifest. If another process packs the same, this one waits for it.
  //
  // `folder` is where such files are kept. If none can be used, path() is empty, and a note on stderr says why. Throws
  // PackageError for a damaged program.
  PackedCache(
      const std::string& program_path, const std::string& folder, const std::function<void(const std::string&)>& pack);
  PackedCache(const PackedCache&) = delete;

  // Lets other processes use the file. Destroy it once the program is loaded.
  ~PackedCache();

  const std::string& path() const { return path_; }

 private:
  std::string find(const std::string& key) const;
  std::string make(
      const std::string& program_path,
      const std::string& key,
      const std::function<void(const std::string&)>& pack) const;
  void remove_leftovers(const std::string& program_key) const;

  std::string folder_;
  std::string stem_;
  std::string path_;
  int lock_ = -1;
};

}  // namespace llava
