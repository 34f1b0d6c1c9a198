// What the native methods share. What goes wrong is thrown in Java as a LlavaException; no C++ exception leaves a
// native method.
#pragma once

#include <jni.h>

#include <cstring>
#include <exception>
#include <new>
#include <type_traits>

#include "engine/llava.h"

#define NATIVE(type, name) JNIEXPORT type JNICALL Java_org_llava_Native_##name

namespace llava {

// Returns text as a Java array, or null with an OutOfMemoryError of Java.
inline jbyteArray java_bytes(JNIEnv* env, const char* text, size_t length) {
  const jbyteArray array = env->NewByteArray(jsize(length));
  if (array) {
    env->SetByteArrayRegion(array, 0, jsize(length), reinterpret_cast<const jbyte*>(text));
  }
  return array;
}

// Throws a LlavaException in Java, unless something was thrown there already.
inline void raise(JNIEnv* env, llava_status status, const char* message) {
  if (env->ExceptionCheck()) {
    return;
  }
  const jclass type = env->FindClass("org/llava/LlavaException");
  const jmethodID constructor = type ? env->GetMethodID(type, "<init>", "(I[B)V") : nullptr;
  const jbyteArray text = constructor ? java_bytes(env, message, std::strlen(message)) : nullptr;
  const jobject error = text ? env->NewObject(type, constructor, jint(status), text) : nullptr;
  if (!env->ExceptionCheck()) {
    env->Throw(static_cast<jthrowable>(error));
  }
}

inline void check(JNIEnv* env, llava_status status) {
  if (status != LLAVA_OK) {
    raise(env, status, llava_error());
  }
}

// Returns what `work` returns, or null or 0 after it has thrown.
template <typename Work>
auto guarded(JNIEnv* env, Work&& work) noexcept -> std::invoke_result_t<Work> {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    raise(env, LLAVA_NO_MEMORY, "memory has run out");
  } catch (const std::exception& error) {
    raise(env, LLAVA_BUG, error.what());
  }
  return std::invoke_result_t<Work>();
}

}  // namespace llava
