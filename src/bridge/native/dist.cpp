// Process groups and collectives of libtorch's c10d: Gloo for tensors in host memory, NCCL for
// tensors of CUDA devices.
//
// A group is a backend and the store through which its ranks met. A collective returns a Pending,
// which owns the running work and references to its tensors, so that no buffer can be freed under
// a transfer. What is called here is c10d's own backend interface, with no ProcessGroup and no
// dispatcher between: dsr chooses the backend itself. A group of one rank has none (src/dist).
//
// Shapes, dtypes and devices are checked by src/dist before a call.
#include "bridge.h"

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include <c10/util/Logging.h>

#include <algorithm>
#include <chrono>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace {

using std::chrono::milliseconds;
using Backend = c10::intrusive_ptr<c10d::Backend>;
using Store = c10::intrusive_ptr<c10d::Store>;

struct Group {
  Store store;
  Backend backend;
  int cuda_index;  // -1: host memory.
  milliseconds timeout;
  std::string interface, address;  // Gloo's.
};

using Works = std::vector<c10::intrusive_ptr<c10d::Work>>;

// NCCL returns no work for a synchronous collective: it is on the caller's stream already.
Works started(c10::intrusive_ptr<c10d::Work> work) {
  return work ? Works{std::move(work)} : Works{};
}

struct Pending {
  Works works;
  std::vector<at::Tensor> tensors;  // The result is the first.
  bool is_nccl;
  int64_t divisor = 1;  // The result is divided by this when the works are done,
  at::Tensor source{};  // and before that copied from here, if this is a tensor.

  // Waits this long at most; NCCL only orders the stream, and waits for nothing. False: not yet.
  bool finish_within(milliseconds time) {
    const auto end = std::chrono::steady_clock::now() + time;
    for (auto& work : works) {
      if (is_nccl) {
        TORCH_CHECK(work->wait(), "the collective was aborted");
        continue;
      }
      const auto left = std::chrono::ceil<milliseconds>(end - std::chrono::steady_clock::now());
      try {
        TORCH_CHECK(work->wait(std::max(left, milliseconds(1))), "the collective was aborted");
      } catch (...) {
        // The time was over, or the collective has failed in it.
        if (work->isCompleted()) throw;
        return false;
      }
    }
    at::NoGradGuard no_grad;
    if (source.defined()) tensors.front().copy_(source);
    if (divisor != 1) tensors.front().div_(divisor);
    return true;
  }

  bool is_completed() const {
    return std::all_of(works.begin(), works.end(), [](auto& work) { return work->isCompleted(); });
  }
};

// While ranks meet, c10d logs every failed attempt with a C++ stack before it throws. The exception
// becomes dsr's message, so the log is kept only where TORCH_CPP_LOG_LEVEL asks for all of it.
class QuietLog {
 public:
  QuietLog() {
    std::lock_guard lock(mutex_);
    if (users_++ > 0) return;  // The level is the whole process's.
    level_ = FLAGS_caffe2_log_level;
    if (level_ > c10::GLOG_INFO) FLAGS_caffe2_log_level = c10::GLOG_FATAL;
  }
  ~QuietLog() {
    std::lock_guard lock(mutex_);
    if (--users_ == 0) FLAGS_caffe2_log_level = level_;
  }
  QuietLog(const QuietLog&) = delete;
  QuietLog& operator=(const QuietLog&) = delete;

 private:
  static inline std::mutex mutex_;
  static inline int users_ = 0;
  static inline int level_ = 0;
};

std::string joined_key(int rank) { return "joined/" + std::to_string(rank); }

// Whether the keys came in time.
bool wait_for(c10d::Store& store, const std::vector<std::string>& keys, milliseconds timeout) {
  try {
    store.wait(keys, timeout);
    return true;
  } catch (const c10::DistStoreError&) {
    return false;
  }
}

