// Lanes: streams of a GPU on which copies go on beside the computation, one for each direction.
//
// All through what libtorch has for any kind of device. The CPU has no streams, and nothing to wait
// for: its device index here is -1, and every function does nothing.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "bridge.h"
#include "stream.h"

namespace {

c10::Device device_of(int index) {
  if (index < 0) return c10::Device(c10::kCPU);
  return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index));
}

c10::impl::VirtualGuardImpl guard_of(c10::Device device) {
  return c10::impl::VirtualGuardImpl(device.type());
}

// All lanes, by device and direction.
struct Lanes {
  std::mutex mutex;
  std::map<std::pair<c10::DeviceIndex, int>, c10::Stream> streams;
};

// Never destroyed: memory may be freed while the process ends.
Lanes& lanes() {
  static Lanes& all = *new Lanes;
  return all;
}

// The stream of a direction, made at its first use. libtorch takes no stream back.
c10::Stream lane(c10::Device device, int way) {
  std::lock_guard lock(lanes().mutex);
  auto& streams = lanes().streams;
  const auto key = std::pair(device.index(), way);
  auto found = streams.find(key);
  if (found == streams.end())
    found = streams.emplace(key, guard_of(device).getNewStream(device)).first;
  return found->second;
}

// What a thread did before it went onto a lane.
struct Outer {
  c10::Device device;
  c10::Stream stream;
};

// What is done at some moment of a stream.
struct Moment {
  c10::Device device;
  c10::Event event;
};

}  // namespace

namespace dsr {

void finish_lanes() {
  std::lock_guard lock(lanes().mutex);
  for (const auto& [key, stream] : lanes().streams)
    guard_of(stream.device()).synchronizeStream(stream);
}

}  // namespace dsr

extern "C" {

// From here on what this thread gives the device goes onto the lane, after what it was given before.
int dsr_lane_enter(int device_index, int way, void** outer) {
  TRY(
    *outer = nullptr;
    const c10::Device device = device_of(device_index);
    if (device.is_cpu()) return dsr::kOk;
    const auto guard = guard_of(device);
    auto before = std::make_unique<Outer>(Outer{device, guard.getStream(device)});
    const c10::Stream stream = lane(device, way);
    c10::Event given(device.type());
    given.record(before->stream);
    given.block(stream);
    guard.exchangeStream(stream);
    *outer = before.release();
  )
}

// Back from the lane. With a place for it, gives the moment when the lane has done what it was given.
int dsr_lane_leave(void* outer, void** moment) {
  TRY(
    if (moment) *moment = nullptr;
    const std::unique_ptr<Outer> before(static_cast<Outer*>(outer));
    if (!before) return dsr::kOk;
    const c10::Stream stream = guard_of(before->device).exchangeStream(before->stream);
    if (!moment) return dsr::kOk;
    auto reached = std::make_unique<Moment>(Moment{before->device, c10::Event(stream.device_type())});
    reached->event.record(stream);
    *moment = reached.release();
  )
}

// What this thread gives the device from now on waits for the moment; the host does not.
int dsr_moment_follow(void* moment) {
  TRY(
    if (!moment) return dsr::kOk;
    const auto& [device, event] = *static_cast<Moment*>(moment);
    event.block(guard_of(device).getStream(device));
  )
}

// The host waits for the moment.
int dsr_moment_wait(void* moment) {
  TRY(
    if (!moment) return dsr::kOk;
    static_cast<Moment*>(moment)->event.synchronize();
  )
}

void dsr_moment_delete(void* moment) { delete static_cast<Moment*>(moment); }

// The memory of `tensor` is used by the stream that this thread gives its work to: the allocator hands
// it out again only when that is done, also where the tensor goes before.
int dsr_record_use(at::Tensor* tensor) {
  TRY(
    const c10::Device device = tensor->device();
    if (device.is_cpu()) return dsr::kOk;
    const auto guard = guard_of(device);
    guard.recordDataPtrOnStream(tensor->storage().data_ptr(), guard.getStream(device));
  )
}

// As into.copy_(from, non_blocking=true).
int dsr_copy(at::Tensor* into, at::Tensor* from) {
  TRY(into->copy_(*from, /*non_blocking=*/true);)
}

// A tensor on the CPU with the format and shape of `like` and any content. Beside a GPU it is in pinned
// memory of libtorch's, which rounds up to a power of two and keeps what is freed for the next one.
int dsr_host_like(at::Tensor* like, bool is_pinned, at::Tensor** tensor) {
  TRY(
    const auto options = like->options().device(c10::kCPU).pinned_memory(is_pinned);
    *tensor = new at::Tensor(at::empty(like->sizes(), options));
  )
}

// Whether the memory of a tensor on the CPU is pinned.
int dsr_is_pinned(at::Tensor* tensor, bool* is_pinned) {
  TRY(*is_pinned = tensor->is_pinned();)
}
}
