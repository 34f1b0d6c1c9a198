// How many threads ExecuTorch computes with. The wheel's libexecutorch_threadpool.so has these, and no header for them.
#pragma once

#include <cstdint>

namespace executorch::extension::threadpool {

class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t num_threads);  // not while anything runs on it
};

ThreadPool* get_threadpool();

}  // namespace executorch::extension::threadpool