Backend connect_gloo(const Store& store, int rank, int size, const char* interface,
                     const char* address, milliseconds timeout) {
  using c10d::ProcessGroupGloo;
  auto options = ProcessGroupGloo::Options::create(timeout);
  if (*interface != '\0') {
    options->devices.push_back(ProcessGroupGloo::createDeviceForInterface(interface));
  } else if (*address != '\0') {
    options->devices.push_back(ProcessGroupGloo::createDeviceForHostname(address));
  } else {
    options->devices.push_back(ProcessGroupGloo::createDefaultDevice());
  }
  return c10::make_intrusive<ProcessGroupGloo>(store, rank, size, std::move(options));
}

Backend connect_nccl([[maybe_unused]] const Store& store, [[maybe_unused]] int rank,
                     [[maybe_unused]] int size, [[maybe_unused]] int cuda_index,
                     [[maybe_unused]] milliseconds timeout) {
#ifdef USE_C10D_NCCL
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  auto backend = c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, size, options);
  at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(cuda_index));
  backend->setBoundDeviceId(device);
  // Connects now, where an error still means "connecting failed", and not in the first step.
  backend->eagerConnectSingleDevice(device);
  return backend;
#else
  TORCH_CHECK(false, "this dsr was built without NCCL");
#endif
}

// The group with a backend of its own, as rank `rank` of `size`.
Group* connected(Group group, int rank, int size) {
  const auto& [store, _, cuda_index, timeout, interface, address] = group;
  group.backend = cuda_index < 0
      ? connect_gloo(store, rank, size, interface.c_str(), address.c_str(), timeout)
      : connect_nccl(store, rank, size, cuda_index, timeout);
  return new Group(std::move(group));
}

bool is_nccl(const Group& group) { return group.cuda_index >= 0; }

// Gloo has no average: it sums, and Pending divides.
c10d::ReduceOp reduction(const Group& group, int op, int64_t* divisor) {
  auto type = static_cast<c10d::ReduceOp::RedOpType>(op);
  *divisor = 1;
  if (type == c10d::ReduceOp::AVG && !is_nccl(group)) {
    *divisor = group.backend->getSize();
    return c10d::ReduceOp::SUM;
  }
  return type;
}

// The same memory in one dimension: c10d compares shapes where only sizes matter. Without the
// tensor's autograd state: a collective is no operation that is differentiated, and what it writes
// must not count as a change of a tensor that backward has saved.
at::Tensor flat(const at::Tensor& tensor) { return tensor.variable_data().view({-1}); }

Pending* pending(const Group& group, c10::intrusive_ptr<c10d::Work> work,
                 std::vector<at::Tensor> tensors, int64_t divisor = 1) {
  return new Pending{started(std::move(work)), std::move(tensors), is_nccl(group), divisor};
}

// The slice of a flat tensor that belongs to this rank.
at::Tensor slice_of(const at::Tensor& flat, int64_t rank, int64_t size) {
  const auto length = flat.numel() / size;
  return flat.narrow(0, rank * length, length);
}

// c10d's Gloo gathers into a second buffer of the whole size. Here each rank broadcasts its slice
// in place.
Pending* gather_in_place(const Group& group, at::Tensor to, const at::Tensor& from, bool async) {
  const int rank = group.backend->getRank();
  const int size = group.backend->getSize();
  auto own = slice_of(to, rank, size);
  if (own.data_ptr() != from.data_ptr()) own.copy_(from);
  Works works;
  for (int root = 0; own.numel() > 0 && root < size; ++root) {
    std::vector<at::Tensor> slices{slice_of(to, root, size)};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    options.asyncOp = async;
    works.push_back(group.backend->broadcast(slices, options));
  }
  return new Pending{std::move(works), {std::move(to)}, is_nccl(group)};
}

