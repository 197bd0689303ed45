// libtorch's settings that hold for the whole process, and what CUDA's allocator says of itself.
#include <ATen/Context.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "bridge.h"

namespace {

// By the numbers of src/bridge/context.rs.
constexpr const char* kPrecisions[] = {"highest", "high", "medium"};

// Which of them holds. libtorch starts with the first, unless TORCH_ALLOW_TF32_CUBLAS_OVERRIDE is in
// the environment; that stays while nobody asks for anything else.
std::atomic<int> precision_now{0};

}  // namespace

extern "C" {

// As torch.set_float32_matmul_precision.
int dsr_set_matmul_precision(int precision) {
  TRY(
    // Only a change: other threads may be reading what is written.
    if (precision_now.exchange(precision) != precision)
      at::globalContext().setFloat32MatmulPrecision(kPrecisions[precision]);
  )
}

// As torch.use_deterministic_algorithms. Memory that is not written to is not filled: that would only
// show who reads it.
int dsr_set_deterministic(bool is_on) {
  TRY(
    at::Context& context = at::globalContext();
    context.setDeterministicAlgorithms(is_on, /*warn_only=*/false);
    context.setDeterministicFillUninitializedMemory(false);
  )
}

// Whether cuBLAS finds a workspace in the environment with which it repeats itself. It reads this
// when it is first used.
bool dsr_cublas_repeats() {
  const char* config = std::getenv("CUBLAS_WORKSPACE_CONFIG");
  return config && (!strcmp(config, ":4096:8") || !strcmp(config, ":16:8"));
}

// The memory of a CUDA device: free, and all.
int dsr_cuda_memory(int device_index, uint64_t* free_bytes, uint64_t* all_bytes) {
  TRY(
    auto* allocator = c10::getDeviceAllocator(c10::kCUDA);
    const auto info = allocator->getMemoryInfo(static_cast<c10::DeviceIndex>(device_index));
    *free_bytes = info.first;
    *all_bytes = info.second;
  )
}

// As torch.cuda.memory_stats: allocated and reserved bytes, now and at most; allocations that were
// tried again after freeing what was cached, and those that failed.
int dsr_cuda_allocator(int device_index, int64_t* numbers) {
  TRY(
    auto* allocator = c10::getDeviceAllocator(c10::kCUDA);
    const auto stats = allocator->getDeviceStats(static_cast<c10::DeviceIndex>(device_index));
    const auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    numbers[0] = stats.allocated_bytes[all].current;
    numbers[1] = stats.allocated_bytes[all].peak;
    numbers[2] = stats.reserved_bytes[all].current;
    numbers[3] = stats.reserved_bytes[all].peak;
    numbers[4] = stats.num_alloc_retries;
    numbers[5] = stats.num_ooms;
  )
}
}
