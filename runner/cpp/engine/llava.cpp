// The C interface: no exception and no C++ type leaves a function here.
#include "engine/llava.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "engine/calls.h"
#include "engine/sessions.h"
#include "image/formats/formats.h"
#include "image/read_image.h"

namespace {

using namespace llava;

thread_local std::string newest_text;  // that llava_next has returned

std::string text_or_empty(const char* text) {
  return text ? text : "";
}

AnswerOptions answer_options(const llava_ask_options& options) {
  AnswerOptions answer;
  answer.sampling.temperature = options.temperature;
  answer.sampling.top_p = options.top_p == 0 ? 1 : options.top_p;
  answer.sampling.top_k = options.top_k;
  answer.sampling.min_p = options.min_p;
  answer.sampling.repetition_penalty = options.repetition_penalty == 0 ? 1 : options.repetition_penalty;
  if (options.has_seed) {
    answer.sampling.seed = options.seed;
  }
  if (options.num_stops < 0) {
    throw Misuse("num_stops is " + std::to_string(options.num_stops));
  }
  for (int i = 0; i < options.num_stops; ++i) {
    require(options.stops, "stops");
    answer.stops.push_back(text_of(options.stops[i], "a stop string"));
  }
  if (options.seq_len != 0) {
    answer.seq_len = options.seq_len;
  }
  if (options.max_new_tokens != 0) {
    answer.max_new_tokens = options.max_new_tokens;
  }
  if (options.logprobs != 0) {
    answer.logprobs = options.top_logprobs;
  }
  if (options.draft_max != 0) {
    answer.draft_max = std::max(options.draft_max, 0);
  }
  return answer;
}

void begin(Use& use, const char* text, const llava_ask_options* given) {
  const llava_ask_options options = complete(given);
  const TurnText turn{text_of(text, "text"), options.new_conversation == 0};
  const uint64_t cancels = use->cancels;
  use.session().begin(use->images, turn, answer_options(options));
  use->images.clear();
  use->cancels_before = cancels;
}

// Returns the next piece of the answer; nullopt where it has ended, or was cancelled and has no text left.
std::optional<std::string> next(Use& use) {
  if (use->cancels != use->cancels_before && !use.session().last().stop_reason) {
    return use.session().end(StopReason::kCancelled);
  }
  if (use->shown_logits && !use.session().can_choose()) {
    throw Misuse("all tokens are ruled out");
  }
  use->shown_logits = false;
  return use.session().next();
}

void add_image(Use& use, const Image& image) {
  use->images.push_back(use.session().prepare(image, ""));
}

}  // namespace