// c10d's Gloo has no reduce_scatter of its own: it reduces a copy of the whole input. Here the input
// is reduced in place, and each rank takes its slice.
Pending* reduce_in_place(const Group& group, at::Tensor to, at::Tensor from, int op, bool async) {
  std::vector<at::Tensor> tensors{from};
  int64_t divisor;
  c10d::AllreduceOptions options;
  options.reduceOp = reduction(group, op, &divisor);
  options.asyncOp = async;
  auto work = group.backend->allreduce(tensors, options);
  auto source = slice_of(from, group.backend->getRank(), group.backend->getSize());
  return new Pending{started(std::move(work)), {std::move(to)}, false, divisor, std::move(source)};
}

}  // namespace

extern "C" {

// The store at host:port, where all ranks meet. One process hosts it (`server`), for which port 0
// is any free one; `bound` receives the port. Waits for the host, not for the other ranks.
// `listener` is a socket that listens already, which a server takes over; -1: it opens one itself.
int dsr_store_tcp(const char* host, uint16_t port, bool server, int listener, const char* prefix,
                  int64_t timeout_ms, uint16_t* bound, void** out) {
  TRY(
    QuietLog quiet;
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = server;
    options.waitWorkers = false;
    if (listener >= 0) options.masterListenFd = listener;
    options.timeout = milliseconds(timeout_ms);
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    *bound = store->getPort();
    *out = new Store(c10::make_intrusive<c10d::PrefixStore>(prefix, std::move(store)));
  )
}

// Says that this rank is there, and waits until every rank is or the time is over. `present`
// receives one flag a rank; time that is over is no failure here, the flags tell.
int dsr_store_join(void* handle, int rank, int size, int64_t timeout_ms, bool* present) {
  TRY(
    QuietLog quiet;
    auto& store = **static_cast<Store*>(handle);
    store.set(joined_key(rank), std::vector<uint8_t>{1});
    const auto end = std::chrono::steady_clock::now() + milliseconds(timeout_ms);
    for (int other = 0; other < size; ++other) {
      const std::vector<std::string> key{joined_key(other)};
      const auto left = std::chrono::ceil<milliseconds>(end - std::chrono::steady_clock::now());
      if (left.count() > 0 && wait_for(store, key, left)) {
        present[other] = true;
      } else {
        present[other] = store.check(key);
      }
    }
  )
}

int dsr_store_set(void* handle, const char* key, const uint8_t* value, size_t size) {
  TRY(
    QuietLog quiet;
    auto& store = **static_cast<Store*>(handle);
    store.set(key, std::vector<uint8_t>(value, value + size));
  )
}

// Sets a key that has no value yet; `value` receives the one that it has then, as in dsr_store_get.
int dsr_store_claim(void* handle, const char* key, const uint8_t* wanted, size_t wanted_size,
                    const uint8_t** value, size_t* size) {
  TRY(
    QuietLog quiet;
    static thread_local std::vector<uint8_t> last;
    auto& store = **static_cast<Store*>(handle);
    last = store.compareSet(key, {}, std::vector<uint8_t>(wanted, wanted + wanted_size));
    *value = last.data();
    *size = last.size();
  )
}

// The value of a key, without waiting for it: `found` tells whether there is one. The bytes are
// this thread's until its next call.
int dsr_store_get(void* handle, const char* key, bool* found, const uint8_t** value, size_t* size) {
  TRY(
    QuietLog quiet;
    static thread_local std::vector<uint8_t> last;
    auto& store = **static_cast<Store*>(handle);
    *found = store.check({key});
    if (*found) last = store.get(key);
    *value = last.data();
    *size = last.size();
  )
}

void dsr_store_free(void* handle) { delete static_cast<Store*>(handle); }

// `cuda_index` < 0 chooses Gloo: on the network interface of that name if it is not empty, else on
// the one that has the address, else on the one of this machine's host name.
int dsr_group_new(void* store_handle, int rank, int size, int cuda_index, const char* interface,
                  const char* address, int64_t timeout_ms, void** out) {
  TRY(
    QuietLog quiet;
    const auto& store = *static_cast<Store*>(store_handle);
    Group group{store, nullptr, cuda_index, milliseconds(timeout_ms), interface, address};
    *out = connected(std::move(group), rank, size);
  )
}

// A group of some of the ranks of another one, which meet under keys of their own.
int dsr_group_sub(void* handle, const char* prefix, int rank, int size, void** out) {
  TRY(
    QuietLog quiet;
    auto group = *static_cast<Group*>(handle);
    group.store = c10::make_intrusive<c10d::PrefixStore>(prefix, group.store);
    *out = connected(std::move(group), rank, size);
  )
}

// Closes the connections. Ranks that are still in a collective with this one fail.
void dsr_group_free(void* handle) {
  auto* group = static_cast<Group*>(handle);
  try {
    group->backend->shutdown();
    delete group;
  } catch (...) {
    // A group whose other ranks have died cannot be closed in order; the process goes on.
  }
}

int dsr_all_reduce(void* handle, at::Tensor* tensor, int op, bool async, void** out) {
  TRY(
    auto& group = *static_cast<Group*>(handle);
    std::vector<at::Tensor> tensors{flat(*tensor)};
    int64_t divisor;
    c10d::AllreduceOptions options;
    options.reduceOp = reduction(group, op, &divisor);
    options.asyncOp = async;
    auto work = group.backend->allreduce(tensors, options);
    *out = pending(group, std::move(work), std::move(tensors), divisor);
  )
}

int dsr_all_gather(void* handle, at::Tensor* output, at::Tensor* shard, bool async, void** out) {
  TRY(
    auto& group = *static_cast<Group*>(handle);
    auto to = flat(*output);
    auto from = flat(*shard);
    if (!is_nccl(group)) return *out = gather_in_place(group, to, from, async), 0;
    c10d::AllgatherOptions options;
    options.asyncOp = async;
    auto work = group.backend->_allgather_base(to, from, options);
    *out = pending(group, std::move(work), {to, from});
  )
}

int dsr_reduce_scatter(void* handle, at::Tensor* shard, at::Tensor* input, int op, bool async,
                       void** out) {
  TRY(
    auto& group = *static_cast<Group*>(handle);
    auto to = flat(*shard);
    auto from = flat(*input);
    if (!is_nccl(group)) return *out = reduce_in_place(group, to, from, op, async), 0;
    int64_t divisor;
    c10d::ReduceScatterOptions options;
    options.reduceOp = reduction(group, op, &divisor);
    options.asyncOp = async;
    auto work = group.backend->_reduce_scatter_base(to, from, options);
    *out = pending(group, std::move(work), {to, from}, divisor);
  )
}

int dsr_broadcast(void* handle, at::Tensor* tensor, int root, bool async, void** out) {
  TRY(
    auto& group = *static_cast<Group*>(handle);
    std::vector<at::Tensor> tensors{flat(*tensor)};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    options.asyncOp = async;
    auto work = group.backend->broadcast(tensors, options);
    *out = pending(group, std::move(work), std::move(tensors));
  )
}

int dsr_barrier(void* handle, bool async, void** out) {
  TRY(
    auto& group = *static_cast<Group*>(handle);
    c10d::BarrierOptions options;
    options.asyncOp = async;
    options.timeout = group.timeout;
    if (is_nccl(group)) options.device_ids = {group.cuda_index};
    *out = pending(group, group.backend->barrier(options), {});
  )
}

// Waits for `time_ms` at most; `done` tells whether the result is there.
int dsr_work_wait(void* handle, int64_t time_ms, bool* done) {
  TRY(
    *done = static_cast<Pending*>(handle)->finish_within(milliseconds(time_ms));
  )
}

int dsr_work_is_completed(void* handle, bool* completed) {
  TRY(
    *completed = static_cast<Pending*>(handle)->is_completed();
  )
}

void dsr_work_free(void* handle) { delete static_cast<Pending*>(handle); }

}  // extern "C"
