// Runs work in a child that dies with this process.
#include "base/own_process.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

namespace llava {

bool in_own_process(const std::function<void()>& work, const std::function<void()>& meanwhile) {
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
      _exit(1);
    }
    try {
      work();
    } catch (...) {
      _exit(1);  // this process meets the same error later, and reports it
    }
    _exit(0);
  }
  try {
    meanwhile();
  } catch (...) {
    if (child > 0) {
      kill(child, SIGKILL);
      waitpid(child, nullptr, 0);
    }
    throw;
  }
  int status = 0;
  while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace llava
