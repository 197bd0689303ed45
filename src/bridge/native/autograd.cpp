// Gradients: those of one output for given inputs, and operations whose gradient is a function of
// Rust's.
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <c10/core/AutogradState.h>

#include <memory>
#include <thread>
#include <type_traits>

#include "tensors.h"

using dsr::list;
using torch::autograd::Node;
using torch::autograd::variable_list;

namespace {

// A closure of Rust's, which `drop` frees. `call` is given the gradient of each output, or null, and
// writes one owned tensor or null for each input; it returns 0, or keeps its error on the Rust side.
struct Closure {
  void* data;
  int (*call)(void* data, at::Tensor* const* given, at::Tensor** grads);
  void (*drop)(void* data);
};

class OwnGradient : public Node {
 public:
  explicit OwnGradient(Closure closure) : closure_(closure) {}
  ~OwnGradient() override { release_variables(); }

  variable_list apply(variable_list&& grads) override {
    // The closure is of one thread, and its graph is freed with the first pass.
    TORCH_CHECK(std::this_thread::get_id() == thread_, "a gradient in another thread");
    TORCH_CHECK(closure_.data != nullptr, "a gradient is asked for a second time");
    variable_list out(num_outputs());
    std::vector<at::Tensor*> given;
    for (auto& grad : grads) given.push_back(grad.defined() ? &grad : nullptr);
    std::vector<at::Tensor*> made(out.size(), nullptr);
    const int status = closure_.call(closure_.data, given.data(), made.data());
    for (size_t i = 0; i < made.size(); ++i) {
      if (made[i] == nullptr) continue;
      out[i] = std::move(*made[i]);
      delete made[i];
    }
    TORCH_CHECK(status == 0, "an operation's own gradient failed");
    return out;
  }

  void release_variables() override {
    if (closure_.data != nullptr) closure_.drop(closure_.data);
    closure_.data = nullptr;
  }

 private:
  Closure closure_;
  std::thread::id thread_ = std::this_thread::get_id();
};

// libtorch's pointer to a node: one of its own, and std::shared_ptr up to 2.11.
using NodePointer = decltype(torch::autograd::Edge::function);

template <class Pointer, class Made>
Pointer make_node(Closure closure) {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<Node>>) return std::make_shared<Made>(closure);
  else return Pointer(c10::make_intrusive<Made>(closure));
}

// Backward passes run in the calling thread, also those of CUDA: a layer's costs no change of
// threads, and what belongs to the thread (closures, the ledger) is at hand.
class SingleThreaded {
 public:
  SingleThreaded() : before_(state().get_multithreading_enabled()) {
    state().set_multithreading_enabled(false);
  }
  ~SingleThreaded() { state().set_multithreading_enabled(before_); }
  SingleThreaded(const SingleThreaded&) = delete;
  SingleThreaded& operator=(const SingleThreaded&) = delete;

 private:
  static c10::AutogradState& state() { return c10::AutogradState::get_tls_state(); }
  bool before_;
};

}  // namespace

extern "C" {

// d(outputs)/d(inputs) weighted with output_grads; the graph is freed. grads[i] becomes a new tensor
// that the caller owns, or null where no output depends on inputs[i].
int dsr_grad(at::Tensor* const* outputs, at::Tensor* const* output_grads, int64_t outputs_count,
             at::Tensor* const* inputs, int64_t inputs_count, at::Tensor** grads) {
  TRY(
    SingleThreaded single_threaded;
    auto result = torch::autograd::grad(
        list(outputs, outputs_count), list(inputs, inputs_count),
        list(output_grads, outputs_count), /*retain_graph=*/false, /*create_graph=*/false,
        /*allow_unused=*/true);
    for (int64_t i = 0; i < inputs_count; ++i)
      grads[i] = result[i].defined() ? new at::Tensor(std::move(result[i])) : nullptr;
  )
}

// Makes `outputs`, computed from `inputs` without a graph, outputs of an operation of autograd's
// whose gradient is the closure. The closure is owned from here on, also where this fails.
int dsr_own_gradient(at::Tensor* const* inputs, int64_t inputs_count, at::Tensor* const* outputs,
                     int64_t outputs_count, void* data,
                     int (*call)(void*, at::Tensor* const*, at::Tensor**), void (*drop)(void*)) {
  TRY(
    auto node = make_node<NodePointer, OwnGradient>(Closure{data, call, drop});
    node->set_next_edges(torch::autograd::collect_next_edges(list(inputs, inputs_count)));
    torch::autograd::set_history(list(outputs, outputs_count), node);
  )
}
}
