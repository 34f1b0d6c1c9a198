// The native methods of runner/java/org/llava/Native.java, by the C interface alone, but for those in jni_info.cpp.
#include <jni.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "engine/jni_calls.h"
#include "engine/llava.h"
#include "image/formats/pixels.h"

namespace {

using namespace llava;

// A copy of a Java array, with a zero byte behind it. The engine keeps no garbage collector waiting for it.
class Bytes {
 public:
  Bytes(JNIEnv* env, jbyteArray array) {
    if (array) {
      content_.emplace(size_t(env->GetArrayLength(array)), '\0');
      env->GetByteArrayRegion(array, 0, jsize(size()), reinterpret_cast<jbyte*>(content_->data()));
    }
  }

  const char* get() const { return content_ ? content_->c_str() : nullptr; }  // null for null
  size_t size() const { return content_ ? content_->size() : 0; }

 private:
  std::optional<std::string> content_;
};

// Returns whether an array, which may be null, has the pixels of an image; throws in Java if it lacks some. Sizes that
// are no image's are left to the engine.
bool has_pixels(JNIEnv* env, jarray array, jint width, jint height, int values_per_pixel) {
  if (!array || width <= 0 || height <= 0) {
    return true;
  }
  const int64_t has = env->GetArrayLength(array) / values_per_pixel;
  const int64_t needed = int64_t(width) * height;
  if (has < needed) {
    const std::string message = "the array has " + std::to_string(has) + " pixels, and an image of " +
                                std::to_string(width) + " x " + std::to_string(height) + " has " +
                                std::to_string(needed);
    raise(env, LLAVA_MISUSE, message.c_str());
  }
  return has >= needed;
}

// What an answer's text goes to, in the thread that asks.
struct Receiver {
  JNIEnv* env;
  jobject object;
  jmethodID receive;
};

int32_t on_text(void* user_data, const char* text, size_t length) {
  const auto [env, object, receive] = *static_cast<const Receiver*>(user_data);
  const jbyteArray piece = java_bytes(env, text, length);
  if (!piece) {
    return 1;
  }
  const jboolean goes_on = env->CallBooleanMethod(object, receive, piece);
  const bool thrown = env->ExceptionCheck();
  env->DeleteLocalRef(piece);  // not later: an answer has many pieces
  return thrown || !goes_on;
}

}  // namespace

