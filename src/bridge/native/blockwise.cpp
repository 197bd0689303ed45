// A step of Adam on the CPU over averages in 8 bits, block by block, in one pass over the memory.
//
// Weights, codes and scales are to the bit what libtorch's operations give, so that products and sums
// are rounded one by one but where libtorch rounds them together.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define DSR_MACHINES
#include <immintrin.h>
// GCC's own headers leave what they overwrite uninitialized.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include "rounding.h"

#include "blockwise.h"
#include "bridge.h"
#include "lanes.h"

namespace {

using namespace dsr;

// Averages that share a scale.
constexpr int64_t kBlock = 256;

// A data type of averages.
struct CodeTable {
  // Of each code.
  const float* values;
  // For floats with the same upper 16 bits: the code of the lowest of them, and in the lower half the
  // lower bits of the highest one that has it, inverted below 0.
  const int32_t* cells;
  // The code of 0.
  int32_t zero;
  bool is_signed;
};

// A block's codes and scale.
struct Average {
  uint8_t* codes;
  float* scale;
};

// The averages of a block after an update, whose codes are still to be written.
struct Updated {
  Average first, second;
  float avg_inverse, square_inverse;
  float avgs[kBlock], squares[kBlock];
};

// What is the same for all blocks of a step, as libtorch's kernel has it.
struct Step {
  const CodeTable *first, *second;
  bool is_scaled, is_decoupled;
  float grad_scale, decay, weight_decay, new_share, beta2, new_square_share, correction, eps;
  float step_size;
};

#ifdef DSR_MACHINES
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4")
#define DSR_MACHINE 4
namespace v4 {
#include "blockwise_step.h"
}
#undef DSR_MACHINE
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define DSR_MACHINE 3
namespace v3 {
#include "blockwise_step.h"
}
#undef DSR_MACHINE
#pragma GCC pop_options
#endif
#define DSR_MACHINE 0
namespace any {
#include "blockwise_step.h"
}

struct Kernel {
  decltype(&any::step_block) step_block;
  decltype(&any::encode_block) encode_block;
};

// The best that this machine can run.
Kernel kernel() {
#ifdef DSR_MACHINES
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return {v4::step_block, v4::encode_block};
  if (__builtin_cpu_supports("x86-64-v3")) return {v3::step_block, v3::encode_block};
#endif
  return {any::step_block, any::encode_block};
}

// Float32 as bfloat16, up or down by the random bits of src/optim/state.rs, which are a hash of `place`
// and the seed.
FOR_EACH_MACHINE void round_randomly(const float* from, at::BFloat16* to, int64_t count,
                                     uint32_t place, uint32_t seed) {
  constexpr uint32_t kGoldenRatio = 0x9e3779b9;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t x = (place + static_cast<uint32_t>(i)) * kGoldenRatio + seed, bits;
    x = (x ^ x >> 16) * 0x7feb352d;
    x = (x ^ x >> 15) * 0x846ca68b;
    x ^= x >> 16;
    std::memcpy(&bits, from + i, sizeof bits);
    to[i].x = static_cast<uint16_t>((bits + (x & 0xffff)) >> 16);
  }
}

template <typename T>
void widen(const void* from, float* to, int64_t first, int64_t count) {
  const T* values = static_cast<const T*>(from) + first;
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(values[i]);
}

// A flat tensor of float32, bfloat16 or float16.
struct Flat {
  void* data;
  at::ScalarType kind;

  // Whether a block can be used where it lies.
  bool is_plain(int64_t count) const { return kind == at::kFloat && count == kBlock; }

  float* floats(int64_t first) const { return static_cast<float*>(data) + first; }

  // The block from `first` on, in place or in `block`, filled up with zeros.
  float* load(int64_t first, int64_t count, float* block) const {
    if (is_plain(count)) return floats(first);
    std::fill(block + count, block + kBlock, 0.0f);
    if (kind == at::kFloat) std::copy_n(floats(first), count, block);
    if (kind == at::kBFloat16) widen<at::BFloat16>(data, block, first, count);
    if (kind == at::kHalf) widen<at::Half>(data, block, first, count);
    return block;
  }

