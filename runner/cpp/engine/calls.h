// How a function of the C interface is called: what it is given is checked, and what is thrown becomes a status.
#pragma once

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <span>
#include <string>

#include "base/errors.h"
#include "engine/llava.h"
#include "engine/sessions.h"

namespace llava {

inline thread_local std::string newest_error;  // that llava_error returns

// Keeps a message. Where there is no memory for it, the message before stays.
inline llava_status failed(llava_status status, const char* message) noexcept {
  try {
    newest_error = message;
    std::replace(newest_error.begin(), newest_error.end(), '\n', ' ');
  } catch (...) {
  }
  return status;
}

// Calls `work`, which returns a status, and turns what it throws into one.
template <typename Work>
llava_status guarded(Work&& work) noexcept {
  try {
    return work();
  } catch (const PackageError& error) {
    return failed(LLAVA_PACKAGE_ERROR, error.what());
  } catch (const ImageError& error) {
    return failed(LLAVA_IMAGE_ERROR, error.what());
  } catch (const StateError& error) {
    return failed(LLAVA_STATE_ERROR, error.what());
  } catch (const UserError& error) {
    return failed(LLAVA_PROMPT_ERROR, error.what());
  } catch (const Misuse& error) {
    return failed(LLAVA_MISUSE, error.what());
  } catch (const Busy& error) {
    return failed(LLAVA_BUSY, error.what());
  } catch (const std::bad_alloc&) {
    return failed(LLAVA_NO_MEMORY, "memory has run out");
  } catch (const std::exception& error) {
    return failed(LLAVA_BUG, error.what());
  } catch (...) {
    return failed(LLAVA_BUG, "something unknown was thrown");
  }
}

// As `guarded`, with the session to itself.
template <typename Work>
llava_status with(llava_session number, Work&& work) noexcept {
  return guarded([&] {
    Use use(number);
    return work(use);
  });
}

inline void require(const void* pointer, const char* name) {
  if (!pointer) {
    throw Misuse(std::string(name) + " is null");
  }
}

inline std::string text_of(const char* text, const char* name) {
  require(text, name);
  return text;
}

// Returns the options of a caller, who may have an older and shorter structure; what it lacks is zero.
template <typename Options>
Options complete(const Options* given) {
  Options options{};
  if (given) {
    if (given->struct_size < sizeof(size_t) || given->struct_size > 4096) {
      throw Misuse("struct_size is " + std::to_string(given->struct_size) + ": set it to the structure's sizeof");
    }
    std::memcpy(static_cast<void*>(&options), given, std::min(given->struct_size, sizeof(Options)));
  }
  return options;
}

// Writes a description as far as the caller's structure goes.
template <typename Description>
void describe(Description found, Description* to, const char* name) {
  require(to, name);
  const size_t size = complete(to).struct_size;
  found.struct_size = size;
  std::memcpy(static_cast<void*>(to), &found, std::min(size, sizeof(Description)));
}

// Copies what fits, and says how much there is.
template <typename Element>
void copy_out(std::span<const Element> from, void* to, size_t capacity, size_t* count, const char* name) {
  require(count, "count");
  if (capacity > 0) {
    require(to, name);
    std::memcpy(to, from.data(), std::min(capacity, from.size()) * sizeof(Element));
  }
  *count = from.size();
}

}  // namespace llava
