// Counting the bytes of tensors by kind: each allocation goes on the ledger that its thread has
// open, and comes off it when it is freed.
//
// On the CPU the allocator of libtorch is wrapped, on CUDA it is followed by the callback that it
// has for this. Both see every thread, also those that free what another one allocated. Nothing is
// put where libtorch keeps its profiler, so that a profiler can be on at the same time.
#include <ATen/Context.h>
#include <c10/core/Allocator.h>
#ifdef DSR_CUDA
#include <c10/cuda/CUDACachingAllocator.h>
#endif

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bridge.h"

namespace {

// As many as src/bridge/memory.rs has kinds.
constexpr int kKinds = 5;

// Bytes by kind: now, and when their sum was highest.
struct Counts {
  std::array<int64_t, kKinds> now{}, peak{};
  int64_t sum = 0, highest = 0;
};

class Ledger {
 public:
  explicit Ledger(c10::Device device) : device_(device) {}

  // The CPU has no index.
  bool is_of(c10::Device device) const {
    return device.type() == device_.type() && (device.is_cpu() || device.index() == device_.index());
  }

  void add(int kind, int64_t bytes) {
    std::lock_guard lock(mutex_);
    counts_.now[kind] += bytes;
    counts_.sum += bytes;
    if (counts_.sum > counts_.highest) {
      counts_.highest = counts_.sum;
      counts_.peak = counts_.now;
    }
  }

  Counts counts() const {
    std::lock_guard lock(mutex_);
    return counts_;
  }

 private:
  const c10::Device device_;
  mutable std::mutex mutex_;
  Counts counts_;
};

using Handle = std::shared_ptr<Ledger>;

// A page of a ledger: where an allocation is put.
struct Page {
  Handle ledger;
  int kind = 0;
};

// The pages that one thread has opened. Backward passes run in the thread that asks for them.
class Pages {
 public:
  void open(Page page) {
    if (!page.ledger) page.ledger = current().ledger;
    pages_.push_back(std::move(page));
  }

  void close() {
    if (!pages_.empty()) pages_.pop_back();
  }

  Page current() const { return pages_.empty() ? Page() : pages_.back(); }

 private:
  std::vector<Page> pages_;
};

thread_local Pages pages;

// The blocks that are on some ledger. A block comes off the page that it was put on, whatever is
// open when it is freed; one that was allocated while nothing was open is not here.
class Blocks {
 public:
  void add(void* ptr, int64_t bytes, c10::Device device, Page page) {
    if (!ptr) return;
    const bool is_counted = page.ledger && page.ledger->is_of(device);
    std::lock_guard lock(mutex_);
    // An address that is handed out again proves that the block before it is gone.
    take_off(ptr);
    if (!is_counted) return;
    page.ledger->add(page.kind, bytes);
    blocks_.emplace(ptr, std::pair(std::move(page), bytes));
  }

  void remove(void* ptr) {
    std::lock_guard lock(mutex_);
    take_off(ptr);
  }

 private:
  void take_off(void* ptr) {
    auto block = blocks_.find(ptr);
    if (block == blocks_.end()) return;
    auto& [page, bytes] = block->second;
    page.ledger->add(page.kind, -bytes);
    blocks_.erase(block);
  }

  std::mutex mutex_;
  std::unordered_map<void*, std::pair<Page, int64_t>> blocks_;
};

// Never destroyed: tensors may be freed while the process ends.
Blocks& blocks() {
  static Blocks& all = *new Blocks;
  return all;
}

// A block that an allocator has handed out, or with negative bytes taken back.
void report(void* ptr, int64_t bytes, c10::Device device) {
  if (bytes < 0) return blocks().remove(ptr);
  blocks().add(ptr, bytes, device, pages.current());
}

// The CPU's allocator of libtorch, with a look at what goes through it.
class CountingAllocator : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator* inner) : inner_(inner) {}

  c10::DataPtr allocate(size_t bytes) override {
    void* ptr = inner_->raw_allocate(bytes);
    c10::DataPtr data(ptr, ptr, raw_deleter(), c10::Device(c10::DeviceType::CPU));
    report(ptr, static_cast<int64_t>(bytes), data.device());
    return data;
  }

  c10::DeleterFnPtr raw_deleter() const override { return &free; }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

  static CountingAllocator& installed() {
    static CountingAllocator& allocator = *new CountingAllocator(c10::GetAllocator(c10::kCPU));
    return allocator;
  }

 private:
  static void free(void* ptr) {
    blocks().remove(ptr);
    installed().inner_->raw_deallocate(ptr);
  }

  c10::Allocator* const inner_;
};

// Before main, since SetAllocator may not run beside an allocation.
[[maybe_unused]] const bool is_installed = [] {
  c10::SetAllocator(c10::kCPU, &CountingAllocator::installed(), /*priority=*/1);
  return true;
}();

// Has CUDA's allocator tell what it does, from the first call on. It calls with its lock held, so
// that nothing here may allocate on the device or free there.
void follow_cuda() {
#ifdef DSR_CUDA
  static const bool is_followed = [] {
    // The allocator has no devices before.
    at::globalContext().lazyInitDevice(c10::kCUDA);
    c10::cuda::CUDACachingAllocator::attachAllocatorTraceTracker([](const auto& entry) {
      using Entry = std::decay_t<decltype(entry)>;
      auto* ptr = reinterpret_cast<void*>(entry.addr_);
      if (entry.action_ == Entry::ALLOC) {
        report(ptr, static_cast<int64_t>(entry.size_), c10::Device(c10::kCUDA, entry.device_));
      } else if (entry.action_ == Entry::FREE_REQUESTED) {
        blocks().remove(ptr);
      }
    });
    return true;
  }();
  (void)is_followed;
#else
  TORCH_CHECK(false, "this dsr was built with a libtorch that has no CUDA");
#endif
}

}  // namespace

extern "C" {

// A new ledger for the CPU (device_index below 0) or a CUDA device; the caller owns it.
int dsr_ledger_new(int device_index, void** ledger) {
  TRY(
    c10::Device device(c10::kCPU);
    if (device_index >= 0) {
      device = c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device_index));
      follow_cuda();
    }
    *ledger = new Handle(std::make_shared<Ledger>(device));
  )
}

// Blocks that are still on it keep the ledger alive.
void dsr_ledger_delete(void* ledger) { delete static_cast<Handle*>(ledger); }

// From here on this thread's allocations go on `ledger`, or with null on the one that is open.
int dsr_ledger_open(void* ledger, int kind) {
  TRY(
    Page page;
    if (ledger) page.ledger = *static_cast<Handle*>(ledger);
    page.kind = kind;
    pages.open(std::move(page));
  )
}

// Undoes the last dsr_ledger_open of this thread.
void dsr_ledger_close() { pages.close(); }

// Stands in for the allocator of the CPU, in tests.
int dsr_ledger_report(void* ptr, int64_t bytes) {
  TRY(report(ptr, bytes, c10::Device(c10::kCPU));)
}

// Bytes by kind: now, and when their sum was highest.
void dsr_ledger_read(void* ledger, int64_t* now, int64_t* peak) {
  const auto counts = (*static_cast<Handle*>(ledger))->counts();
  for (int i = 0; i < kKinds; ++i) {
    now[i] = counts.now[i];
    peak[i] = counts.peak[i];
  }
}
}
