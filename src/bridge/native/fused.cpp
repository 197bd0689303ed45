// libtorch's fused optimizers, which have kernels on CPUs and on CUDA. Each function is one step on
// one tensor; grad_scale may be null, and the gradient is divided by it.
#include <ATen/Functions.h>

#include <optional>

#include "bridge.h"

namespace {

std::optional<at::Tensor> optional(at::Tensor* tensor) {
  return tensor ? std::optional<at::Tensor>(*tensor) : std::nullopt;
}

}  // namespace

extern "C" {

// Adam, whose weight decay is decoupled from the gradient (AdamW) or a part of it.
int dsr_fused_adam(at::Tensor* param, at::Tensor* grad, at::Tensor* exp_avg, at::Tensor* exp_avg_sq,
                   at::Tensor* step, bool decoupled, double lr, double beta1, double beta2,
                   double weight_decay, double eps, at::Tensor* grad_scale) {
  TRY(
    auto update = [&](auto kernel) {
      kernel(*param, *grad, *exp_avg, *exp_avg_sq, at::TensorList(), *step, lr, beta1, beta2,
             weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false, optional(grad_scale),
             std::nullopt);
    };
    if (decoupled) {
      update([](auto&&... args) { at::_fused_adamw_(args...); });
    } else {
      update([](auto&&... args) { at::_fused_adam_(args...); });
    }
  )
}

// SGD; without momentum there is no buffer, and momentum_buffer is null.
int dsr_fused_sgd(at::Tensor* param, at::Tensor* grad, at::Tensor* momentum_buffer, double lr,
                  double weight_decay, double momentum, double dampening, bool nesterov,
                  bool is_first_step, at::Tensor* grad_scale) {
  TRY(
    auto buffers = momentum_buffer ? at::TensorList(*momentum_buffer) : at::TensorList();
    at::_fused_sgd_(*param, *grad, buffers, weight_decay, momentum, lr, dampening, nesterov,
                    /*maximize=*/false, is_first_step, optional(grad_scale));
  )
}

int dsr_fused_adagrad(at::Tensor* param, at::Tensor* grad, at::Tensor* sum, at::Tensor* step,
                      double lr, double weight_decay, double eps, at::Tensor* grad_scale) {
  TRY(
    at::_fused_adagrad_(*param, *grad, *sum, *step, lr, /*lr_decay=*/0.0, weight_decay, eps,
                        /*maximize=*/false, optional(grad_scale));
  )
}
}
