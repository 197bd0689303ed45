// A trace of what libtorch does: its profiler over Kineto, and named ranges within.
//
// The profiler keeps its state in the thread's PROFILER_STATE and refuses to start where something
// else is in it. The ledger (memory.cpp) must put nothing there, on CUDA neither.
#include <ATen/record_function.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <memory>
#include <set>
#include <string>
#include <utility>

#include "bridge.h"

namespace {

using torch::profiler::impl::ActivityType;
using torch::profiler::impl::ProfilerConfig;
using torch::profiler::impl::ProfilerState;

ProfilerConfig config() {
  return ProfilerConfig(ProfilerState::KINETO, /*report_input_shapes=*/true);
}

std::set<ActivityType> activities(bool with_cuda) {
  std::set<ActivityType> all{ActivityType::CPU};
  if (with_cuda) all.insert(ActivityType::CUDA);
  return all;
}

std::optional<at::StepCallbacks> listeners() {
  return at::getStepCallbacksUnlessEmpty(at::RecordScope::USER_SCOPE);
}

}  // namespace

extern "C" {

// What is slow at a profiler's first start happens here, and is not in the trace.
int dsr_trace_prepare(bool with_cuda) {
  TRY(torch::autograd::profiler::prepareProfiler(config(), activities(with_cuda));)
}

// Starts the trace of this thread and of the work that it hands to others.
int dsr_trace_start(bool with_cuda) {
  TRY(
    const std::unordered_set<at::RecordScope> scopes({
        at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION,
        at::RecordScope::USER_SCOPE});
    torch::autograd::profiler::enableProfiler(config(), activities(with_cuda), scopes);
  )
}

// Ends the trace that this thread started, and writes it to `path`.
int dsr_trace_stop(const char* path) {
  TRY(torch::autograd::profiler::disableProfiler()->save(path);)
}

// Begins a range of this thread, which ends with dsr_range_end; null where no trace runs here.
int dsr_range_begin(const char* name, void** range) {
  TRY(
    *range = nullptr;
    if (auto callbacks = listeners()) {
      auto function = std::make_unique<at::RecordFunction>(std::move(*callbacks));
      function->before(std::string(name));
      *range = function.release();
    }
  )
}

void dsr_range_end(void* range) { delete static_cast<at::RecordFunction*>(range); }
}
