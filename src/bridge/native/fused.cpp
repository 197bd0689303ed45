// libtorch's fused optimizers, which have kernels on CPUs and on CUDA. Each function is one step on
// lists of tensors of one device. grad_scale may be null, and gradients are divided by it; found_inf
// may be null, and where it is 1 nothing is changed.
#include <ATen/Functions.h>

#include <optional>

#include "tensors.h"

using dsr::list;

namespace {

std::optional<at::Tensor> optional(at::Tensor* tensor) {
  return tensor ? std::optional<at::Tensor>(*tensor) : std::nullopt;
}

// The one step of all.
std::vector<at::Tensor> steps(at::Tensor* step, int64_t count) {
  return std::vector<at::Tensor>(count, *step);
}

}  // namespace

extern "C" {

// Adam, whose weight decay is decoupled from the gradient (AdamW) or a part of it.
int dsr_fused_adam(at::Tensor* const* params, at::Tensor* const* grads, at::Tensor* const* exp_avgs,
                   at::Tensor* const* exp_avg_sqs, int64_t count, at::Tensor* step, bool decoupled,
                   double lr, double beta1, double beta2, double weight_decay, double eps,
                   at::Tensor* grad_scale, at::Tensor* found_inf) {
  TRY(
    auto update = [&](auto kernel) {
      kernel(list(params, count), list(grads, count), list(exp_avgs, count),
             list(exp_avg_sqs, count), at::TensorList(), steps(step, count), lr, beta1, beta2,
             weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false, optional(grad_scale),
             optional(found_inf));
    };
    if (decoupled) {
      update([](auto&&... args) { at::_fused_adamw_(args...); });
    } else {
      update([](auto&&... args) { at::_fused_adam_(args...); });
    }
  )
}

// SGD; without momentum there are no buffers, and momentum_buffers is null.
int dsr_fused_sgd(at::Tensor* const* params, at::Tensor* const* grads,
                  at::Tensor* const* momentum_buffers, int64_t count, double lr,
                  double weight_decay, double momentum, double dampening, bool nesterov,
                  bool is_first_step, at::Tensor* grad_scale, at::Tensor* found_inf) {
  TRY(
    auto buffers = momentum_buffers ? list(momentum_buffers, count) : std::vector<at::Tensor>();
    at::_fused_sgd_(list(params, count), list(grads, count), buffers, weight_decay, momentum, lr,
                    dampening, nesterov, /*maximize=*/false, is_first_step, optional(grad_scale),
                    optional(found_inf));
  )
}

int dsr_fused_adagrad(at::Tensor* const* params, at::Tensor* const* grads, at::Tensor* const* sums,
                      int64_t count, at::Tensor* step, double lr, double weight_decay, double eps,
                      at::Tensor* grad_scale, at::Tensor* found_inf) {
  TRY(
    at::_fused_adagrad_(list(params, count), list(grads, count), list(sums, count),
                        steps(step, count), lr, /*lr_decay=*/0.0, weight_decay, eps,
                        /*maximize=*/false, optional(grad_scale), optional(found_inf));
  )
}
}
