// Where the time of an answer went, printed in the shape llama.cpp's users know.
#pragma once

#include <chrono>
#include <optional>
#include <string>

namespace llava {

// Time spent on one kind of work, and how much of it was done.
struct Stage {
  double ms = 0;
  int count = 0;

  // Calls `work` and adds its time, in which `items` were done. Returns what `work` returns.
  template <typename Work>
  auto measure(int items, Work&& work) {
    struct Timer {
      Stage& stage;
      int items;
      std::chrono::steady_clock::time_point start = std::chrono::steady_clock::now();
      ~Timer() {
        stage.ms += std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
        stage.count += items;
      }
    } timer{*this, items};
    return work();
  }
};

// `load` of the package, then the stages of one answer.
//
// `image` counts the positions that an image takes, and its time includes preparing the image, but not reading the
// file. `prompt` counts all positions of the prompt, the image's among them. `sample` and `eval` count tokens. An
// answer of n tokens is n samples and n - 1 evals. Of `drafted` tokens that were guessed, `accepted` were right.
struct Timings {
  Stage load;
  Stage image;
  Stage sample;
  Stage prompt;
  Stage eval;
  int drafted = 0;
  int accepted = 0;

  // The time of all stages, in milliseconds.
  double total_ms() const { return load.ms + image.ms + sample.ms + prompt.ms + eval.ms; }

  // Returns seven lines of text, the last of them the peak memory of this process, and one more if tokens were guessed.
  // On a terminal of fewer than 80 columns they are short, otherwise those of llama.cpp.
  std::string report(std::optional<int> columns) const;
};

// Returns the width of the terminal that a descriptor writes to, in columns; nullopt without a terminal. The
// environment variable COLUMNS comes first.
std::optional<int> columns_of(int descriptor);

}  // namespace llava
