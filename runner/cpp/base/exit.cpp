// How a program ends: one handler for all that can be thrown.
#include "base/exit.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <string>

#include <fcntl.h>
#include <unistd.h>

#include "base/errors.h"

namespace llava {
namespace {

constexpr int kUserError = 2, kBug = 70;  // 70 is EX_SOFTWARE of sysexits.h

void open_standard_descriptors() {
  for (int descriptor = 0; descriptor <= 2; ++descriptor) {
    if (fcntl(descriptor, F_GETFD) == -1 && errno == EBADF) {
      open("/dev/null", O_RDWR);  // takes the lowest number that is free, which is this one
    }
  }
}

// Throws UserError if something that was printed has been lost.
void flush_output() {
  if (std::fflush(stdout) != 0) {
    throw UserError(std::string("the output cannot be written: ") + std::strerror(errno));
  }
  if (std::ferror(stdout) != 0) {  // of an earlier write
    throw UserError("the output cannot be written");
  }
}

int fail(std::string message, int code) {
  std::replace(message.begin(), message.end(), '\n', ' ');
  std::fprintf(stderr, "error: %s\n", message.c_str());
  return code;
}

// Returns the exit code for what is being handled, after it has been printed.
int fail_for_exception() {
  try {
    throw;
  } catch (const UserError& error) {
    return fail(error.what(), kUserError);
  } catch (const std::bad_alloc&) {
    return fail("memory has run out", kBug);
  } catch (const std::exception& error) {
    return fail(std::string(error.what()) + "; this is a bug of the program, please report it", kBug);
  } catch (...) {
    return fail("something unknown was thrown; this is a bug of the program, please report it", kBug);
  }
}

// Called for what is thrown where nothing can catch it, such as in a thread of a library.
[[noreturn]] void fail_at_once() {
  if (std::current_exception()) {
    _exit(fail_for_exception());
  }
  _exit(fail("the program ended itself; this is a bug, please report it", kBug));
}

}  // namespace

int exit_cleanly(const std::function<void()>& work) {
  open_standard_descriptors();
  std::set_terminate(fail_at_once);
  std::signal(SIGPIPE, SIG_DFL);  // a reader that goes away ends the program silently, whoever started it
  try {
    work();
    flush_output();
    return 0;
  } catch (...) {
    return fail_for_exception();
  }
}

}  // namespace llava
