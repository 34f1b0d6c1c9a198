// Traces as ExecuTorch's Inspector reads them.
#pragma once

#include <executorch/devtools/etdump/etdump_flatcc.h>

#include <map>
#include <string>

#include "runtime/trace.h"

namespace llava {

class EtDump : public Trace {
 public:
  executorch::runtime::EventTracer* of(const std::string& method) override { return &tracers_[method]; }

  // METHOD.etdump in `folder` for each method, with all its calls; none may follow. Throws UserError where they cannot
  // be written.
  void write(const std::string& folder);

 private:
  std::map<std::string, executorch::etdump::ETDumpGen> tracers_;
};

}  // namespace llava
