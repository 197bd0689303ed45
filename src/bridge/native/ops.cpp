// Operations on tensors that the Rust bindings of libtorch do not offer.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_fused_rms_norm_backward.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "bridge.h"

namespace {

// The CPU adds two formats by first copying the narrower operand to the wider format: so many elements at a
// time, 1 MiB of float32.
constexpr int64_t kCopiedElements = 1 << 18;

}  // namespace

extern "C" {

// out = beta * out + alpha * a @ b, where out may have a wider format than the matrices.
int dsr_product(at::Tensor* out, at::Tensor* a, at::Tensor* b, double beta, double alpha) {
  TRY(
    at::NoGradGuard no_grad;
    if (out->scalar_type() == a->scalar_type()) {
      at::addmm_out(*out, *out, *a, *b, beta, alpha);
    } else if (out->is_cuda()) {
      at::addmm_out(*out, *out, *a, *b, out->scalar_type(), beta, alpha);
    } else {
      // The CPU has no product of two formats.
      const auto made = at::mm(*a, *b);
      if (beta != 0.0) {
        if (beta != 1.0) out->mul_(beta);
        if (made.numel() <= kCopiedElements) {
          out->add_(made, alpha);
        } else {
          const int64_t rows = std::max<int64_t>(1, kCopiedElements / made.size(1));
          for (int64_t row = 0; row < made.size(0); row += rows) {
            const int64_t count = std::min(rows, made.size(0) - row);
            out->narrow(0, row, count).add_(made.narrow(0, row, count), alpha);
          }
        }
      } else {
        out->copy_(made);
        if (alpha != 1.0) out->mul_(alpha);
      }
    }
  )
}

// The gradients of an RMS norm's input and weight, by a GPU's kernel; rstd is what its forward gave.
int dsr_rms_norm_backward(at::Tensor* grad, at::Tensor* input, at::Tensor* rstd, at::Tensor* weight,
                          at::Tensor** dinput, at::Tensor** dweight) {
  TRY(
    auto [dx, dw] = at::_fused_rms_norm_backward(*grad, *input, weight->sizes(), *rstd, *weight,
                                                 {true, true});
    *dinput = new at::Tensor(std::move(dx));
    *dweight = new at::Tensor(std::move(dw));
  )
}

}  // extern "C"
