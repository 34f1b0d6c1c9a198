// Work that may be killed without harm to this process.
#pragma once

#include <functional>

namespace llava {

// Runs `work` in a process of its own, and `meanwhile` in this one. Returns whether the other process succeeded. What
// `meanwhile` throws ends the other process, too.
bool in_own_process(const std::function<void()>& work, const std::function<void()>& meanwhile);

}  // namespace llava
