// Kernels of the CPU for a pass of one token a text: products with few rows, and the attention of one
// query to the keys that a text has had.
//
// libtorch's products add in another order for another number of rows. These add the terms of one
// output in one order, whatever the other rows are, so that a text is the same to the bit alone and
// in a batch. Beside few rows a product is bound by the memory of the matrix, which is read once.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "bridge.h"
#include "exponential.h"
#include "lanes.h"
#include "products.h"

namespace {

using namespace dsr;

// Rows of `x`, a matrix and its bias, or null, and the rows of the result.
struct Product {
  const float* x;
  const float* matrix;
  const float* bias;
  float* y;
  int64_t rows, inputs, outputs;
  bool by_inputs;
};

// ---- A matrix [outputs, inputs]: each output is the dot product of two rows in memory.

// Adds the products of `count` inputs from `x` and `w` on.
template <int ROWS, int OUTPUTS>
INLINE void add_products(Lanes (&sums)[ROWS][OUTPUTS], const float* x, const float* w,
                         int64_t inputs, int64_t count) {
  Lanes factors[OUTPUTS];
  for (int o = 0; o < OUTPUTS; ++o) {
    factors[o] = load_part(w + o * inputs, count);
    __builtin_prefetch(w + o * inputs + kAhead / sizeof(float), /*rw=*/0, /*locality=*/2);
  }
  for (int m = 0; m < ROWS; ++m) {
    const Lanes value = load_part(x + m * inputs, count);
    for (int o = 0; o < OUTPUTS; ++o) sums[m][o] += value * factors[o];
  }
}

template <int ROWS, int OUTPUTS>
INLINE void dot_products(const Product& p, int64_t row, int64_t output) {
  const float* x = p.x + row * p.inputs;
  const float* w = p.matrix + output * p.inputs;
  Lanes sums[ROWS][OUTPUTS] = {};
  int64_t k = 0;
  for (; k + kLanes <= p.inputs; k += kLanes) add_products(sums, x + k, w + k, p.inputs, kLanes);
  if (k < p.inputs) add_products(sums, x + k, w + k, p.inputs, p.inputs - k);
  for (int m = 0; m < ROWS; ++m) {
    for (int o = 0; o < OUTPUTS; ++o) {
      const float bias = p.bias ? p.bias[output + o] : 0.0f;
      p.y[(row + m) * p.outputs + output + o] = sum(sums[m][o]) + bias;
    }
  }
}

template <int OUTPUTS>
INLINE void dot_products_of_rows(const Product& p, int64_t output) {
  int64_t row = 0;
  for (; row + 4 <= p.rows; row += 4) dot_products<4, OUTPUTS>(p, row, output);
  switch (p.rows - row) {
    case 3: return dot_products<3, OUTPUTS>(p, row, output);
    case 2: return dot_products<2, OUTPUTS>(p, row, output);
    case 1: return dot_products<1, OUTPUTS>(p, row, output);
  }
}

FOR_EACH_MACHINE void multiply_by_outputs(const Product& p, int64_t from, int64_t to) {
  int64_t output = from;
  for (; output + 4 <= to; output += 4) dot_products_of_rows<4>(p, output);
  for (; output < to; ++output) dot_products_of_rows<1>(p, output);
}

// ---- A matrix [inputs, outputs]: rows of it are added, each with its factor.

// Rows of the matrix that are added before the next ones: few where they are read for few rows of x, and
// more where each part of them serves many.
constexpr int64_t kFewRows = 8;
constexpr int64_t kDepthOfFew = 16;
constexpr int64_t kDepth = 64;

// Adds the inputs from `from` to `to` to the outputs, one after another, wherever parts begin and end. While
// these rows of the matrix are read, as many behind them are asked for: the machine's own prefetcher
// would stop at the end of each part of a row.
template <int ROWS, int VECTORS>
INLINE void add_rows(const Product& p, int64_t row, int64_t output, int64_t from, int64_t to) {
  float* y = p.y + row * p.outputs + output;
  const float* w = p.matrix + from * p.outputs + output;
  const int64_t ahead = (to - from) * p.outputs;
  Lanes sums[ROWS][VECTORS];
  for (int m = 0; m < ROWS; ++m) {
    for (int v = 0; v < VECTORS; ++v) sums[m][v] = load(y + m * p.outputs + v * kLanes);
  }
  for (int64_t k = from; k < to; ++k, w += p.outputs) {
    Lanes values[VECTORS];
    for (int v = 0; v < VECTORS; ++v) {
      values[v] = load(w + v * kLanes);
      __builtin_prefetch(w + ahead + v * kLanes, /*rw=*/0, /*locality=*/2);
    }
    for (int m = 0; m < ROWS; ++m) {
      const float factor = p.x[(row + m) * p.inputs + k];
      for (int v = 0; v < VECTORS; ++v) sums[m][v] += values[v] * factor;
    }
  }
  for (int m = 0; m < ROWS; ++m) {
    for (int v = 0; v < VECTORS; ++v) store(y + m * p.outputs + v * kLanes, sums[m][v]);
  }
}

template <int VECTORS>
INLINE void add_to_rows(const Product& p, int64_t output, int64_t from, int64_t to) {
  int64_t row = 0;
  for (; row + 4 <= p.rows; row += 4) add_rows<4, VECTORS>(p, row, output, from, to);
  switch (p.rows - row) {
    case 3: return add_rows<3, VECTORS>(p, row, output, from, to);
    case 2: return add_rows<2, VECTORS>(p, row, output, from, to);
    case 1: return add_rows<1, VECTORS>(p, row, output, from, to);
  }
}

FOR_EACH_MACHINE void multiply_by_inputs(const Product& p, int64_t first, int64_t last) {
  for (int64_t m = 0; m < p.rows; ++m) {
    float* y = p.y + m * p.outputs;
    std::fill(y + first, y + last, 0.0f);
  }
  const int64_t depth = p.rows <= kFewRows ? kDepthOfFew : kDepth;
  for (int64_t from = 0; from < p.inputs; from += depth) {
    const int64_t to = std::min(from + depth, p.inputs);
    int64_t output = first;
    for (; output + 4 * kLanes <= last; output += 4 * kLanes) add_to_rows<4>(p, output, from, to);
    for (; output + kLanes <= last; output += kLanes) add_to_rows<1>(p, output, from, to);
    for (; output < last; ++output) {
      for (int64_t m = 0; m < p.rows; ++m) {
        float& sum = p.y[m * p.outputs + output];
        for (int64_t k = from; k < to; ++k) {
          sum += p.matrix[k * p.outputs + output] * p.x[m * p.inputs + k];
        }
      }
    }
  }
  // Last, as libtorch's products have it.
  for (int64_t m = 0; p.bias && m < p.rows; ++m) {
    for (int64_t o = first; o < last; ++o) p.y[m * p.outputs + o] += p.bias[o];
  }
}

bool is_plain(const at::Tensor& tensor) {
  return tensor.is_cpu() && tensor.scalar_type() == at::kFloat && tensor.is_contiguous();
}

// ---- Attention.

// One query of each row and head, and what it sees: the first `seen[row]` keys of the row, or of these the
// ranges from `offsets[i]` to `offsets[i + 1]` of the row and head `i`, two numbers each.
template <typename T>
struct Attention {
  const T *query, *keys, *values;
  const float* bias;
  T* out;
  const int64_t* seen;
  const int64_t *offsets, *ranges;
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
    Lanes weight = load(scores + i);
    make_weight(weight, most);
    store(scores + i, weight);
    sums += weight;
  }
  const float whole = sum(sums);
  for (int64_t i = 0; i < padded; i += kLanes) store(scores + i, load(scores + i) / whole);
}

