// An exported program on ExecuTorch's runtime: the methods of the contract as calls.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "image/image.h"
#include "package/model_card.h"
#include "runtime/kv_cache.h"

namespace llava {

// Rows for the decoder: float32 [T, hidden_size].
using Rows = std::vector<float>;

// Which of XNNPACK's delegates share their memory for intermediate results.
enum class WorkspaceSharing { kDisabled, kPerModel, kGlobal };

class Trace;  // in trace.h, which includes ExecuTorch's headers

constexpr int kThreadsAtMost = 1024;  // far more only take memory, and end the process when that is used up

struct LoadOptions {
  WorkspaceSharing workspace_sharing = WorkspaceSharing::kPerModel;
  int cpu_threads = 0;            // to compute with; 0: as many as ExecuTorch chooses
  std::string packed_cache_path;  // a file of packed weights, made where it does not exist; empty: pack into memory
  std::string structure;          // of the program, see ProgramStructure: it names the program in what is saved
  bool needs_images = false;      // refuse a language model alone, before its weights are loaded
  Trace* trace = nullptr;         // traces all calls, unless it is null; it must outlive the program
};

// A loaded .pte; its text decoder holds one KV cache, so one conversation runs on it at a time.
class Program {
 public:
  // Loads the program and its methods, weights packed and ready to run. Throws PackageError when the file is
  // missing, damaged, or not a program of this contract.
  Program(const std::string& path, const LoadOptions& options);
  Program(Program&&) noexcept;

  // Returns how many programs are loaded in this process. ExecuTorch keeps the packed weights of one at a time.
  static int num_loaded();
  // Returns whether this process has ever loaded one, and so has ExecuTorch's threads.
  static bool was_loaded();
  ~Program();

  const ModelCard& card() const { return card_; }
  const std::string& card_text() const { return card_text_; }
  const std::string& structure() const { return structure_; }

  // Returns the tensors of the KV cache, for reading and writing. There are none before the first call of `decode`.
  const std::vector<CacheTensor>& caches() const { return caches_; }

  // Returns the rows of an image whose sides are at most image_size: [num_image_tokens, hidden_size]. Throws
  // PackageError where the program is a language model alone.
  Rows encode_image(const ImageCHW& image);

  // Returns the rows of T token ids: [T, hidden_size].
  Rows embed(std::span<const int32_t> ids);

  // Appends rows to the context at `position` and returns the logits of the last one, [vocab_size], the caller's until
  // the next call. More rows than max_seq_len go in as several calls. Rows cached at `position` and after it are
  // forgotten.
  std::span<float> decode(std::span<const float> rows, int position);

  // Appends at most max_seq_len rows likewise, in one call. Returns the logits after the last `logits_to_keep` of them,
  // [T, vocab_size].
  std::span<float> verify(std::span<const float> rows, int position);

 private:
  template <typename... Inputs>
  std::span<float> run(const char* method, size_t expected, const Inputs&... inputs);

  struct Runtime;  // ExecuTorch's headers stay in the source file

  std::string path_;
  std::unique_ptr<Runtime> runtime_;
  std::string card_text_;
  ModelCard card_;
  std::string structure_;
  std::vector<CacheTensor> caches_;
};

}  // namespace llava