extern "C" {

const char* llava_version(void) {
  return LLAVA_VERSION;
}

const char* llava_error(void) {
  return newest_error.c_str();
}

llava_status llava_open(const char* package, const llava_open_options* given, llava_session* session) {
  return guarded([&] {
    require(session, "session");
    *session = 0;
    const llava_open_options options = complete(given);
    ProgramOptions program;
    program.model_path = text_of(package, "package");
    program.draft_model_path = text_or_empty(options.draft_model_path);
    program.packed_cache_path = text_or_empty(options.packed_cache_path);
    program.check = options.check != 0;
    program.load.cpu_threads = options.cpu_threads;
    *session = add_session(program, text_or_empty(options.tokenizer_path));
    return LLAVA_OK;
  });
}

llava_status llava_close(llava_session session) {
  return guarded([&] {
    close_session(session);
    return LLAVA_OK;
  });
}

llava_status llava_add_image(llava_session session, const void* bytes, size_t size) {
  return with(session, [&](Use& use) {
    require(bytes, "bytes");
    add_image(use, read_image_bytes("the image", {static_cast<const char*>(bytes), size}));
    return LLAVA_OK;
  });
}

llava_status llava_add_pixels(
    llava_session session, const uint8_t* rgb, int32_t width, int32_t height, size_t row_bytes) {
  return with(session, [&](Use& use) {
    require(rgb, "rgb");
    check_size("the image", width, height);
    ImageHWC image = new_image("the image", width, height);
    const size_t row = size_t(width) * 3;
    if (row_bytes < row) {
      throw Misuse("row_bytes is " + std::to_string(row_bytes) + ", and a row has " + std::to_string(row));
    }
    for (int y = 0; y < height; ++y) {
      std::memcpy(image.row(y), rgb + size_t(y) * row_bytes, row);
    }
    add_image(use, image);
    return LLAVA_OK;
  });
}

llava_status llava_add_tensor(llava_session session, const uint8_t* chw, int32_t width, int32_t height) {
  return with(session, [&](Use& use) {
    require(chw, "chw");
    check_size("the image", width, height);
    const size_t size = size_t(width) * size_t(height) * 3;
    add_image(use, ImageCHW{height, width, {chw, chw + size}});
    return LLAVA_OK;
  });
}

llava_status llava_remove_images(llava_session session) {
  return with(session, [&](Use& use) {
    use->images.clear();
    return LLAVA_OK;
  });
}

llava_status llava_read_ahead(llava_session session) {
  return with(session, [&](Use& use) {
    use.session().read_ahead(use->images);
    return LLAVA_OK;
  });
}

llava_status llava_begin(llava_session session, const char* text, const llava_ask_options* options) {
  return with(session, [&](Use& use) {
    begin(use, text, options);
    return LLAVA_OK;
  });
}

llava_status llava_next(llava_session session, const char** text, size_t* length) {
  return with(session, [&](Use& use) {
    require(text, "text");
    const std::optional<std::string> piece = next(use);
    newest_text = piece.value_or("");
    *text = newest_text.c_str();
    if (length) {
      *length = newest_text.size();
    }
    return piece ? LLAVA_OK : LLAVA_END;
  });
}

llava_status llava_ask(
    llava_session session, const char* text, const llava_ask_options* options, llava_on_text on_text, void* user_data) {
  return with(session, [&](Use& use) {
    begin(use, text, options);
    while (const std::optional<std::string> piece = next(use)) {
      if (on_text && !piece->empty() && on_text(user_data, piece->c_str(), piece->size()) != 0) {
        use.session().end(StopReason::kCancelled);
      }
    }
    return LLAVA_OK;
  });
}

llava_status llava_set_answer(llava_session session, const char* text) {
  return with(session, [&](Use& use) {
    use.session().set_answer(text_of(text, "text"));
    return LLAVA_OK;
  });
}

llava_status llava_cancel(llava_session session) {
  return guarded([&] {
    cancel_session(session);
    return LLAVA_OK;
  });
}

llava_status llava_reset(llava_session session) {
  return with(session, [&](Use& use) {
    use.session().reset();
    use->images.clear();
    return LLAVA_OK;
  });
}

llava_status llava_logits(llava_session session, float** logits, size_t* count) {
  return with(session, [&](Use& use) {
    require(logits, "logits");
    require(count, "count");
    const std::span<float> found = use.session().next_logits();
    use->shown_logits = true;
    *logits = found.empty() ? nullptr : found.data();
    *count = found.size();
    return found.empty() ? LLAVA_END : LLAVA_OK;
  });
}

llava_status llava_save(llava_session session, const char* path) {
  return with(session, [&](Use& use) {
    use.session().save(text_of(path, "path"));
    return LLAVA_OK;
  });
}

llava_status llava_restore(llava_session session, const char* path) {
  return with(session, [&](Use& use) {
    use.session().restore(text_of(path, "path"));
    return LLAVA_OK;
  });
}

llava_status llava_save_bytes(llava_session session, void* bytes, size_t capacity, size_t* size) {
  return with(session, [&](Use& use) {
    require(size, "size");
    *size = use.session().saved_size();
    if (capacity >= *size) {
      require(bytes, "bytes");
      use.session().save({static_cast<uint8_t*>(bytes), *size});
    }
    return LLAVA_OK;
  });
}

llava_status llava_restore_bytes(llava_session session, const void* bytes, size_t size) {
  return with(session, [&](Use& use) {
    require(bytes, "bytes");
    use.session().restore(std::span(static_cast<const uint8_t*>(bytes), size));
    return LLAVA_OK;
  });
}

}  // extern "C"
