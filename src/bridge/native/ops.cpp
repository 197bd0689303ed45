// Operations on tensors that the Rust bindings of libtorch do not offer: gradients for given output
// gradients, and the fused optimizer.
#include <ATen/Functions.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "bridge.h"

namespace {

std::vector<at::Tensor> list(at::Tensor* const* tensors, int64_t count) {
  std::vector<at::Tensor> out;
  out.reserve(count);
  for (int64_t i = 0; i < count; ++i) out.push_back(*tensors[i]);
  return out;
}

}  // namespace

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

// One step of AdamW on each parameter. grad_scale may be null; gradients are divided by it.
int dsr_fused_adamw(at::Tensor* const* params, at::Tensor* const* grads, at::Tensor* const* exp_avgs,
                    at::Tensor* const* exp_avg_sqs, at::Tensor* const* steps, int64_t count,
                    double lr, double beta1, double beta2, double weight_decay, double eps,
                    at::Tensor* grad_scale) {
  TRY(
    auto scale = grad_scale ? std::optional<at::Tensor>(*grad_scale) : std::nullopt;
    at::_fused_adamw_(list(params, count), list(grads, count), list(exp_avgs, count),
                      list(exp_avg_sqs, count), {}, list(steps, count), lr, beta1, beta2,
                      weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false, scale);
  )
}
}
