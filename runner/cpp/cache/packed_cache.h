// A file of weights in the order in which XNNPACK's kernels read them: made once, mapped from then on.
//
// Without it every start packs all weights. That takes as long as the rest of the start, and memory that the system can
// neither drop nor share between processes.
#pragma once

#include <functional>
#include <string>

#include "base/descriptor.h"

namespace llava {

// Which program the weights are packed of, and where the file is kept.
struct PackedCacheOptions {
  std::string program_path;
  std::string structure;  // of the program, see ProgramStructure
  std::string folder;     // empty: the program's folder
  bool may_pack;          // if there is no file, make it
  bool may_fork;          // pack in a process of its own; not where ExecuTorch's threads run, which a fork lacks
};

class PackedCache {
 public:
  // Finds the file that was made of this program on this processor by this ExecuTorch, and checks every byte of it. If
  // there is none, `pack` makes it, at the path it is given. It does so in a process of its own if it may: if that one
  // fails, on a full disk for example, this one goes on without the file. Meanwhile this process compares the program
  // with its manifest. If another process packs the same, this one waits for it.
  //
  // If no file can be used, path() is empty, and a note on stderr says why. Throws PackageError for a damaged program.
  PackedCache(const PackedCacheOptions& options, const std::function<void(const std::string&)>& pack);
  PackedCache(const PackedCache&) = delete;

  // Returns the path by which ExecuTorch opens the file. It leads to the very file that was checked, and only as long
  // as this object lives, so destroy it once the program is loaded. As long as it lives, ExecuTorch cannot write to the
  // file.
  const std::string& path() const { return path_; }

 private:
  Descriptor find(const std::string& begin) const;
  Descriptor make(
      const std::string& begin, const std::string& program, const std::function<void(const std::string&)>& pack) const;
  void remove_leftovers(const std::string& program_key) const;
  bool can_be_mapped(const Descriptor& file) const;
  std::string named(const std::string& name) const { return folder_path_ + "/" + name; }

  std::string folder_path_;
  bool may_fork_;
  std::string stem_;
  Descriptor folder_;  // locked while the file is made and while it is loaded, also by the process that packs
  Descriptor file_;
  std::string path_;
};

}  // namespace llava