  // Keeps a block of what load gave.
  void store(const float* block, int64_t first, int64_t count, uint32_t place, uint32_t seed) const {
    if (is_plain(count)) return;
    if (kind == at::kFloat) {
      std::copy_n(block, count, floats(first));
    } else {
      auto* to = static_cast<at::BFloat16*>(data) + first;
      round_randomly(block, to, count, place + static_cast<uint32_t>(first), seed);
    }
  }
};

CodeTable table_of(const DsrCodeTable& table) {
  return {table.values->const_data_ptr<float>(), table.cells->const_data_ptr<int32_t>(), table.zero,
          table.is_signed};
}

// The codes of an average from a block on, in place or in `block`, filled up.
Average average_of(const DsrAverage& average, const CodeTable& table, int64_t index, int64_t count,
                   uint8_t* block) {
  uint8_t* codes = average.codes->mutable_data_ptr<uint8_t>() + index * kBlock;
  float* scale = average.scales->mutable_data_ptr<float>() + index;
  if (count == kBlock) return {codes, scale};
  std::copy_n(codes, count, block);
  std::fill(block + count, block + kBlock, static_cast<uint8_t>(table.zero));
  return {block, scale};
}

// Keeps the codes of what average_of gave.
void keep(const DsrAverage& average, const Average& block, int64_t index, int64_t count) {
  if (count == kBlock) return;
  std::copy_n(block.codes, count, average.codes->mutable_data_ptr<uint8_t>() + index * kBlock);
}

Step step_of(const DsrAdam& adam, const CodeTable& first, const CodeTable& second,
             at::Tensor* grad_scale) {
  const double correction1 = 1 - std::pow(adam.beta1, adam.step);
  const double correction2 = 1 - std::pow(adam.beta2, adam.step);
  const auto single = [](double value) { return static_cast<float>(value); };
  return {&first,
          &second,
          grad_scale != nullptr,
          adam.decoupled,
          grad_scale ? grad_scale->item<float>() : 1.0f,
          single(1 - adam.lr * adam.weight_decay),
          single(adam.weight_decay),
          single(1 - adam.beta1),
          single(adam.beta2),
          single(1 - adam.beta2),
          single(std::sqrt(correction2)),
          single(adam.eps),
          single(-(adam.lr / correction1))};
}

}  // namespace

extern "C" {

// One step on a slice whose averages are in 8 bits: the weights are float32, or bfloat16 that is rounded
// randomly by `seed` and the place of its first element in the unit; the gradient is float32, bfloat16
// or float16, and is divided by grad_scale, which may be null.
int dsr_blockwise_adam(at::Tensor* param, at::Tensor* grad, const DsrAverage* averages,
                       const DsrCodeTable* tables, const DsrAdam* adam, at::Tensor* grad_scale,
                       uint32_t place, uint32_t seed) {
  TRY(
    const CodeTable first = table_of(tables[0]), second = table_of(tables[1]);
    const Step step = step_of(*adam, first, second, grad_scale);
    const Flat weights{param->mutable_data_ptr(), param->scalar_type()};
    const Flat gradient{grad->mutable_data_ptr(), grad->scalar_type()};
    const Kernel machine = kernel();
    const int64_t numel = param->numel();
    const int64_t blocks = (numel + kBlock - 1) / kBlock;
    at::parallel_for(0, blocks, /*grain_size=*/64, [&](int64_t from, int64_t to) {
      float param_block[kBlock], grad_block[kBlock];
      uint8_t first_block[kBlock], second_block[kBlock];
      Updated updated[2];
      int64_t count = kBlock;
      for (int64_t index = from; index < to; ++index) {
        const int64_t at = index * kBlock;
        // The last one alone can be short.
        count = std::min(kBlock, numel - at);
        Updated &block = updated[index % 2], &before = updated[(index + 1) % 2];
        block.first = average_of(averages[0], first, index, count, first_block);
        block.second = average_of(averages[1], second, index, count, second_block);
        float* p = weights.load(at, count, param_block);
        const float* g = gradient.load(at, count, grad_block);
        machine.step_block(step, p, g, block, index > from ? &before : nullptr);
        weights.store(p, at, count, place, seed);
      }
      if (from < to) {
        const Updated& last = updated[(to - 1) % 2];
        machine.encode_block(step, last);
        keep(averages[0], last.first, to - 1, count);
        keep(averages[1], last.second, to - 1, count);
      }
    });
  )
}
}
