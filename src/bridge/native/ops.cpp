// Operations on tensors that the Rust bindings of libtorch do not offer: gradients for given output
// gradients.
#include <torch/csrc/autograd/autograd.h>

#include "tensors.h"

using dsr::list;

extern "C" {

// d(output)/d(inputs) weighted with output_grad; the graph is freed. grads[i] becomes a new tensor
// that the caller owns, or null where output does not depend on inputs[i].
int dsr_grad(at::Tensor* output, at::Tensor* output_grad, at::Tensor* const* inputs,
             int64_t inputs_count, at::Tensor** grads) {
  TRY(
    auto result = torch::autograd::grad(
        {*output}, list(inputs, inputs_count), {*output_grad}, /*retain_graph=*/false,
        /*create_graph=*/false, /*allow_unused=*/true);
    for (int64_t i = 0; i < inputs_count; ++i)
      grads[i] = result[i].defined() ? new at::Tensor(std::move(result[i])) : nullptr;
  )
}
}
