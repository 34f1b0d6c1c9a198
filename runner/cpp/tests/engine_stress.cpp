// Opens, asks, cancels, saves, restores and closes sessions, again and again, from several threads. For sanitizers.
#include <malloc.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

#include "engine/llava.h"
#include "runtime/memory.h"

namespace {

std::atomic<int> failures = 0;

void expect(bool is_right, const char* what) {
  if (!is_right) {
    std::fprintf(stderr, "%s: %s\n", what, llava_error());
    ++failures;
  }
}

struct Reader {
  llava_session session;
  int pieces = 0;
  int cancel_at;
};

int32_t on_text(void* user_data, const char* text, size_t length) {
  auto* reader = static_cast<Reader*>(user_data);
  expect(std::string(text).size() == length, "a piece has another length");
  expect(llava_reset(reader->session) == LLAVA_BUSY, "a callback called for its session");
  if (++reader->pieces == reader->cancel_at) {
    expect(llava_cancel(reader->session) == LLAVA_OK, "cancel");
  }
  return 0;
}

struct Work {
  const char* package;
  std::string image;
  llava_session shared;  // all threads use it, too
  int rounds;
};

// One life of a session of this thread's own.
void live(const Work& work, int thread, int round) {
  llava_session session = 0;
  const std::string path = "stress-" + std::to_string(thread);
  llava_open_options opening = {};
  opening.struct_size = sizeof(opening);
  opening.draft_model_path = round % 4 < 2 ? work.package : nullptr;
  expect(llava_open(work.package, &opening, &session) == LLAVA_OK, "open");
  expect(llava_add_image(session, work.image.data(), work.image.size()) == LLAVA_OK, "add an image");
  if (round % 3 == 0) {
    expect(llava_read_ahead(session) == LLAVA_OK, "read ahead");
  }
  llava_ask_options options = {};
  options.struct_size = sizeof(options);
  options.max_new_tokens = 6;
  Reader reader{session, 0, round % 2 == 0 ? 2 : 100};
  expect(llava_ask(session, "What is in the image?", &options, on_text, &reader) == LLAVA_OK, "ask");
  expect(llava_save(session, path.c_str()) == LLAVA_OK, "save");
  expect(llava_reset(session) == LLAVA_OK, "reset");
  expect(llava_restore(session, path.c_str()) == LLAVA_OK, "restore");
  std::thread other([&] { llava_cancel(session); });
  expect(llava_ask(session, "And now?", &options, nullptr, nullptr) == LLAVA_OK, "ask again");
  other.join();
  expect(llava_set_answer(session, "A red circle.") == LLAVA_OK, "set an answer");
  size_t size = 0;
  expect(llava_save_bytes(session, nullptr, 0, &size) == LLAVA_OK, "measure");
  std::vector<uint8_t> saved(size);
  expect(llava_save_bytes(session, saved.data(), saved.size(), &size) == LLAVA_OK, "save to memory");
  saved[size / 2] ^= 1;
  expect(llava_restore_bytes(session, saved.data(), saved.size()) == LLAVA_STATE_ERROR, "restore what is damaged");
  expect(llava_close(session) == LLAVA_OK, "close");
  expect(llava_reset(session) == LLAVA_MISUSE, "use after close");
  std::remove(path.c_str());
}

// What other threads do at the same time with one session.
void share(const Work& work, int thread, int round) {
  const char* text = nullptr;
  llava_info info = {};
  info.struct_size = sizeof(info);
  switch ((thread + round) % 4) {
    case 0:
      llava_begin(work.shared, "What?", nullptr);
      break;
    case 1:
      llava_cancel(work.shared);
      break;
    case 2:
      llava_reset(work.shared);
      break;
    case 3:
      llava_set_answer(work.shared, "Yes.");  // where there is an answer
      break;
  }
  expect(llava_describe(work.shared, &info) == LLAVA_OK && info.context > 0, "describe");
  const llava_status status = llava_next(work.shared, &text, nullptr);
  expect((status == LLAVA_OK || status == LLAVA_END) && text, "next");
}

}  // namespace

// engine_stress PACKAGE IMAGE ROUNDS THREADS
int main(int argc, char** argv) {
  if (argc != 5) {
    return 2;
  }
  mallopt(M_MMAP_THRESHOLD, 1 << 16);  // what is freed goes back to the system, or it looks as if it were lost
  std::ifstream file(argv[2], std::ios::binary);
  Work work{argv[1], {std::istreambuf_iterator<char>(file), {}}, 0, std::atoi(argv[3])};
  // One thread computes: how ExecuTorch's threads wait for each other is hidden from the thread sanitizer.
  llava_open_options options = {};
  options.struct_size = sizeof(options);
  options.cpu_threads = 1;
  expect(llava_open(work.package, &options, &work.shared) == LLAVA_OK, "open");
  const auto run = [&](int rounds) {
    std::vector<std::thread> threads;
    for (int thread = 0; thread < std::atoi(argv[4]); ++thread) {
      threads.emplace_back([&, thread] {
        for (int round = 0; round < rounds; ++round) {
          live(work, thread, round);
          share(work, thread, round);
        }
      });
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
  };
  run((work.rounds + 3) / 4);
  const int64_t before = llava::anonymous_memory();
  run(work.rounds);
  const int64_t after = llava::anonymous_memory();
  expect(llava_close(work.shared) == LLAVA_OK, "close");
  std::printf("%d failures, %lld KiB more\n", failures.load(), static_cast<long long>((after - before) / 1024));
  return failures == 0 ? 0 : 1;
}
