// What products of few rows share.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "lanes.h"

namespace dsr {

// Bytes of a matrix that are asked for ahead of their use: the machine's own prefetcher does not keep up
// with products of few rows. Into the second cache, as more of its lines may be on their way.
constexpr int64_t kAhead = 8192;

// Splits the outputs of products with the same rows among threads, sixteen at a time, which no result
// depends on: threads that begin and end once wait less than once for each product.
template <typename P, typename Multiply>
void in_parts(const std::vector<P>& products, Multiply multiply) {
  constexpr int64_t kLeastWork = 1 << 16, part = kLanes;
  const auto parts = [](const P& p) { return (p.outputs + part - 1) / part; };
  int64_t all = 0;
  int64_t inputs = 1;
  for (const P& p : products) {
    all += parts(p);
    inputs = std::max(inputs, p.inputs);
  }
  const int64_t grain = std::max<int64_t>(1, kLeastWork / (part * inputs));
  at::parallel_for(0, all, grain, [&](int64_t from, int64_t to) {
    for (const P& p : products) {
      const int64_t first = std::max<int64_t>(0, from), last = std::min(to, parts(p));
      if (first < last) multiply(p, first * part, std::min(last * part, p.outputs));
      from -= parts(p);
      to -= parts(p);
    }
  });
}

// Memory for the outputs of rows x, [.., inputs].
inline at::Tensor outputs_of(const at::Tensor& x, int64_t outputs) {
  auto size = x.sizes().vec();
  size.back() = outputs;
  return at::empty(size, x.options());
}

// Hands out the tensors, once nothing can fail any more.
inline void give(std::vector<at::Tensor>& made, at::Tensor** out) {
  for (auto& tensor : made) *out++ = new at::Tensor(std::move(tensor));
}

inline const float* data(const at::Tensor* tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

}  // namespace dsr
