// Kernels of the CPU for a pass of one token a text: products with few rows, and the attention of one
// query to the keys that a text has had.
//
// libtorch's products add in another order for another number of rows. These add the terms of one
// output in one order, whatever the other rows are, so that a text is the same to the bit alone and
// in a batch. Beside few rows a product is bound by the memory of the matrix, which is read once.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "bridge.h"
#include "lanes.h"

namespace {

using namespace dsr;

// Rows of `x`, a matrix and its bias, or null, and the rows of the result. Where the matrix is of whole
// numbers each output has a step that it is multiplied by.
template <typename T>
struct Product {
  const float* x;
  const T* matrix;
  const float* steps;
  const float* bias;
  float* y;
  int64_t rows, inputs, outputs;
};

// ---- A matrix [outputs, inputs]: each output is the dot product of two rows in memory.

// Adds the products of `count` inputs from `x` and `w` on.
template <int ROWS, int OUTPUTS, typename T>
INLINE void add_products(Lanes (&sums)[ROWS][OUTPUTS], const float* x, const T* w,
                         int64_t inputs, int64_t count) {
  Lanes factors[OUTPUTS];
  for (int o = 0; o < OUTPUTS; ++o) factors[o] = load_part(w + o * inputs, count);
  for (int m = 0; m < ROWS; ++m) {
    const Lanes value = load_part(x + m * inputs, count);
    for (int o = 0; o < OUTPUTS; ++o) sums[m][o] += value * factors[o];
  }
}

template <int ROWS, int OUTPUTS, typename T>
INLINE void dot_products(const Product<T>& p, int64_t row, int64_t output) {
  const float* x = p.x + row * p.inputs;
  const T* w = p.matrix + output * p.inputs;
  Lanes sums[ROWS][OUTPUTS] = {};
  int64_t k = 0;
  for (; k + kLanes <= p.inputs; k += kLanes) add_products(sums, x + k, w + k, p.inputs, kLanes);
  if (k < p.inputs) add_products(sums, x + k, w + k, p.inputs, p.inputs - k);
  for (int m = 0; m < ROWS; ++m) {
    for (int o = 0; o < OUTPUTS; ++o) {
      const float bias = p.bias ? p.bias[output + o] : 0.0f;
      const float step = p.steps ? p.steps[output + o] : 1.0f;
      p.y[(row + m) * p.outputs + output + o] = sum(sums[m][o]) * step + bias;
    }
  }
}

template <int OUTPUTS, typename T>
INLINE void dot_products_of_rows(const Product<T>& p, int64_t output) {
  int64_t row = 0;
  for (; row + 4 <= p.rows; row += 4) dot_products<4, OUTPUTS>(p, row, output);
  switch (p.rows - row) {
    case 3: return dot_products<3, OUTPUTS>(p, row, output);
    case 2: return dot_products<2, OUTPUTS>(p, row, output);
    case 1: return dot_products<1, OUTPUTS>(p, row, output);
  }
}

// A template has no clones for machines.
#define MULTIPLY_BY_OUTPUTS(T)                                                                   \
  FOR_EACH_MACHINE void multiply_by_outputs(const Product<T>& p, int64_t from, int64_t to) {     \
    int64_t output = from;                                                                       \
    for (; output + 4 <= to; output += 4) dot_products_of_rows<4>(p, output);                    \
    for (; output < to; ++output) dot_products_of_rows<1>(p, output);                            \
  }
MULTIPLY_BY_OUTPUTS(float)
MULTIPLY_BY_OUTPUTS(int8_t)

// ---- A matrix [inputs, outputs]: rows of it are added, each with its factor.

// Inputs that are summed up before they are added to the result: few rows of the matrix are read
// beside each other, and sums of sums round less.
constexpr int64_t kDepth = 64;

template <int ROWS, int VECTORS>
INLINE void add_rows(const Product<float>& p, int64_t row, int64_t output, int64_t from, int64_t to) {
  float* y = p.y + row * p.outputs + output;
  Lanes sums[ROWS][VECTORS] = {};
  for (int64_t k = from; k < to; ++k) {
    const float* w = p.matrix + k * p.outputs + output;
    Lanes values[VECTORS];
    for (int v = 0; v < VECTORS; ++v) values[v] = load(w + v * kLanes);
    for (int m = 0; m < ROWS; ++m) {
      const float factor = p.x[(row + m) * p.inputs + k];
      for (int v = 0; v < VECTORS; ++v) sums[m][v] += values[v] * factor;
    }
  }
  for (int m = 0; m < ROWS; ++m) {
    for (int v = 0; v < VECTORS; ++v) {
      float* to = y + m * p.outputs + v * kLanes;
      store(to, load(to) + sums[m][v]);
    }
  }
}

template <int VECTORS>
INLINE void add_to_rows(const Product<float>& p, int64_t output, int64_t from, int64_t to) {
  int64_t row = 0;
  for (; row + 4 <= p.rows; row += 4) add_rows<4, VECTORS>(p, row, output, from, to);
  switch (p.rows - row) {
    case 3: return add_rows<3, VECTORS>(p, row, output, from, to);
    case 2: return add_rows<2, VECTORS>(p, row, output, from, to);
    case 1: return add_rows<1, VECTORS>(p, row, output, from, to);
  }
}

FOR_EACH_MACHINE void multiply_by_inputs(const Product<float>& p, int64_t first, int64_t last) {
  for (int64_t m = 0; m < p.rows; ++m) {
    for (int64_t o = first; o < last; ++o) p.y[m * p.outputs + o] = p.bias ? p.bias[o] : 0.0f;
  }
  for (int64_t from = 0; from < p.inputs; from += kDepth) {
    const int64_t to = std::min(from + kDepth, p.inputs);
    int64_t output = first;
    for (; output + 4 * kLanes <= last; output += 4 * kLanes) add_to_rows<4>(p, output, from, to);
    for (; output + kLanes <= last; output += kLanes) add_to_rows<1>(p, output, from, to);
    for (; output < last; ++output) {
      for (int64_t m = 0; m < p.rows; ++m) {
        float sum = 0.0f;
        for (int64_t k = from; k < to; ++k) {
          sum += p.matrix[k * p.outputs + output] * p.x[m * p.inputs + k];
        }
        p.y[m * p.outputs + output] += sum;
      }
    }
  }
}

// ---- A matrix [outputs, inputs] of NF4 codes, two a byte with the first in the high bits.

constexpr int64_t kBlock = 64;

// Rows of the even and of the odd inputs, which meet the codes of high and of low bits; a scale for each
// block of 64 codes, which begin with a row.
struct CodeProduct {
  const float *even, *odd;
  const uint8_t* codes;
  const float* scales;
  const float* values;
  const float* bias;
  float* y;
  int64_t rows, inputs, outputs;
};

// The values of sixteen bytes, of their high and of their low bits.
INLINE void look_up(const Lanes& table, const uint8_t* from, Lanes& high, Lanes& low) {
  const Integers codes = widened(reinterpret_cast<const int8_t*>(from));
  high = __builtin_shuffle(table, (codes >> 4) & 15);
  low = __builtin_shuffle(table, codes & 15);
}

template <int ROWS>
INLINE void dot_codes(const CodeProduct& p, const Lanes& table, int64_t row, int64_t output) {
  const uint8_t* codes = p.codes + output * p.inputs / 2;
  const float* scales = p.scales + output * p.inputs / kBlock;
  const int64_t half = p.inputs / 2;
  Lanes sums[ROWS] = {};
  for (int64_t block = 0; block < p.inputs / kBlock; ++block) {
    Lanes of_block[ROWS] = {};
    for (int64_t k = block * kBlock / 2; k < (block + 1) * kBlock / 2; k += kLanes) {
      Lanes high, low;
      look_up(table, codes + k, high, low);
      for (int m = 0; m < ROWS; ++m) {
        const int64_t at = (row + m) * half + k;
        of_block[m] += high * load(p.even + at) + low * load(p.odd + at);
      }
    }
    for (int m = 0; m < ROWS; ++m) sums[m] += of_block[m] * scales[block];
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

// Splits the outputs among threads, in parts of 64, which no result depends on.
template <typename P, typename Multiply>
void in_parts(const P& p, Multiply multiply) {
  constexpr int64_t kPart = 4 * kLanes, kLeastWork = 1 << 16;
  const int64_t grain = std::max<int64_t>(1, kLeastWork / (kPart * std::max<int64_t>(1, p.inputs)));
  at::parallel_for(0, (p.outputs + kPart - 1) / kPart, grain, [&](int64_t from, int64_t to) {
    multiply(p, from * kPart, std::min(to * kPart, p.outputs));
  });
}

const float* data(const at::Tensor* tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

bool is_plain(const at::Tensor& tensor) {
  return tensor.is_cpu() && tensor.scalar_type() == at::kFloat && tensor.is_contiguous();
}

// ---- Attention.

// Makes each lane e to its power; all of them are at most 0, within two units of the last place
// (the polynomial of Cephes' expf).
INLINE void exponential(Lanes& x) {
  constexpr float kLeast = -87.0f, kLog2E = 1.44269504f;
  x = x < kLeast ? Lanes{} + kLeast : x;
  // Rounded to the nearest: the conversion cuts, and x is not positive.
  const Integers power = __builtin_convertvector(x * kLog2E - 0.5f, Integers);
  const Lanes whole = __builtin_convertvector(power, Lanes);
  const Lanes r = x - whole * 0.693359375f - whole * -2.12194440e-4f;
  Lanes y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const Integers bits = (power + 127) << 23;
  Lanes scale;
  std::memcpy(&scale, &bits, sizeof scale);
  x = y * scale;
}

// One query of each row and head, and what it sees: the first `seen[row]` keys of the row.
template <typename T>
struct Attention {
  const T *query, *keys, *values;
  const float* bias;
  T* out;
  const int64_t* seen;
  int64_t heads, kv_heads, capacity, width;
  // Of the bias, which rows may share.
  int64_t bias_row, bias_head;
  float scale;
};

template <typename T>
INLINE float dot(const T* a, const T* b, int64_t width) {
  Lanes sums{};
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) sums += load(a + d) * load(b + d);
  if (d < width) sums += load_part(a + d, width - d) * load_part(b + d, width - d);
  return sum(sums);
}

// Turns scores into weights of sum 1; `padded` is the number of scores, filled up to whole lanes.
INLINE void softmax(float* scores, int64_t count, int64_t padded) {
  const float most = *std::max_element(scores, scores + count);
  std::fill(scores + count, scores + padded, -INFINITY);
  Lanes sums{};
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Lanes score = load(scores + i);
    Lanes weight = score - most;
    exponential(weight);
    weight = score == -INFINITY ? Lanes{} : weight;
    store(scores + i, weight);
    sums += weight;
  }
  const float whole = sum(sums);
  for (int64_t i = 0; i < padded; i += kLanes) store(scores + i, load(scores + i) / whole);
}

template <typename T>
INLINE void attend_head(const Attention<T>& a, int64_t row, int64_t head, float* scores) {
  const int64_t kv_head = head / (a.heads / a.kv_heads), count = a.seen[row];
  const int64_t place = (row * a.kv_heads + kv_head) * a.capacity * a.width;
  const T* query = a.query + (row * a.heads + head) * a.width;
  const float* bias = a.bias ? a.bias + row * a.bias_row + head * a.bias_head : nullptr;
  for (int64_t i = 0; i < count; ++i) {
    const float score = dot(query, a.keys + place + i * a.width, a.width) * a.scale;
    scores[i] = bias ? score + bias[i] : score;
  }
  softmax(scores, count, (count + kLanes - 1) / kLanes * kLanes);
  T* out = a.out + (row * a.heads + head) * a.width;
  for (int64_t d = 0; d < a.width; d += kLanes) {
    const int64_t part = std::min(kLanes, a.width - d);
    const T* values = a.values + place + d;
    Lanes sums{};
    for (int64_t i = 0; i < count; ++i) {
      const T* value = values + i * a.width;
      sums += scores[i] * load_part(value, part);
    }
    float made[kLanes];
    store(made, sums);
    for (int64_t j = 0; j < part; ++j) out[d + j] = static_cast<T>(made[j]);
  }
}

// Heads by number over all rows, from `from` to `to`. A template has no clones for machines.
#define ATTEND(T)                                                                              \
  FOR_EACH_MACHINE void attend(const Attention<T>& a, int64_t from, int64_t to, float* scores) { \
    for (int64_t i = from; i < to; ++i) attend_head(a, i / a.heads, i % a.heads, scores);      \
  }
ATTEND(float)
ATTEND(at::BFloat16)

template <typename T>
void attend_rows(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
                 const at::Tensor* bias, const int64_t* seen, double scale, at::Tensor& out) {
  const int64_t rows = query.size(0), heads = query.size(1);
  const Attention<T> a{
      query.const_data_ptr<T>(), keys.const_data_ptr<T>(), values.const_data_ptr<T>(),
      data(bias), out.mutable_data_ptr<T>(), seen, heads,
      keys.size(1), keys.size(2), query.size(2),
      bias && bias->size(0) > 1 ? bias->stride(0) : 0, bias ? bias->stride(1) : 0,
      static_cast<float>(scale)};
  const int64_t most = *std::max_element(seen, seen + rows);
  const int64_t work = std::max<int64_t>(1, most * a.width);
  at::parallel_for(0, rows * heads, std::max<int64_t>(1, (1 << 14) / work),
                   [&](int64_t from, int64_t to) {
                     std::vector<float> scores(most + kLanes);
                     attend(a, from, to, scores.data());
                   });
}

}  // namespace

extern "C" {

// x @ matrix + bias of a few rows, in *out; null where libtorch's product is to be taken. The matrix
// is [outputs, inputs] or, by_inputs, [inputs, outputs]; bias may be null.
int dsr_few_rows(at::Tensor* x, at::Tensor* matrix, at::Tensor* bias, bool by_inputs,
                 at::Tensor** out) {
  TRY(
    constexpr int64_t kMostRows = 32;
    *out = nullptr;
    const bool is_ours = !at::GradMode::is_enabled() && is_plain(*x) && is_plain(*matrix) &&
                         (!bias || is_plain(*bias)) && x->dim() == 2 && x->size(0) <= kMostRows;
    if (is_ours) {
      const int64_t rows = x->size(0), outputs = matrix->size(by_inputs ? 1 : 0);
      auto y = at::empty({rows, outputs}, x->options());
      const Product<float> p{x->const_data_ptr<float>(), matrix->const_data_ptr<float>(),
                             /*steps=*/nullptr, data(bias), y.mutable_data_ptr<float>(), rows,
                             x->size(1), outputs};
      in_parts(p, [=](const auto& p, int64_t from, int64_t to) {
        by_inputs ? multiply_by_inputs(p, from, to) : multiply_by_outputs(p, from, to);
      });
      *out = new at::Tensor(std::move(y));
    }
  )
}

// The same with a matrix [outputs, inputs] of whole numbers and a step for each output; always made.
int dsr_int8_rows(at::Tensor* x, at::Tensor* codes, at::Tensor* steps, at::Tensor* bias,
                  at::Tensor** out) {
  TRY(
    const int64_t rows = x->size(0), inputs = x->size(1), outputs = steps->size(0);
    auto y = at::empty({rows, outputs}, x->options());
    const Product<int8_t> p{x->const_data_ptr<float>(), codes->const_data_ptr<int8_t>(),
                            steps->const_data_ptr<float>(), data(bias),
                            y.mutable_data_ptr<float>(), rows, inputs, outputs};
    in_parts(p, [](const auto& p, int64_t from, int64_t to) { multiply_by_outputs(p, from, to); });
    *out = new at::Tensor(std::move(y));
  )
}

// The same with NF4 codes, a scale for each 64 of them, and 16 values; inputs is a multiple of 64.
int dsr_nf4_rows(at::Tensor* x, at::Tensor* codes, at::Tensor* scales, const float* values,
                 at::Tensor* bias, int64_t outputs, at::Tensor** out) {
  TRY(
    const int64_t rows = x->size(0), inputs = x->size(1);
    auto y = at::empty({rows, outputs}, x->options());
    const auto pairs = x->view({rows, inputs / 2, 2});
    const auto even = pairs.select(2, 0).contiguous(), odd = pairs.select(2, 1).contiguous();
    const CodeProduct p{even.const_data_ptr<float>(), odd.const_data_ptr<float>(),
                        codes->const_data_ptr<uint8_t>(), scales->const_data_ptr<float>(), values,
                        data(bias), y.mutable_data_ptr<float>(), rows, inputs, outputs};
    in_parts(p, multiply_codes);
    *out = new at::Tensor(std::move(y));
  )
}

// The attention of one query a row, [rows, heads, width], to the first seen[row] of its keys and
// values, [rows or more, kv heads, capacity, width]; bias is float32 [1 or rows, heads, keys or more]
// or null. Null in *out where the formats have no kernel here.
int dsr_attend(at::Tensor* query, at::Tensor* keys, at::Tensor* values, at::Tensor* bias,
               const int64_t* seen, double scale, at::Tensor** out) {
  TRY(
    *out = nullptr;
    const auto kind = query->scalar_type();
    const bool is_ours = query->is_cpu() && !at::GradMode::is_enabled() &&
                         (kind == at::kFloat || kind == at::kBFloat16);
    if (is_ours) {
      const auto asked = query->contiguous();
      auto made = at::empty_like(asked);
      (kind == at::kFloat ? attend_rows<float> : attend_rows<at::BFloat16>)(
          asked, *keys, *values, bias, seen, scale, made);
      *out = new at::Tensor(std::move(made));
    }
  )
}

}  // extern "C"
