// How a program ends: what is printed, and which exit code it has.
#pragma once

#include <functional>

namespace llava {

// Calls `work`, and returns the exit code of the program. 0: all is done and printed. 2, after one line on stderr: a
// UserError, or output that could not be written. 70, likewise: memory ran out, or the program has a bug. What is
// thrown in another thread, where nothing catches it, also ends the program with its line and its code.
//
// Standard descriptors that are closed are opened first, to nowhere. Otherwise the next file that is opened would be
// one of them, and what is printed would be written into it.
int exit_cleanly(const std::function<void()>& work);

}  // namespace llava
