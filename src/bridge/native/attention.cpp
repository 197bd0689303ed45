// libtorch's flash attention: forward and backward, with the log-sum-exp of the scores, and that of one
// token a text to what a cache has.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu.h>
#include <ATen/ops/_scaled_dot_product_flash_attention_for_cpu_backward.h>

#include "bridge.h"
#ifdef DSR_CUDA
#include <ATen/cuda/CUDAContextLight.h>
#endif

namespace {

at::Tensor* given(at::Tensor tensor) { return new at::Tensor(std::move(tensor)); }

// Whether the kernels for CUDA are for such queries: 16 bits, from Ampere on.
bool has_kernel(const at::Tensor& q) {
#ifdef DSR_CUDA
  const auto kind = q.scalar_type();
  return q.is_cuda() && (kind == at::kHalf || kind == at::kBFloat16) && q.size(-1) % 8 == 0 &&
         q.size(-1) <= 256 && at::cuda::getDeviceProperties(q.device().index())->major >= 8;
#else
  static_cast<void>(q);
  return false;
#endif
}

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

// The attention of one query a text, [n, heads, width], to the first keys of its slot, k and v
// [n, kv heads, capacity, width]; null in *out where there is no kernel for it. `seen` says how many keys,
// int32 [n * kv heads], and the other two where queries and keys of each kv head begin and the last ends;
// `most` is the largest of `seen`.
int dsr_flash_of_slots(at::Tensor* q, at::Tensor* k, at::Tensor* v, at::Tensor* seen,
                       at::Tensor* queries, at::Tensor* keys, int64_t most, double scale,
                       at::Tensor** out) {
  TRY(
    *out = nullptr;
    at::NoGradGuard no_grad;
    if (has_kernel(*q)) {
      // Each kv head is a sequence of its own, with the queries that go by it as heads: so slots are
      // read where they lie.
      const int64_t width = q->size(2), heads = k->size(1), sequences = k->size(0) * heads;
      const auto flat = [&](const at::Tensor& x) {
        return x.view({sequences * x.size(2), 1, width});
      };
      auto made = at::_flash_attention_forward(
          q->reshape({sequences, q->size(1) / heads, width}), flat(*k), flat(*v), *queries, *keys,
          /*max_q=*/1, most, /*dropout_p=*/0.0, /*is_causal=*/false, /*return_debug_mask=*/false,
          scale, {}, {}, *seen);
      *out = given(std::get<0>(made).view(q->sizes()));
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
