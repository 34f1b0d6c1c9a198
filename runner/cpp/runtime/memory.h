// The memory of this process, as the Python runner counts it, too (llava_runner/timings.py).
#pragma once

#include <cstdint>

namespace llava {

// Returns the most memory that this process has had resident, in bytes: VmHWM in /proc/self/status, 0 where there is
// none. Unlike getrusage's ru_maxrss it leaves out the process that started this one.
int64_t peak_memory();

// Returns the resident memory, in bytes, that is no file's content: the system cannot drop it and read it again.
int64_t anonymous_memory();

}  // namespace llava
