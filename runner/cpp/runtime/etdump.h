// Traces of a program's methods, as ExecuTorch's Inspector reads them.
#pragma once

#include <executorch/devtools/etdump/etdump_flatcc.h>

#include <map>
#include <string>

#include "runtime/trace.h"

namespace llava {

class EtDump : public Trace {
 public:
  executorch::runtime::EventTracer* of(const std::string& method) override { return &tracers_[method]; }

  // Writes METHOD.etdump into `folder` for each method, with all its calls. No call may follow. Throws UserError where
  // a file cannot be written.
  void write(const std::string& folder);

 private:
  std::map<std::string, executorch::etdump::ETDumpGen> tracers_;
};

}  // namespace llava
