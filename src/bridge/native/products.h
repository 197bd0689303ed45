// What products of few rows share.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>

#include "lanes.h"

namespace dsr {

// Bytes of a matrix that are asked for ahead of their use: the machine's own prefetcher does not keep up
// with products of few rows. Into the second cache, as more of its lines may be on their way.
constexpr int64_t kAhead = 8192;

// Splits the outputs among threads, in parts of 64, which no result depends on.
template <typename P, typename Multiply>
void in_parts(const P& p, Multiply multiply) {
  constexpr int64_t kPart = 4 * kLanes, kLeastWork = 1 << 16;
  const int64_t grain = std::max<int64_t>(1, kLeastWork / (kPart * std::max<int64_t>(1, p.inputs)));
  at::parallel_for(0, (p.outputs + kPart - 1) / kPart, grain, [&](int64_t from, int64_t to) {
    multiply(p, from * kPart, std::min(to * kPart, p.outputs));
  });
}

inline const float* data(const at::Tensor* tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

}  // namespace dsr
