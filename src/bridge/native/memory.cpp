// Counting the bytes of tensors by kind: each allocation goes on the ledger that its thread has
// open, and comes off it when it is freed.
//
// On the CPU the allocator of libtorch is wrapped. libtorch's profiler hook would report it as
// well, but warns of every block that it did not see allocated. On CUDA that hook is all there is,
// and reports to autograd's threads on behalf of the thread that called them.
#include <c10/core/Allocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

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

  bool is_of_cuda() const { return device_.is_cuda(); }

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

// The pages that one thread has opened; autograd's threads read the last one.
class Pages {
 public:
  void open(Page page) {
    std::lock_guard lock(mutex_);
    if (!page.ledger) page.ledger = last().ledger;
    pages_.push_back(std::move(page));
  }

  void close() {
    std::lock_guard lock(mutex_);
    if (!pages_.empty()) pages_.pop_back();
  }

  Page current() {
    std::lock_guard lock(mutex_);
    return last();
  }

 private:
  Page last() const { return pages_.empty() ? Page() : pages_.back(); }

  std::mutex mutex_;
  std::vector<Page> pages_;
};

// The blocks that are on some ledger. A block comes off the page that it was put on, whatever is
// open when it is freed; one that was allocated while nothing was open is not here.
class Blocks {
 public:
  void add(void* ptr, int64_t bytes, c10::Device device, Page page) {
    if (!ptr || !page.ledger || !page.ledger->is_of(device)) return;
    std::lock_guard lock(mutex_);
    auto [block, is_new] = blocks_.try_emplace(ptr, std::move(page), bytes);
    if (is_new) block->second.first.ledger->add(block->second.first.kind, bytes);
  }

  void remove(void* ptr) {
    std::lock_guard lock(mutex_);
    auto block = blocks_.find(ptr);
    if (block == blocks_.end()) return;
    auto& [page, bytes] = block->second;
    page.ledger->add(page.kind, -bytes);
    blocks_.erase(block);
  }

 private:
  std::mutex mutex_;
  std::unordered_map<void*, std::pair<Page, int64_t>> blocks_;
};

// Never destroyed: tensors may be freed while the process ends.
Blocks& blocks() {
  static Blocks& all = *new Blocks;
  return all;
}

const std::shared_ptr<Pages>& pages() {
  thread_local const auto mine = std::make_shared<Pages>();
  return mine;
}

// The CPU's allocator of libtorch, with a look at what goes through it.
class CountingAllocator : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator* inner) : inner_(inner) {}

  c10::DataPtr allocate(size_t bytes) override {
    void* ptr = inner_->raw_allocate(bytes);
    c10::DataPtr data(ptr, ptr, raw_deleter(), c10::Device(c10::DeviceType::CPU));
    blocks().add(ptr, static_cast<int64_t>(bytes), data.device(), pages()->current());
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

// Sees CUDA's blocks on behalf of one thread.
class Reporter : public c10::MemoryReportingInfoBase {
 public:
  explicit Reporter(std::shared_ptr<Pages> pages) : pages_(std::move(pages)) {}

  void reportMemoryUsage(void* ptr, int64_t size, size_t, size_t, c10::Device device) override {
    if (size < 0) {
      blocks().remove(ptr);
    } else {
      blocks().add(ptr, size, device, pages_->current());
    }
  }

  // What the CPU's allocator asks before it reports; see above.
  bool memoryProfilingEnabled() const override { return false; }

 private:
  const std::shared_ptr<Pages> pages_;
};

// Makes this thread's reporter at the first call. It stays: a block must be seen freed.
void report_cuda() {
  thread_local const bool is_reporting = [] {
    c10::ThreadLocalDebugInfo::_push(c10::DebugInfoKind::PROFILER_STATE,
                                     std::make_shared<Reporter>(pages()));
    return true;
  }();
  (void)is_reporting;
}

}  // namespace

extern "C" {

// A new ledger for the CPU (device_index below 0) or a CUDA device; the caller owns it.
int dsr_ledger_new(int device_index, void** ledger) {
  TRY(
    c10::Device device(c10::kCPU);
    if (device_index >= 0)
      device = c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(device_index));
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
    if (page.ledger && page.ledger->is_of_cuda()) report_cuda();
    pages()->open(std::move(page));
  )
}

// Undoes the last dsr_ledger_open of this thread.
void dsr_ledger_close() { pages()->close(); }

// All memory of a CUDA device.
int dsr_cuda_memory(int device_index, uint64_t* bytes) {
  TRY(
    auto* allocator = c10::getDeviceAllocator(c10::kCUDA);
    *bytes = allocator->getMemoryInfo(static_cast<c10::DeviceIndex>(device_index)).second;
  )
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
