// Kernels of the CPU for quantized weights.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>

#include "bridge.h"

namespace {

constexpr int64_t kBlock = 64;
// Outputs that are turned together where a matrix lies by its inputs, so that lines are written whole.
constexpr int64_t kTurned = 16;

// Each block has 16 values, which are made once and looked up. As in bitsandbytes the product is in
// float and rounded afterwards.
template <typename T>
void decode_block(const uint8_t* bytes, float scale, const float* values, T* out, int64_t count) {
  T scaled[16];
  for (int code = 0; code < 16; ++code) scaled[code] = static_cast<T>(values[code] * scale);
  for (int64_t i = 0; i + 1 < count; i += 2) {
    out[i] = scaled[bytes[i / 2] >> 4];
    out[i + 1] = scaled[bytes[i / 2] & 15];
  }
  if (count % 2) out[count - 1] = scaled[bytes[count / 2] >> 4];
}

// Writes a matrix [outputs, inputs] in the order [inputs, outputs]; decode(output, first, to, count)
// gives `count` values of an output from the input `first` on.
template <typename T, typename Decode>
void turned(T* out, int64_t outputs, int64_t inputs, const Decode& decode) {
  const int64_t groups = (outputs + kTurned - 1) / kTurned;
  at::parallel_for(0, groups, /*grain_size=*/1, [&](int64_t begin, int64_t end) {
    T part[kTurned][kBlock];
    for (int64_t group = begin; group < end; ++group) {
      const int64_t from = group * kTurned, rows = std::min(kTurned, outputs - from);
      for (int64_t first = 0; first < inputs; first += kBlock) {
        const int64_t count = std::min(kBlock, inputs - first);
        for (int64_t row = 0; row < rows; ++row) decode(from + row, first, part[row], count);
        for (int64_t i = 0; i < count; ++i) {
          T* to = out + (first + i) * outputs + from;
          for (int64_t row = 0; row < rows; ++row) to[row] = part[row][i];
        }
      }
    }
  });
}

template <typename T>
void nf4(const uint8_t* codes, const float* scales, const float* values, T* out, int64_t outputs,
         int64_t inputs, bool by_inputs) {
  if (by_inputs) {
    return turned(out, outputs, inputs, [&](int64_t output, int64_t first, T* to, int64_t count) {
      const int64_t at = output * inputs + first;
      decode_block(codes + at / 2, scales[at / kBlock], values, to, count);
    });
  }
  const int64_t numel = outputs * inputs, blocks = (numel + kBlock - 1) / kBlock;
  at::parallel_for(0, blocks, /*grain_size=*/1024, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock;
      decode_block(codes + first / 2, scales[block], values, out + first,
                   std::min(kBlock, numel - first));
    }
  });
}

template <typename T>
void int8(const int8_t* codes, const float* steps, T* out, int64_t outputs, int64_t inputs,
          bool by_inputs) {
  const auto decode = [&](int64_t output, int64_t first, T* to, int64_t count) {
    const int8_t* from = codes + output * inputs + first;
    const float step = steps[output];
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(static_cast<float>(from[i]) * step);
  };
  if (by_inputs) return turned(out, outputs, inputs, decode);
  at::parallel_for(0, outputs, /*grain_size=*/16, [&](int64_t begin, int64_t end) {
    for (int64_t output = begin; output < end; ++output) {
      decode(output, 0, out + output * inputs, inputs);
    }
  });
}

}  // namespace

extern "C" {

// The values of the NF4 codes of a matrix [outputs, inputs], two a byte with the first in the high
// bits, with a float scale for each 64; `values` has 16 numbers. `out` has a storage of its size, in the
// order [inputs, outputs] where by_inputs is true; inputs must be a multiple of 64 then.
int dsr_nf4_decode(at::Tensor* codes, at::Tensor* scales, const float* values, at::Tensor* out,
                   int64_t outputs, int64_t inputs, bool by_inputs) {
  TRY(
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kBFloat16, at::kHalf, out->scalar_type(), "nf4_decode", [&] {
          nf4(codes->const_data_ptr<uint8_t>(), scales->const_data_ptr<float>(), values,
              static_cast<scalar_t*>(out->mutable_data_ptr()), outputs, inputs, by_inputs);
        });
  )
}

// The same of int8 codes with a float step for each output.
int dsr_int8_decode(at::Tensor* codes, at::Tensor* steps, at::Tensor* out, int64_t outputs,
                    int64_t inputs, bool by_inputs) {
  TRY(
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kBFloat16, at::kHalf, out->scalar_type(), "int8_decode", [&] {
          int8(codes->const_data_ptr<int8_t>(), steps->const_data_ptr<float>(),
               static_cast<scalar_t*>(out->mutable_data_ptr()), outputs, inputs, by_inputs);
        });
  )
}
}
