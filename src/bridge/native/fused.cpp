// libtorch's fused optimizers, which have kernels on CPUs and on CUDA. Each function is one step on
// each parameter; grad_scale may be null, and gradients are divided by it.
#include <ATen/Functions.h>

#include <optional>

#include "tensors.h"

using dsr::list;

namespace {

std::optional<at::Tensor> optional(at::Tensor* tensor) {
  return tensor ? std::optional<at::Tensor>(*tensor) : std::nullopt;
}

}  // namespace

extern "C" {

// Adam, whose weight decay is decoupled from the gradient (AdamW) or a part of it.
int dsr_fused_adam(at::Tensor* const* params, at::Tensor* const* grads, at::Tensor* const* exp_avgs,
                   at::Tensor* const* exp_avg_sqs, at::Tensor* const* steps, int64_t count,
                   bool decoupled, double lr, double beta1, double beta2, double weight_decay,
                   double eps, at::Tensor* grad_scale) {
  TRY(
    auto step = [&](auto kernel) {
      kernel(list(params, count), list(grads, count), list(exp_avgs, count),
             list(exp_avg_sqs, count), at::TensorList(), list(steps, count), lr, beta1, beta2,
             weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false, optional(grad_scale),
             std::nullopt);
    };
    if (decoupled) {
      step([](auto&&... args) { at::_fused_adamw_(args...); });
    } else {
      step([](auto&&... args) { at::_fused_adam_(args...); });
    }
  )
}

// SGD; without momentum there are no buffers, and momentum_buffers is null.
int dsr_fused_sgd(at::Tensor* const* params, at::Tensor* const* grads,
                  at::Tensor* const* momentum_buffers, int64_t count, double lr,
                  double weight_decay, double momentum, double dampening, bool nesterov,
                  bool is_first_step, at::Tensor* grad_scale) {
  TRY(
    at::_fused_sgd_(list(params, count), list(grads, count),
                    list(momentum_buffers, momentum_buffers ? count : 0), weight_decay, momentum,
                    lr, dampening, nesterov, /*maximize=*/false, is_first_step,
                    optional(grad_scale));
  )
}

int dsr_fused_adagrad(at::Tensor* const* params, at::Tensor* const* grads, at::Tensor* const* sums,
                      at::Tensor* const* steps, int64_t count, double lr, double weight_decay,
                      double eps, at::Tensor* grad_scale) {
  TRY(
    at::_fused_adagrad_(list(params, count), list(grads, count), list(sums, count),
                        list(steps, count), lr, /*lr_decay=*/0.0, weight_decay, eps,
                        /*maximize=*/false, optional(grad_scale));
  )
}
}
