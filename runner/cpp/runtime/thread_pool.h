// Declares ExecuTorch's thread pool. The wheel has it in libexecutorch_threadpool.so, but no header for it.
#pragma once

#include <cstdint>

namespace executorch::extension::threadpool {

class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t num_threads);  // not while anything runs on it
};

ThreadPool* get_threadpool();

}  // namespace executorch::extension::threadpool
