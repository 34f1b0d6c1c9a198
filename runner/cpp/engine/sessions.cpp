// Keeps the open sessions, and gives them to one thread at a time.
#include "engine/sessions.h"

#include <unistd.h>

#include <string>
#include <unordered_map>
#include <utility>

#include "base/errors.h"

namespace llava {
namespace {

std::mutex sessions_mutex;
std::unordered_map<int64_t, std::shared_ptr<OpenSession>> sessions;
int64_t newest = 0;

std::mutex opening;  // or closing, one program at a time: threads and packed weights are of the whole process
pid_t process = 0;   // that opened the first session
int threads = 0;     // that were asked for last

[[noreturn]] void fail_for(int64_t number) {
  throw Misuse("session " + std::to_string(number) + " is not open");
}

void check_process() {
  if (process != 0 && process != getpid()) {
    throw Misuse("sessions do not work in a forked child of the process that opened them");
  }
}

std::shared_ptr<OpenSession> find(int64_t number) {
  const std::lock_guard lock(sessions_mutex);
  check_process();
  const auto found = sessions.find(number);
  if (found == sessions.end()) {
    fail_for(number);
  }
  return found->second;
}

// Throws PromptError for a number that is out of range, or if programs are loaded that compute with another.
void check_threads(int wanted) {
  if (wanted < 0 || wanted > kThreadsAtMost) {
    throw PromptError(
        "cpu_threads " + std::to_string(wanted) + ": it must be from 1 to " + std::to_string(kThreadsAtMost));
  }
  const std::lock_guard lock(sessions_mutex);
  if (wanted != 0 && wanted != threads && !sessions.empty()) {
    throw PromptError(
        "cpu_threads " + std::to_string(wanted) + ": a session is open that computes with " +
        (threads == 0 ? "as many as ExecuTorch chose" : std::to_string(threads)) +
        ", and the number is one for the whole process; close it first");
  }
}

}  // namespace

Use::Use(int64_t number) : open_(find(number)) {
  if (open_->user == std::this_thread::get_id()) {
    throw Busy("session " + std::to_string(number) + " is answering: its callback may only cancel");
  }
  lock_ = std::unique_lock(open_->mutex);
  if (!open_->session) {
    fail_for(number);
  }
  open_->user = std::this_thread::get_id();
}

Use::~Use() {
  open_->user = std::thread::id();
}

int64_t add_session(const ProgramOptions& options, const std::string& tokenizer_path) {
  const std::lock_guard one_at_a_time(opening);
  {
    const std::lock_guard lock(sessions_mutex);
    check_process();
    process = getpid();
  }
  check_threads(options.load.cpu_threads);
  ProgramOptions changed = options;
  if (options.load.cpu_threads == threads) {
    changed.load.cpu_threads = 0;  // the pool has as many already
  }
  auto open = std::make_shared<OpenSession>();
  open->session.emplace(open_session(std::move(changed), tokenizer_path));
  const std::lock_guard lock(sessions_mutex);
  threads = options.load.cpu_threads == 0 ? threads : options.load.cpu_threads;
  sessions[++newest] = std::move(open);
  return newest;
}

void close_session(int64_t number) {
  cancel_session(number);
  Use use(number);
  {
    const std::lock_guard one_at_a_time(opening);
    use->session.reset();
  }
  use->images.clear();
  const std::lock_guard lock(sessions_mutex);
  sessions.erase(number);
}

void cancel_session(int64_t number) {
  ++find(number)->cancels;
}

}  // namespace llava
