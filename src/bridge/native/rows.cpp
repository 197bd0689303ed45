// Kernels of the CPU for what a pass of one token a text does beside products: each takes the place of
// many small operations, whose calls cost more than their work. As in decode.cpp a row does not depend on
// those beside it.
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "bridge.h"
#include "lanes.h"

namespace {

using namespace dsr;

bool is_float(const at::Tensor& tensor) {
  return tensor.is_cpu() && tensor.scalar_type() == at::kFloat;
}

// Rows of `width` elements, one after another, and the weight of each element.
struct Norm {
  const float* x;
  const float* weight;
  float* y;
  int64_t rows, width;
  float epsilon, added;
};

FOR_EACH_MACHINE void rms_norm(const Norm& n) {
  for (int64_t row = 0; row < n.rows; ++row) {
    const float* x = n.x + row * n.width;
    float* y = n.y + row * n.width;
    Lanes squares{};
    for (int64_t i = 0; i < n.width; i += kLanes) {
      const Lanes part = load_part(x + i, std::min(kLanes, n.width - i));
      squares += part * part;
    }
    const float mean = sum(squares) / static_cast<float>(n.width);
    const float factor = 1.0f / std::sqrt(mean + n.epsilon);
    for (int64_t i = 0; i < n.width; ++i) y[i] = x[i] * factor * (n.weight[i] + n.added);
  }
}

// Heads of one token each, `stride` apart, of which the first `2 * half` elements turn.
struct Turn {
  const float *x, *cos, *sin;
  float* y;
  int64_t heads, stride, width, half;
};

FOR_EACH_MACHINE void turn(const Turn& t) {
  for (int64_t head = 0; head < t.heads; ++head) {
    const float *a = t.x + head * t.stride, *b = a + t.half;
    float *first = t.y + head * t.width, *second = first + t.half;
    for (int64_t i = 0; i < t.half; ++i) {
      first[i] = a[i] * t.cos[i] - b[i] * t.sin[i];
      second[i] = b[i] * t.cos[i] + a[i] * t.sin[i];
    }
    std::copy(b + t.half, a + t.width, second + t.half);
  }
}

// Copies x, [rows, heads, 1, width], into the places of the rows in memory, [slots, heads, capacity, width].
void keep(const at::Tensor& memory, const at::Tensor& x, const int64_t* places) {
  const int64_t capacity = memory.size(2), heads = x.size(1), bytes = x.size(3) * x.element_size();
  auto* to = static_cast<char*>(memory.mutable_data_ptr());
  const auto* from = static_cast<const char*>(x.const_data_ptr());
  for (int64_t row = 0; row < x.size(0); ++row) {
    for (int64_t head = 0; head < heads; ++head) {
      const int64_t place = (row * heads + head) * capacity + places[row];
      const int64_t at = row * x.stride(0) + head * x.stride(1);
      std::memcpy(to + place * bytes, from + at * x.element_size(), bytes);
    }
  }
}

}  // namespace

extern "C" {

// x / sqrt(mean(x^2) + epsilon) * (weight + added) over the last dimension, in *out; null where there is
// no kernel for it.
int dsr_rms_norm_rows(at::Tensor* x, at::Tensor* weight, double epsilon, double added,
                      at::Tensor** out) {
  TRY(
    *out = nullptr;
    if (!at::GradMode::is_enabled() && is_float(*x) && is_float(*weight)) {
      const auto rows = x->contiguous();
      const auto scale = weight->contiguous();
      auto y = at::empty_like(rows);
      const int64_t width = scale.numel();
      rms_norm({rows.const_data_ptr<float>(), scale.const_data_ptr<float>(),
                y.mutable_data_ptr<float>(), rows.numel() / width, width,
                static_cast<float>(epsilon), static_cast<float>(added)});
      *out = new at::Tensor(std::move(y));
    }
  )
}

// x, [rows, 1, heads, width], whose elements are one after another, turned by the angles of positions[row],
// of tables [positions, 1, half], in *out; null where there is no kernel for it.
int dsr_turn_rows(at::Tensor* x, at::Tensor* cos, at::Tensor* sin, const int64_t* positions,
                  at::Tensor** out) {
  TRY(
    *out = nullptr;
    const bool is_ours = !at::GradMode::is_enabled() && is_float(*x) && is_float(*cos) &&
                         is_float(*sin) && x->stride(3) == 1 && cos->is_contiguous() &&
                         sin->is_contiguous();
    if (is_ours) {
      const int64_t heads = x->size(2), width = x->size(3), half = cos->size(2);
      auto y = at::empty(x->sizes(), x->options());
      for (int64_t row = 0; row < x->size(0); ++row) {
        const int64_t at = positions[row] * half;
        turn({x->const_data_ptr<float>() + row * x->stride(0), cos->const_data_ptr<float>() + at,
              sin->const_data_ptr<float>() + at, y.mutable_data_ptr<float>() + row * heads * width,
              heads, x->stride(2), width, half});
      }
      *out = new at::Tensor(std::move(y));
    }
  )
}

// Copies keys and values of one token a row, [rows, heads, 1, width], into the places of the rows in the
// memory of their slots, [rows or more, heads, capacity, width].
int dsr_keep_rows(at::Tensor* keys, at::Tensor* values, at::Tensor* k, at::Tensor* v,
                  const int64_t* places) {
  TRY(keep(*keys, *k, places); keep(*values, *v, places);)
}

}  // extern "C"
