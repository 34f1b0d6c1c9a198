// ExecuTorch's event tracer: what each instruction of a method took, and each operator inside XNNPACK's delegates.
#pragma once

#include <executorch/runtime/core/event_tracer.h>

#include <string>

namespace llava {

class Trace {
 public:
  virtual ~Trace() = default;

  // Returns the tracer of a method's calls. It lives as long as this.
  virtual executorch::runtime::EventTracer* of(const std::string& method) = 0;
};

}  // namespace llava
