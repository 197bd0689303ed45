// Products of few rows with the codes of quantized matrices [outputs, inputs], which are read as they
// are. As in decode.cpp a row is added up in one order, whatever the other rows are.
//
// Sixteen words of codes are taken apart by shifts, without moving anything from lane to lane: a lane
// then has every fourth input for bytes, or every eighth for half bytes, and the rows are laid out alike
// before.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "bridge.h"
#include "lanes.h"
#include "products.h"

namespace {

using namespace dsr;

// Bytes of codes that are read at once.
constexpr int64_t kBytes = 64;

// Rows in the order of the codes, `width` elements each, and the codes of a matrix.
struct CodeProduct {
  const float* x;
  const uint8_t* codes;
  // A step for each output, or a scale for each block of NF4.
  const float* scales;
  // Of the NF4 codes.
  const float* values;
  const float* bias;
  float* y;
  int64_t rows, inputs, outputs, width;
};

// Rows in the order in which the codes of a word, `EACH` of them, meet them, filled up with zeros.
template <int64_t EACH>
std::vector<float> in_order(const at::Tensor& x, int64_t width) {
  constexpr int64_t kTogether = EACH * kLanes;
  const int64_t rows = x.size(0), inputs = x.size(1);
  std::vector<float> ordered(rows * width);
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = x.const_data_ptr<float>() + row * inputs;
    float* to = ordered.data() + row * width;
    for (int64_t first = 0; first < inputs; first += kTogether) {
      const int64_t count = std::min(kTogether, inputs - first);
      for (int64_t k = 0; k < count; ++k) to[first + k % EACH * kLanes + k / EACH] = from[first + k];
    }
  }
  return ordered;
}

// Sixteen words, of which `count` bytes are there, and zeros.
INLINE Integers words(const uint8_t* from, int64_t count) {
  Integers made{};
  if (count >= kBytes) {
    std::memcpy(&made, from, kBytes);
  } else {
    uint8_t part[kBytes] = {};
    std::memcpy(part, from, count);
    std::memcpy(&made, part, kBytes);
  }
  return made;
}

// ---- Bytes from -127 to 127.

template <int ROWS>
INLINE void add_bytes(Lanes (&sums)[ROWS], const CodeProduct& p, const Integers& word,
                      int64_t row, int64_t k) {
  const Lanes factors[4] = {__builtin_convertvector((word << 24) >> 24, Lanes),
                            __builtin_convertvector((word << 16) >> 24, Lanes),
                            __builtin_convertvector((word << 8) >> 24, Lanes),
                            __builtin_convertvector(word >> 24, Lanes)};
  for (int m = 0; m < ROWS; ++m) {
    const float* x = p.x + (row + m) * p.width + k;
    sums[m] += factors[0] * load(x) + factors[1] * load(x + kLanes);
    sums[m] += factors[2] * load(x + 2 * kLanes) + factors[3] * load(x + 3 * kLanes);
  }
}

template <int ROWS>
INLINE void dot_bytes(const CodeProduct& p, int64_t row, int64_t output) {
  const uint8_t* codes = p.codes + output * p.inputs;
  Lanes sums[ROWS] = {};
  int64_t k = 0;
  for (; k + kBytes <= p.inputs; k += kBytes) add_bytes(sums, p, words(codes + k, kBytes), row, k);
  if (k < p.inputs) add_bytes(sums, p, words(codes + k, p.inputs - k), row, k);
  const float bias = p.bias ? p.bias[output] : 0.0f;
  for (int m = 0; m < ROWS; ++m) {
    p.y[(row + m) * p.outputs + output] = sum(sums[m]) * p.scales[output] + bias;
  }
}

FOR_EACH_MACHINE void multiply_bytes(const CodeProduct& p, int64_t from, int64_t to) {
  for (int64_t output = from; output < to; ++output) {
    int64_t row = 0;
    for (; row + 4 <= p.rows; row += 4) dot_bytes<4>(p, row, output);
    for (; row < p.rows; ++row) dot_bytes<1>(p, row, output);
  }
}

// ---- NF4: two codes a byte, the first in its high bits, and a scale for each 64 of them.

constexpr int64_t kBlock = 64;

