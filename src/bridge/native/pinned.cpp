// Pinned host memory of exactly the size that is asked for, for what stays as long as a training.
// libtorch's own takes the next power of two.
#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <memory>

#include "bridge.h"
#include "stream.h"

namespace {

// CUDA's runtime is in the process where libtorch has CUDA; these two have not changed since it has
// been there. Their result is 0 for success.
using Register = int (*)(void*, size_t, unsigned int);
using Unregister = int (*)(void*);

template <typename Function>
Function of_cuda(const char* name) {
  auto found = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
  TORCH_CHECK(found, "this process has no ", name);
  return found;
}

// Pages of the host. They come as zeros.
class Pages {
 public:
  Pages(size_t bytes, bool is_pinned) : bytes_(bytes), is_pinned_(is_pinned) {
    memory_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) out_of_memory(std::strerror(errno));
    // Fewer and larger pages are pinned and copied faster; a kernel without them has its own.
    madvise(memory_, bytes, MADV_HUGEPAGE);
    if (!is_pinned_) return;
    constexpr unsigned int kPortable = 1;  // For all GPUs of the process.
    int error = -1;
    try {
      error = of_cuda<Register>("cudaHostRegister")(memory_, bytes, kPortable);
    } catch (...) {
      munmap(memory_, bytes_);
      throw;
    }
    if (error == 0) return;
    munmap(memory_, bytes_);
    out_of_memory("CUDA could not pin it");
  }

  Pages(const Pages&) = delete;

  ~Pages() {
    if (is_pinned_) {
      try {
        // A copy to a GPU is waited for there and not here.
        dsr::finish_lanes();
        of_cuda<Unregister>("cudaHostUnregister")(memory_);
      } catch (...) {
        return;  // The GPU may still read it: it stays until the process ends.
      }
    }
    munmap(memory_, bytes_);
  }

  void* memory() const { return memory_; }

 private:
  [[noreturn]] void out_of_memory(const char* why) const {
    TORCH_CHECK_WITH(OutOfMemoryError, false, "no ", bytes_, " bytes of host memory: ", why);
  }

  size_t bytes_;
  bool is_pinned_;
  void* memory_ = nullptr;
};

}  // namespace

extern "C" {

// A flat tensor of zero bytes on the CPU, of memory of its own. It is pinned for the GPUs of this
// process, where that is asked for.
int dsr_pages_new(int64_t bytes, bool is_pinned, at::Tensor** tensor) {
  TRY(
    const auto options = at::TensorOptions(at::kByte).device(c10::kCPU);
    if (bytes == 0) {
      *tensor = new at::Tensor(at::empty({0}, options));
      return dsr::kOk;
    }
    // CUDA pins for a device that it has.
    if (is_pinned) at::globalContext().lazyInitDevice(c10::kCUDA);
    auto pages = std::make_shared<Pages>(static_cast<size_t>(bytes), is_pinned);
    // The storage keeps the function, and the function the pages.
    auto keep = [pages](void*) {};
    *tensor = new at::Tensor(at::from_blob(pages->memory(), {bytes}, keep, options));
  )
}
}
