// Writes traces to files.
#include "runtime/etdump.h"

#include <cstdlib>
#include <fstream>

#include "base/errors.h"

namespace llava {

void EtDump::write(const std::string& folder) {
  for (auto& [method, tracer] : tracers_) {
    const executorch::etdump::ETDumpResult dump = tracer.get_etdump_data();
    const std::string path = folder + "/" + method + ".etdump";
    std::ofstream file(path, std::ios::binary);
    file.write(static_cast<const char*>(dump.buf), std::streamsize(dump.size));
    file.close();
    std::free(dump.buf);
    if (!file) {
      throw UserError(path + " cannot be written");
    }
  }
}

}  // namespace llava
