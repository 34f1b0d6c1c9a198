// The native methods that say something about a session and its newest answer.
#include <jni.h>

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "engine/jni_calls.h"
#include "engine/llava.h"

namespace {

using namespace llava;

// Returns numbers as a Java array, or null with an OutOfMemoryError of Java.
jdoubleArray java_doubles(JNIEnv* env, std::span<const jdouble> numbers) {
  const jdoubleArray array = env->NewDoubleArray(jsize(numbers.size()));
  if (array) {
    env->SetDoubleArrayRegion(array, 0, jsize(numbers.size()), numbers.data());
  }
  return array;
}

llava_info describe(JNIEnv* env, jlong session) {
  llava_info info{};
  info.struct_size = sizeof(info);
  check(env, llava_describe(session, &info));
  return info;
}

}  // namespace

extern "C" {

NATIVE(jint, position)(JNIEnv* env, jclass, jlong session) {
  return describe(env, session).position;
}

NATIVE(jint, context)(JNIEnv* env, jclass, jlong session) {
  return describe(env, session).context;
}

NATIVE(jdoubleArray, last)(JNIEnv* env, jclass, jlong session) {
  llava_answer answer{};
  answer.struct_size = sizeof(answer);
  check(env, llava_last(session, &answer));
  if (env->ExceptionCheck()) {
    return nullptr;
  }
  const std::array<jdouble, 13> numbers{
      jdouble(answer.stop_reason),  answer.load.ms,   jdouble(answer.load.count),   answer.image.ms,
      jdouble(answer.image.count),  answer.prompt.ms, jdouble(answer.prompt.count), answer.sample.ms,
      jdouble(answer.sample.count), answer.eval.ms,   jdouble(answer.eval.count),   jdouble(answer.num_drafted),
      jdouble(answer.num_accepted)};
  return java_doubles(env, numbers);
}

NATIVE(jintArray, lastIds)(JNIEnv* env, jclass, jlong session) {
  return guarded(env, [&]() -> jintArray {
    size_t count = 0;
    check(env, llava_last_ids(session, nullptr, 0, &count));
    std::vector<jint> ids(count);
    if (!env->ExceptionCheck()) {
      check(env, llava_last_ids(session, ids.data(), ids.size(), &count));
      count = std::min(count, ids.size());  // another thread's answer may be longer
    }
    const jintArray array = env->ExceptionCheck() ? nullptr : env->NewIntArray(jsize(count));
    if (array) {
      env->SetIntArrayRegion(array, 0, jsize(count), ids.data());
    }
    return array;
  });
}

NATIVE(jdoubleArray, lastLogprobs)(JNIEnv* env, jclass, jlong session) {
  return guarded(env, [&]() -> jdoubleArray {
    size_t tokens = 0, entries = 0;
    check(env, llava_last_ids(session, nullptr, 0, &tokens));
    std::vector<jdouble> numbers;
    std::vector<llava_logprob> found;
    // Another thread's answer may have fewer tokens, or no probabilities.
    for (size_t token = 0; token < tokens; ++token) {
      llava_status status = llava_last_logprobs(session, token, nullptr, 0, &entries);
      found.resize(entries);
      if (status == LLAVA_OK && entries > 0) {
        status = llava_last_logprobs(session, token, found.data(), entries, &entries);
      }
      if (status != LLAVA_OK || entries == 0) {
        break;
      }
      found.resize(std::min(found.size(), entries));
      numbers.push_back(jdouble(found.size()));
      for (const auto& [id, logprob] : found) {
        numbers.insert(numbers.end(), {jdouble(id), logprob});
      }
    }
    return env->ExceptionCheck() ? nullptr : java_doubles(env, numbers);
  });
}

}  // extern "C"
