// Operations on lists of tensors: on CUDA one kernel for all of them, where each tensor alone would
// be a launch.
#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include "tensors.h"

using dsr::list;

extern "C" {

int dsr_copy_all(at::Tensor* const* to, at::Tensor* const* from, int64_t count) {
  TRY(
    at::NoGradGuard no_grad;
    at::_foreach_copy_(list(to, count), list(from, count));
  )
}

int dsr_add_all(at::Tensor* const* to, at::Tensor* const* from, int64_t count) {
  TRY(
    at::NoGradGuard no_grad;
    at::_foreach_add_(list(to, count), list(from, count));
  )
}

int dsr_zero_all(at::Tensor* const* tensors, int64_t count) {
  TRY(
    at::NoGradGuard no_grad;
    at::_foreach_zero_(list(tensors, count));
  )
}

// The Euclidean norm of each, float64 [count].
int dsr_norms(at::Tensor* const* tensors, int64_t count, at::Tensor** out) {
  TRY(
    at::NoGradGuard no_grad;
    *out = new at::Tensor(at::stack(at::_foreach_norm(list(tensors, count), 2, at::kDouble)));
  )
}
}
