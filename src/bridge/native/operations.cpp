// Lists the operations that a thread gives to libtorch, for whoever counts what a step costs.
//
// An operation stands for those that its kernel calls. One without a kernel of its own stands for
// nothing, and those that it calls are listed; except one on lists of tensors, which on a GPU is one
// kernel, whatever the CPU makes of it.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>

#include <memory>
#include <sstream>
#include <string>
#include <string_view>

#include "bridge.h"

namespace {

struct Recording {
  std::string text;
  int kernels = 0;  // Open operations that stand for all within.
  at::CallbackHandle handle = 0;
};

struct Open : at::ObserverContext {
  bool is_kernel = false;  // Or a view.
};

thread_local std::unique_ptr<Recording> recording;

void describe(std::ostream& out, const c10::IValue& value) {
  if (value.isTensor()) {
    const auto& tensor = value.toTensor();
    if (!tensor.defined()) return void(out << " none");
    out << ' ' << tensor.dtype().name() << tensor.sizes();
  } else if (value.isTensorList()) {
    out << " [";
    for (const at::Tensor& tensor : value.toTensorList()) describe(out, tensor);
    out << " ]";
  }
}

enum class Kind { kNone, kView, kKernel };

// What an operation is. A view has an output that is an input and is not written: it moves no data.
Kind kind_of(const c10::OperatorName& name) {
  const std::string_view view(name.name);
  if (view.starts_with("aten::_foreach_") || view.starts_with("aten::_fused_")) return Kind::kKernel;
  const auto op = c10::Dispatcher::singleton().findSchema(name);
  if (!op || op->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd)) return Kind::kNone;
  const auto& returns = op->schema().returns();
  const auto* alias = returns.empty() ? nullptr : returns.front().alias_info();
  if (alias != nullptr && !alias->isWrite()) return Kind::kView;
  return op->hasKernelForDispatchKey(c10::DispatchKey::CPU) ? Kind::kKernel : Kind::kNone;
}

std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& function) {
  auto open = std::make_unique<Open>();
  const auto name = function.operator_name();
  if (!name) return open;  // A range that has only a name.
  const auto kind = kind_of(*name);
  if (kind == Kind::kNone) return open;
  if (recording->kernels == 0) {
    std::ostringstream line;
    line << (kind == Kind::kView ? "view " : "") << function.name();
    for (const auto& input : function.inputs()) describe(line, input);
    recording->text += line.str() + '\n';
  }
  open->is_kernel = true;
  ++recording->kernels;
  return open;
}

void end(const at::RecordFunction&, at::ObserverContext* context) {
  recording->kernels -= static_cast<Open*>(context)->is_kernel;
}

}  // namespace

extern "C" {

int dsr_operations_begin() {
  TRY(
    recording = std::make_unique<Recording>();
    auto callback = at::RecordFunctionCallback(begin, end).needsInputs(true);
    callback.scopes({at::RecordScope::FUNCTION});
    recording->handle = at::addThreadLocalCallback(std::move(callback));
  )
}

// One operation a line. The text is this thread's until its next call.
int dsr_operations_end(const char** text) {
  TRY(
    static thread_local std::string last;
    at::removeCallback(recording->handle);
    last = std::move(recording->text);
    recording = nullptr;
    *text = last.c_str();
  )
}
}