extern "C" {

NATIVE(jbyteArray, version)(JNIEnv* env, jclass) {
  return java_bytes(env, llava_version(), std::strlen(llava_version()));
}

NATIVE(jlong, open)
(JNIEnv* env,
 jclass,
 jbyteArray path,
 jbyteArray tokenizer,
 jbyteArray packed_cache,
 jint threads,
 jboolean check_it,
 jbyteArray draft_model) {
  return guarded(env, [&] {
    const Bytes package(env, path), tokenizer_path(env, tokenizer), packed_cache_path(env, packed_cache),
        draft_model_path(env, draft_model);
    const llava_open_options options{
        .struct_size = sizeof(options),
        .tokenizer_path = tokenizer_path.get(),
        .packed_cache_path = packed_cache_path.get(),
        .cpu_threads = threads,
        .check = check_it,
        .draft_model_path = draft_model_path.get()};
    llava_session session = 0;
    check(env, llava_open(package.get(), &options, &session));
    return jlong(session);
  });
}

NATIVE(void, close)(JNIEnv* env, jclass, jlong session) {
  check(env, llava_close(session));
}

NATIVE(void, addImage)(JNIEnv* env, jclass, jlong session, jbyteArray file) {
  guarded(env, [&] {
    const Bytes content(env, file);
    check(env, llava_add_image(session, content.get(), content.size()));
  });
}

NATIVE(void, addArgb)(JNIEnv* env, jclass, jlong session, jintArray argb, jint width, jint height) {
  guarded(env, [&] {
    if (!has_pixels(env, argb, width, height, 1)) {
      return;
    }
    std::vector<uint8_t> rgb(1);  // not null where `argb` is not
    if (argb && width > 0 && height > 0) {
      rgb.resize(size_t(width) * size_t(height) * 3);
      std::vector<jint> row(static_cast<size_t>(width));
      uint8_t* out = rgb.data();
      for (jint y = 0; y < height; ++y) {
        env->GetIntArrayRegion(argb, y * width, width, row.data());
        for (const uint32_t pixel : row) {
          for (const int shift : {16, 8, 0}) {
            *out++ = over_white(pixel >> shift & 255, pixel >> 24);
          }
        }
      }
    }
    check(env, llava_add_pixels(session, argb ? rgb.data() : nullptr, width, height, size_t(width) * 3));
  });
}

NATIVE(void, addRgb)(JNIEnv* env, jclass, jlong session, jbyteArray rgb, jint width, jint height) {
  guarded(env, [&] {
    if (has_pixels(env, rgb, width, height, 3)) {
      const Bytes pixels(env, rgb);
      const auto* first = reinterpret_cast<const uint8_t*>(pixels.get());
      check(env, llava_add_pixels(session, first, width, height, size_t(width) * 3));
    }
  });
}

NATIVE(void, removeImages)(JNIEnv* env, jclass, jlong session) {
  check(env, llava_remove_images(session));
}

NATIVE(void, readAhead)(JNIEnv* env, jclass, jlong session) {
  check(env, llava_read_ahead(session));
}

NATIVE(void, ask)
(JNIEnv* env,
 jclass,
 jlong session,
 jbyteArray text,
 jboolean new_conversation,
 jint max_new_tokens,
 jint seq_len,
 jboolean has_seed,
 jlong seed,
 jdouble temperature,
 jdouble top_p,
 jint top_k,
 jdouble min_p,
 jdouble repetition_penalty,
 jobjectArray stop_texts,
 jboolean has_logprobs,
 jint logprobs,
 jint draft_max,
 jobject receiver) {
  guarded(env, [&] {
    const Bytes question(env, text);
    std::vector<Bytes> kept;
    std::vector<const char*> stops;
    for (jsize i = 0; i < env->GetArrayLength(stop_texts); ++i) {
      const auto stop = static_cast<jbyteArray>(env->GetObjectArrayElement(stop_texts, i));
      kept.emplace_back(env, stop);
      env->DeleteLocalRef(stop);
    }
    for (const Bytes& stop : kept) {
      stops.push_back(stop.get());
    }
    llava_ask_options options{};
    options.struct_size = sizeof(options);
    options.new_conversation = new_conversation;
    options.max_new_tokens = max_new_tokens;
    options.seq_len = seq_len;
    options.has_seed = has_seed;
    options.seed = uint64_t(seed);
    options.temperature = temperature;
    options.top_p = top_p;
    options.top_k = top_k;
    options.min_p = min_p;
    options.repetition_penalty = repetition_penalty;
    options.stops = stops.data();
    options.num_stops = int32_t(stops.size());
    options.logprobs = has_logprobs;
    options.top_logprobs = logprobs;
    options.draft_max = draft_max;
    Receiver to{env, receiver, env->GetMethodID(env->GetObjectClass(receiver), "receive", "([B)Z")};
    if (to.receive) {
      check(env, llava_ask(session, question.get(), &options, on_text, &to));
    }
  });
}

NATIVE(void, cancel)(JNIEnv* env, jclass, jlong session) {
  check(env, llava_cancel(session));
}

NATIVE(void, reset)(JNIEnv* env, jclass, jlong session) {
  check(env, llava_reset(session));
}

NATIVE(void, save)(JNIEnv* env, jclass, jlong session, jbyteArray path) {
  guarded(env, [&] { check(env, llava_save(session, Bytes(env, path).get())); });
}

NATIVE(void, restore)(JNIEnv* env, jclass, jlong session, jbyteArray path) {
  guarded(env, [&] { check(env, llava_restore(session, Bytes(env, path).get())); });
}

NATIVE(jint, countTokens)(JNIEnv* env, jclass, jlong session, jbyteArray text) {
  return guarded(env, [&] {
    size_t count = 0;
    check(env, llava_count_tokens(session, Bytes(env, text).get(), &count));
    return jint(count);
  });
}

}  // extern "C"
