// The last error of each thread, see bridge.h.
#include "bridge.h"

#include <c10/util/Exception.h>

#include <string>

namespace {
thread_local std::string last_error;
}

namespace dsr {

int fail(const std::exception* error) noexcept {
  try {
    last_error = error ? error->what() : "an exception of an unknown type";
  } catch (...) {
    return kOutOfMemory;  // There was no room for the message itself.
  }
  return dynamic_cast<const c10::OutOfMemoryError*>(error) ? kOutOfMemory : kFailed;
}

}  // namespace dsr

extern "C" const char* dsr_last_error() { return last_error.c_str(); }
