// A conversation on a terminal: questions on stdin, one a line, and three commands. llava_runner/terminal.py is the
// same in Python.
#pragma once

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "image/read_image.h"

namespace llava {

// Takes questions from `lines` until they end, or until /quit.
//
// `ask` is called with each question, and with the images that it is about: the first with `images`, a later one with
// the image that was named since the last question, or with none. `reset` is called for /reset. A line that cannot be
// used is told on stderr, and the conversation goes on. `cue` is shown before each line is read, and the last is
// followed by a new line; an empty one leaves stdout to the answers.
void converse(
    std::FILE* lines,
    std::vector<Image> images,
    const std::function<void(const std::vector<Image>&, const std::string&)>& ask,
    const std::function<void()>& reset,
    const std::string& cue = "> ");

// These print on stdout and stderr at once, and throw UserError where that fails.
void show(const std::string& text);
void note(const std::string& text);

}  // namespace llava
