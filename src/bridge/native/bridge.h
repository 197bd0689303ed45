// What every C++ file of the bridge shares: how a C++ exception becomes a status and a message.
//
// A function of the bridge is `extern "C"`, returns a status and has TRY(...) as its body. No
// exception may cross into Rust, where it would be undefined behaviour.
#pragma once

#include <exception>

namespace dsr {

// Statuses; src/bridge/mod.rs has the same numbers.
enum Status : int { kOk = 0, kFailed = 1, kOutOfMemory = 2 };

// Keeps the message of the exception for dsr_last_error() on this thread, and returns its status.
// With nullptr: something was thrown that is no std::exception.
int fail(const std::exception* error) noexcept;

}  // namespace dsr

// Runs statements that may throw; the whole body of a bridge function.
#define TRY(...)                       \
  try {                                \
    __VA_ARGS__                        \
    return dsr::kOk;                   \
  } catch (const std::exception& e) {  \
    return dsr::fail(&e);              \
  } catch (...) {                      \
    return dsr::fail(nullptr);         \
  }
