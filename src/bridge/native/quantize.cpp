// Kernels of the CPU for quantized weights. Codes are to the bit what libtorch's operations give, so that
// products and sums are rounded one by one.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>

#include "rounding.h"

#include "bridge.h"
#include "lanes.h"

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

// ---- The way to codes.

// The largest magnitude, or no number where one is none: as bits, which are ordered alike.
INLINE float largest(const float* values, int64_t count) {
  int32_t most = 0;
  for (int64_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, values + i, sizeof bits);
    most = std::max(most, bits & 0x7fffffff);
  }
  float scale;
  std::memcpy(&scale, &most, sizeof scale);
  return scale;
}

INLINE float inverse_of(float scale) { return 1.0f / (scale < 1e-38f ? 1e-38f : scale); }

// A code is the number of bounds that are below the value.
INLINE void nf4_encode_block(const float* values, const float* bounds, uint8_t* bytes, float* scale) {
  *scale = largest(values, kBlock);
  const float inverse = inverse_of(*scale);
  int32_t codes[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) {
    const float value = values[i] * inverse;
    int32_t code = 0;
    for (int64_t k = 0; k < 15; ++k) code += value > bounds[k];
    codes[i] = code;
  }
  for (int64_t i = 0; i < kBlock / 2; ++i) {
    bytes[i] = static_cast<uint8_t>(codes[2 * i] << 4 | codes[2 * i + 1]);
  }
}

FOR_EACH_MACHINE void nf4_encode_blocks(const float* values, const float* bounds, uint8_t* codes,
                                        float* scales, int64_t numel, int64_t from, int64_t to) {
  for (int64_t block = from; block < to; ++block) {
    const int64_t first = block * kBlock, count = std::min(kBlock, numel - first);
    if (count == kBlock) {
      nf4_encode_block(values + first, bounds, codes + first / 2, scales + block);
      continue;
    }
    float filled[kBlock] = {};
    uint8_t bytes[kBlock / 2];
    std::copy_n(values + first, count, filled);
    nf4_encode_block(filled, bounds, bytes, scales + block);
    std::copy_n(bytes, (count + 1) / 2, codes + first / 2);
  }
}

FOR_EACH_MACHINE void int8_encode_rows(const float* values, int8_t* codes, float* scales,
                                       int64_t inputs, int64_t from, int64_t to) {
  // Beside so large a number there are no halves, so that it rounds to the nearest whole one, and
  // to the even one of two.
  constexpr float kMost = 127.0f, kRounding = 12582912.0f;
  for (int64_t row = from; row < to; ++row) {
    const float* value = values + row * inputs;
    const float scale = scales[row] = largest(value, inputs), factor = inverse_of(scale) * kMost;
    for (int64_t i = 0; i < inputs; ++i) {
      const float whole = value[i] * factor + kRounding - kRounding;
      const float below = whole < kMost ? whole : kMost, within = below > -kMost ? below : -kMost;
      // In a row of zeros the factor is infinite; a row with what is no number has a scale that is none.
      codes[row * inputs + i] = static_cast<int8_t>(whole == whole ? within : 0.0f);
    }
  }
}

}  // namespace

extern "C" {

// The NF4 codes of float values in their order in memory, two a byte, and a scale for each 64;
// `bounds` has the 15 numbers between the codes.
int dsr_nf4_encode(at::Tensor* values, const float* bounds, at::Tensor* codes, at::Tensor* scales) {
  TRY(
    const int64_t numel = values->numel(), blocks = (numel + kBlock - 1) / kBlock;
    const auto* from = values->const_data_ptr<float>();
    auto* to = codes->mutable_data_ptr<uint8_t>();
    auto* factors = scales->mutable_data_ptr<float>();
    at::parallel_for(0, blocks, /*grain_size=*/256, [&](int64_t begin, int64_t end) {
      nf4_encode_blocks(from, bounds, to, factors, numel, begin, end);
    });
  )
}

// The int8 codes of a float matrix [outputs, inputs], and a scale for each output.
int dsr_int8_encode(at::Tensor* values, at::Tensor* codes, at::Tensor* scales) {
  TRY(
    const int64_t outputs = values->size(0), inputs = values->size(1);
    const auto* from = values->const_data_ptr<float>();
    auto* to = static_cast<int8_t*>(codes->mutable_data_ptr());
    auto* factors = scales->mutable_data_ptr<float>();
    const int64_t grain = std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, inputs));
    at::parallel_for(0, outputs, grain, [&](int64_t begin, int64_t end) {
      int8_encode_rows(from, to, factors, inputs, begin, end);
    });
  )
}

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