// Ranges of keys, and the weight of each key.
struct Seen {
  const int64_t *first, *last;
  const float* weights;
};

// The sum of the values, which lie `width` apart, each with its weight: of so many vectors, of which the last
// has `count` elements.
template <int VECTORS, typename T>
INLINE void add_values(const Seen& seen, const T* values, int64_t width, int64_t count, T* out) {
  Lanes sums[VECTORS] = {};
  const float* weight = seen.weights;
  for (const int64_t* range = seen.first; range != seen.last; range += 2) {
    for (int64_t i = range[0]; i < range[1]; ++i, ++weight) {
      const T* value = values + i * width;
      for (int v = 0; v < VECTORS; ++v) sums[v] += *weight * load_part(value + v * kLanes, count);
    }
  }
  for (int v = 0; v < VECTORS; ++v) {
    float made[kLanes];
    store(made, sums[v]);
    for (int64_t j = 0; j < count; ++j) out[v * kLanes + j] = static_cast<T>(made[j]);
  }
}

template <typename T>
INLINE void attend_head(const Attention<T>& a, int64_t row, int64_t head, float* scores) {
  const int64_t kv_head = head / (a.heads / a.kv_heads), which = row * a.heads + head;
  const int64_t whole[2] = {0, a.seen[row]};
  const int64_t* first = a.offsets ? a.ranges + 2 * a.offsets[which] : whole;
  const int64_t* last = a.offsets ? a.ranges + 2 * a.offsets[which + 1] : whole + 2;
  const int64_t place = (row * a.kv_heads + kv_head) * a.capacity * a.width;
  const T* query = a.query + which * a.width;
  const float* bias = a.bias ? a.bias + row * a.bias_row + head * a.bias_head : nullptr;
  int64_t count = 0;
  for (const int64_t* range = first; range != last; range += 2) {
    for (int64_t i = range[0]; i < range[1]; ++i) {
      const float score = dot(query, a.keys + place + i * a.width, a.width) * a.scale;
      scores[count++] = bias ? score + bias[i] : score;
    }
  }
  softmax(scores, count, (count + kLanes - 1) / kLanes * kLanes);
  const Seen seen{first, last, scores};
  const T* values = a.values + place;
  T* out = a.out + which * a.width;
  int64_t d = 0;
  for (; d + 4 * kLanes <= a.width; d += 4 * kLanes) {
    add_values<4>(seen, values + d, a.width, kLanes, out + d);
  }
  for (; d < a.width; d += kLanes) {
    add_values<1>(seen, values + d, a.width, std::min(kLanes, a.width - d), out + d);
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
                 const at::Tensor* bias, const int64_t* seen, const int64_t* offsets,
                 const int64_t* ranges, double scale, at::Tensor& out) {
  const int64_t rows = query.size(0), heads = query.size(1);
  const Attention<T> a{
      query.const_data_ptr<T>(), keys.const_data_ptr<T>(), values.const_data_ptr<T>(),
      data(bias), out.mutable_data_ptr<T>(), seen, offsets, ranges, heads,
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

// x @ matrix + bias for rows x, [.., inputs], and each of `count` matrices, each row as it is alone, in
// out[0] and so on; null in out[0] where libtorch's product is to be taken. A matrix is [outputs, inputs]
// or, by_inputs, [inputs, outputs]; a bias may be null.
int dsr_separate_rows(at::Tensor* x, int64_t count, at::Tensor** matrices, at::Tensor** biases,
                      const bool* by_inputs, at::Tensor** out) {
  TRY(
    *out = nullptr;
    bool is_ours = !at::GradMode::is_enabled() && is_plain(*x);
    for (int64_t i = 0; i < count; ++i) {
      is_ours = is_ours && is_plain(*matrices[i]) && (!biases[i] || is_plain(*biases[i]));
    }
    if (is_ours) {
      const int64_t inputs = x->size(-1), rows = x->numel() / std::max<int64_t>(1, inputs);
      std::vector<at::Tensor> made;
      std::vector<Product> products;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t outputs = matrices[i]->size(by_inputs[i] ? 1 : 0);
        made.push_back(outputs_of(*x, outputs));
        products.push_back({x->const_data_ptr<float>(), matrices[i]->const_data_ptr<float>(),
                            data(biases[i]), made.back().mutable_data_ptr<float>(), rows, inputs,
                            outputs, by_inputs[i]});
      }
      in_parts(products, [](const Product& p, int64_t from, int64_t to) {
        (p.by_inputs ? multiply_by_inputs : multiply_by_outputs)(p, from, to);
      });
      give(made, out);
    }
  )
}

// The attention of one query a row, [rows, heads, width], to the first seen[row] of its keys and
// values, [rows or more, kv heads, capacity, width]; bias is float32 [1 or rows, heads, keys or more]
// or null. With `offsets` and `ranges`, or null, each head sees ranges of these keys. Null in *out
// where the formats have no kernel here.
int dsr_attend(at::Tensor* query, at::Tensor* keys, at::Tensor* values, at::Tensor* bias,
               const int64_t* seen, const int64_t* offsets, const int64_t* ranges, double scale,
               at::Tensor** out) {
  TRY(
    *out = nullptr;
    const auto kind = query->scalar_type();
    const bool is_ours = query->is_cpu() && !at::GradMode::is_enabled() &&
                         (kind == at::kFloat || kind == at::kBFloat16);
    if (is_ours) {
      const auto asked = query->contiguous();
      auto made = at::empty_like(asked);
      (kind == at::kFloat ? attend_rows<float> : attend_rows<at::BFloat16>)(
          asked, *keys, *values, bias, seen, offsets, ranges, scale, made);
      *out = new at::Tensor(std::move(made));
    }
  )
}

}  // extern "C"
