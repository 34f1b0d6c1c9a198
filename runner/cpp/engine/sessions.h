// The open sessions of this process, by number.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <thread>
#include <vector>

#include "runtime/open_session.h"

namespace llava {

// A call that no correct program makes: a null pointer, a number of no open session.
class Misuse : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A call for a session from its own callback.
class Busy : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A session, with what belongs to it between calls.
struct OpenSession {
  std::optional<Session> session;     // nullopt after closing
  std::vector<PreparedImage> images;  // of the next turn
  std::atomic<uint64_t> cancels = 0;  // how often llava_cancel was called
  uint64_t cancels_before = 0;        // when the answer began
  bool shown_logits = false;          // to the caller, who may have changed them
  std::mutex mutex;                   // of all but `cancels` and `user`
  std::atomic<std::thread::id> user;  // the thread that has the mutex
};

// Has a session to itself as long as it lives.
class Use {
 public:
  // Waits for the session. Throws Misuse for a number of no open session, and in a forked child, where ExecuTorch's
  // threads are missing; Busy where this thread has the session already.
  explicit Use(int64_t number);
  ~Use();
  Use(const Use&) = delete;

  Session& session() { return *open_->session; }
  OpenSession* operator->() { return open_.get(); }

 private:
  std::shared_ptr<OpenSession> open_;
  std::unique_lock<std::mutex> lock_;
};

// Opens a session, and returns its number. Throws as open_session does.
int64_t add_session(const ProgramOptions& options, const std::string& tokenizer_path);

// Closes a session, once its calls have ended.
void close_session(int64_t number);

// Ends the answer that a session makes, without waiting.
void cancel_session(int64_t number);

}  // namespace llava
