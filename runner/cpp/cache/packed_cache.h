// Weights as XNNPACK's kernels read them, in a file beside the program: made once, mapped from then on.
//
// Packing takes as long as all else at a start, and memory that the system can neither drop nor share between processes.
#pragma once

#include <functional>
#include <string>

namespace llava {

class PackedCache {
 public:
  // Finds the file that was made of this program on this processor by this ExecuTorch, and checks every byte of it. If
  // there is none, `pack` makes it at the path it is given, in a process of its own: whatever happens to that one, a
  // full disk for example, the answer is not touched. Meanwhile this one compares the program with its manifest. While
  // a third one packs, it waits.
  //
  // `folder` is where such files are kept. Without a usable file path() is empty, and a note on stderr says why. Throws
  // PackageError for a program that is damaged.
  PackedCache(
      const std::string& program_path, const std::string& folder, const std::function<void(const std::string&)>& pack);
  PackedCache(const PackedCache&) = delete;

  // Lets other processes use the file: to be destroyed once the program is loaded.
  ~PackedCache();

  const std::string& path() const { return path_; }

 private:
  std::string find(const std::string& key) const;
  std::string make(
      const std::string& program_path, const std::string& key, const std::function<void(const std::string&)>& pack) const;
  void remove_leftovers(const std::string& program_key) const;

  std::string folder_;
  std::string stem_;
  std::string path_;
  int lock_ = -1;
};

}  // namespace llava