template <int ROWS>
INLINE void add_codes(Lanes (&sums)[ROWS], const CodeProduct& p, const Lanes& table,
                      const Integers& word, const Lanes& scales, int64_t row, int64_t k) {
  Lanes of_blocks[ROWS] = {};
  for (int code = 0; code < 8; ++code) {
    const int shift = code / 2 * 8 + (code % 2 ? 0 : 4);
    const Lanes factors = __builtin_shuffle(table, (word >> shift) & 15);
    for (int m = 0; m < ROWS; ++m) {
      of_blocks[m] += factors * load(p.x + (row + m) * p.width + k + code * kLanes);
    }
  }
  for (int m = 0; m < ROWS; ++m) sums[m] += of_blocks[m] * scales;
}

template <int ROWS>
INLINE void dot_codes(const CodeProduct& p, const Lanes& table, int64_t row, int64_t output) {
  const uint8_t* codes = p.codes + output * p.inputs / 2;
  const float* scales = p.scales + output * p.inputs / kBlock;
  // Eight lanes have the codes of one block.
  constexpr Lanes kFirst = {1, 1, 1, 1, 1, 1, 1, 1};
  constexpr Lanes kSecond = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  Lanes sums[ROWS] = {};
  int64_t k = 0;
  for (; k + 2 * kBlock <= p.inputs; k += 2 * kBlock, scales += 2) {
    const Lanes both = kFirst * scales[0] + kSecond * scales[1];
    add_codes(sums, p, table, words(codes + k / 2, kBytes), both, row, k);
  }
  if (k < p.inputs) {
    add_codes(sums, p, table, words(codes + k / 2, kBytes / 2), kFirst * scales[0], row, k);
  }
  const float bias = p.bias ? p.bias[output] : 0.0f;
  for (int m = 0; m < ROWS; ++m) p.y[(row + m) * p.outputs + output] = sum(sums[m]) + bias;
}

FOR_EACH_MACHINE void multiply_codes(const CodeProduct& p, int64_t from, int64_t to) {
  const Lanes table = load(p.values);
  for (int64_t output = from; output < to; ++output) {
    int64_t row = 0;
    for (; row + 4 <= p.rows; row += 4) dot_codes<4>(p, table, row, output);
    for (; row < p.rows; ++row) dot_codes<1>(p, table, row, output);
  }
}

}  // namespace

extern "C" {

// x @ matrix + bias of a few rows, with a matrix of bytes and a step for each output, in *out; bias may
// be null.
int dsr_int8_rows(at::Tensor* x, at::Tensor* codes, at::Tensor* steps, at::Tensor* bias,
                  at::Tensor** out) {
  TRY(
    const int64_t rows = x->size(0), inputs = x->size(1), outputs = steps->size(0);
    const int64_t width = (inputs + kBytes - 1) / kBytes * kBytes;
    auto y = at::empty({rows, outputs}, x->options());
    const auto ordered = in_order<4>(*x, width);
    const CodeProduct p{ordered.data(), static_cast<const uint8_t*>(codes->const_data_ptr()),
                        steps->const_data_ptr<float>(), /*values=*/nullptr, data(bias),
                        y.mutable_data_ptr<float>(), rows, inputs, outputs, width};
    in_parts(p, multiply_bytes);
    *out = new at::Tensor(std::move(y));
  )
}

// The same with NF4 codes, a scale for each 64 of them, and 16 values; inputs is a multiple of 64.
int dsr_nf4_rows(at::Tensor* x, at::Tensor* codes, at::Tensor* scales, const float* values,
                 at::Tensor* bias, int64_t outputs, at::Tensor** out) {
  TRY(
    const int64_t rows = x->size(0), inputs = x->size(1);
    const int64_t width = (inputs + 2 * kBlock - 1) / (2 * kBlock) * 2 * kBlock;
    auto y = at::empty({rows, outputs}, x->options());
    const auto ordered = in_order<8>(*x, width);
    const CodeProduct p{ordered.data(), codes->const_data_ptr<uint8_t>(),
                        scales->const_data_ptr<float>(), values, data(bias),
                        y.mutable_data_ptr<float>(), rows, inputs, outputs, width};
    in_parts(p, multiply_codes);
    *out = new at::Tensor(std::move(y));
  )
}

}  // extern "C"
