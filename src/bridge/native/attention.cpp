// libtorch's flash attention, forward and backward, with the log-sum-exp of the scores.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>

#include "bridge.h"

namespace {

at::Tensor* given(at::Tensor tensor) { return new at::Tensor(std::move(tensor)); }

}  // namespace

extern "C" {

// The attention of q to k and v, [B, H, T, D] each, and the log-sum-exp of the scores, [B, H, T].
int dsr_flash(at::Tensor* q, at::Tensor* k, at::Tensor* v, bool is_causal, double scale,
              at::Tensor** out, at::Tensor** sums) {
  TRY(
    at::NoGradGuard no_grad;
    if (q->is_cuda()) {
      auto made = at::_flash_attention_forward(
          q->transpose(1, 2), k->transpose(1, 2), v->transpose(1, 2), {}, {}, q->size(2),
          k->size(2), 0.0, is_causal, false, scale);
      *out = given(std::get<0>(made).transpose(1, 2));
      *sums = given(std::get<1>(made));
    } else {
      auto made = at::_scaled_dot_product_flash_attention_for_cpu(*q, *k, *v, 0.0, is_causal, {},
                                                                  scale);
      *out = given(std::get<0>(made));
      *sums = given(std::get<1>(made));
    }
  )
}

// The gradients of q, k and v from that of the attention; out and sums may be those of more keys.
int dsr_flash_backward(at::Tensor* grad, at::Tensor* q, at::Tensor* k, at::Tensor* v,
                       at::Tensor* out, at::Tensor* sums, bool is_causal, double scale,
                       at::Tensor** dq, at::Tensor** dk, at::Tensor** dv) {
  TRY(
    at::NoGradGuard no_grad;
    if (q->is_cuda()) {
      // Nothing drops out: the state of the random numbers is not read.
      const auto none = at::Tensor();
      auto made = at::_flash_attention_backward(
          grad->transpose(1, 2), q->transpose(1, 2), k->transpose(1, 2), v->transpose(1, 2),
          out->transpose(1, 2), *sums, none, none, q->size(2), k->size(2), 0.0, is_causal, none,
          none, scale);
      *dq = given(std::get<0>(made).transpose(1, 2));
      *dk = given(std::get<1>(made).transpose(1, 2));
      *dv = given(std::get<2>(made).transpose(1, 2));
    } else {
      auto made = at::_scaled_dot_product_flash_attention_for_cpu_backward(
          *grad, *q, *k, *v, *out, *sums, 0.0, is_causal, {}, scale);
      *dq = given(std::get<0>(made));
      *dk = given(std::get<1>(made));
      *dv = given(std::get<2>(made));
    }
  )
}

}  // extern "C"
