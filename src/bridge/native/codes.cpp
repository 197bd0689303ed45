// Products of few rows with the codes of quantized matrices [outputs, inputs], which are read as they
// are. As in decode.cpp a row is added up in one order, whatever the other rows are.
//
// Sixteen words of codes are taken apart by shifts, without moving anything from lane to lane: a lane
// then has every fourth input for bytes, or every eighth for half bytes, and the rows are laid out alike
// before.
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
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
std::vector<float> in_order(const at::Tensor& x, int64_t rows, int64_t width) {
  constexpr int64_t kTogether = EACH * kLanes;
  const int64_t inputs = x.size(-1);
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

INLINE Integers next_words(const uint8_t* from, int64_t count) {
  __builtin_prefetch(from + kAhead, /*rw=*/0, /*locality=*/2);
  return words(from, count);
}

// Of how many outputs the codes are read beside each other.
constexpr int64_t kOutputs = 4;

// The part of an output's scale that one byte more is.
constexpr float kStep = 1.0 / 127;

// Bytes are multiplied where they are the highest of a word, this part of the products is theirs.
constexpr float kOfHighest = 1.0 / (1 << 24);

// Adds the lanes up, those of bytes with the step of their output.
template <int ROWS, int OUTPUTS>
INLINE void finish(const Lanes (&sums)[ROWS][OUTPUTS], const CodeProduct& p, int64_t row,
                   int64_t output, bool are_bytes) {
  for (int m = 0; m < ROWS; ++m) {
    for (int o = 0; o < OUTPUTS; ++o) {
      const float all = sum(sums[m][o]) * (are_bytes ? kOfHighest : 1.0f);
      const float step = are_bytes ? p.scales[output + o] * kStep : 1.0f;
      const float bias = p.bias ? p.bias[output + o] : 0.0f;
      // One rounding, however many rows and outputs there are.
      p.y[(row + m) * p.outputs + output + o] = std::fma(all, step, bias);
    }
  }
}

// ---- Bytes from -127 to 127.

// The `byte`-th of each word, times 2^24: a shift and a mask where its own value would need two shifts, of
// which a core makes fewer at once.
INLINE Lanes highest(const Integers& words, int byte) {
  constexpr int32_t kMask = INT32_MIN >> 7;
  const Integers shifted = words << (24 - 8 * byte);
  return __builtin_convertvector(byte == 0 ? shifted : shifted & kMask, Lanes);
}

template <int ROWS, int OUTPUTS>
INLINE void add_bytes(Lanes (&sums)[ROWS][OUTPUTS], const CodeProduct& p, const uint8_t* codes,
                      const float* x, int64_t count) {
  Integers word[OUTPUTS];
  for (int o = 0; o < OUTPUTS; ++o) word[o] = next_words(codes + o * p.inputs, count);
  for (int byte = 0; byte < 4; ++byte) {
    Lanes values[ROWS];
    for (int m = 0; m < ROWS; ++m) values[m] = load(x + m * p.width + byte * kLanes);
    for (int o = 0; o < OUTPUTS; ++o) {
      const Lanes factors = highest(word[o], byte);
      for (int m = 0; m < ROWS; ++m) sums[m][o] += factors * values[m];
    }
  }
}

template <int ROWS, int OUTPUTS>
INLINE void dot_bytes(const CodeProduct& p, int64_t row, int64_t output) {
  const uint8_t* codes = p.codes + output * p.inputs;
  const float* x = p.x + row * p.width;
  Lanes sums[ROWS][OUTPUTS] = {};
  int64_t k = 0;
  for (; k + kBytes <= p.inputs; k += kBytes) add_bytes(sums, p, codes + k, x + k, kBytes);
  if (k < p.inputs) add_bytes(sums, p, codes + k, x + k, p.inputs - k);
  finish(sums, p, row, output, /*are_bytes=*/true);
}

template <int OUTPUTS>
INLINE void dot_bytes_of_rows(const CodeProduct& p, int64_t output) {
  int64_t row = 0;
  for (; row + 4 <= p.rows; row += 4) dot_bytes<4, OUTPUTS>(p, row, output);
  for (; row < p.rows; ++row) dot_bytes<1, OUTPUTS>(p, row, output);
}

FOR_EACH_MACHINE void multiply_bytes(const CodeProduct& p, int64_t from, int64_t to) {
  int64_t output = from;
  for (; output + kOutputs <= to; output += kOutputs) dot_bytes_of_rows<kOutputs>(p, output);
  for (; output < to; ++output) dot_bytes_of_rows<1>(p, output);
}

// ---- NF4: two codes a byte, the first in its high bits, and a scale for each 64 of them.

constexpr int64_t kBlock = 64;

template <int ROWS, int OUTPUTS>
INLINE void add_codes(Lanes (&sums)[ROWS][OUTPUTS], const CodeProduct& p, const Lanes& table,
                      const uint8_t* codes, const Lanes (&scales)[OUTPUTS], const float* x,
                      int64_t count) {
  Integers word[OUTPUTS];
  for (int o = 0; o < OUTPUTS; ++o) word[o] = next_words(codes + o * p.inputs / 2, count);
  Lanes of_blocks[ROWS][OUTPUTS] = {};
  for (int code = 0; code < 8; ++code) {
    const int shift = code / 2 * 8 + (code % 2 ? 0 : 4);
    Lanes values[ROWS];
    for (int m = 0; m < ROWS; ++m) values[m] = load(x + m * p.width + code * kLanes);
    for (int o = 0; o < OUTPUTS; ++o) {
      const Lanes factors = __builtin_shuffle(table, (word[o] >> shift) & 15);
      for (int m = 0; m < ROWS; ++m) of_blocks[m][o] += factors * values[m];
    }
  }
  for (int m = 0; m < ROWS; ++m) {
    for (int o = 0; o < OUTPUTS; ++o) sums[m][o] += of_blocks[m][o] * scales[o];
  }
}

template <int ROWS, int OUTPUTS>
INLINE void dot_codes(const CodeProduct& p, const Lanes& table, int64_t row, int64_t output) {
  const int64_t blocks = p.inputs / kBlock;
  const uint8_t* codes = p.codes + output * p.inputs / 2;
  const float* scales = p.scales + output * blocks;
  const float* x = p.x + row * p.width;
  // Eight lanes have the codes of one block.
  constexpr Lanes kFirst = {1, 1, 1, 1, 1, 1, 1, 1};
  constexpr Lanes kSecond = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
  Lanes sums[ROWS][OUTPUTS] = {}, both[OUTPUTS];
  int64_t block = 0;
  for (; block + 2 <= blocks; block += 2) {
    for (int o = 0; o < OUTPUTS; ++o) {
      const float* of_pair = scales + o * blocks + block;
      both[o] = kFirst * of_pair[0] + kSecond * of_pair[1];
    }
    const int64_t k = block * kBlock;
    add_codes(sums, p, table, codes + k / 2, both, x + k, kBytes);
  }
  if (block < blocks) {
    for (int o = 0; o < OUTPUTS; ++o) both[o] = kFirst * scales[o * blocks + block];
    const int64_t k = block * kBlock;
    add_codes(sums, p, table, codes + k / 2, both, x + k, kBytes / 2);
  }
  finish(sums, p, row, output, /*are_bytes=*/false);
}

template <int OUTPUTS>
INLINE void dot_codes_of_rows(const CodeProduct& p, const Lanes& table, int64_t output) {
  int64_t row = 0;
  for (; row + 4 <= p.rows; row += 4) dot_codes<4, OUTPUTS>(p, table, row, output);
  for (; row < p.rows; ++row) dot_codes<1, OUTPUTS>(p, table, row, output);
}

FOR_EACH_MACHINE void multiply_codes(const CodeProduct& p, int64_t from, int64_t to) {
  const Lanes table = load(p.values);
  int64_t output = from;
  for (; output + kOutputs <= to; output += kOutputs) {
    dot_codes_of_rows<kOutputs>(p, table, output);
  }
  for (; output < to; ++output) dot_codes_of_rows<1>(p, table, output);
}

}  // namespace

extern "C" {

// x @ matrix + bias for rows x, [.., inputs], and each of `count` matrices of codes, in out[0] and so on: of
// bytes with a scale for each output, or, where there are `values` of 16 codes, of NF4 codes with a scale for
// each 64 of them, whose inputs are a multiple of 64. A bias may be null.
int dsr_code_rows(at::Tensor* x, int64_t count, at::Tensor** codes, at::Tensor** scales,
                  at::Tensor** biases, const int64_t* outputs, const float* values,
                  at::Tensor** out) {
  TRY(
    const int64_t inputs = x->size(-1), together = values ? 2 * kBlock : kBytes;
    const int64_t width = (inputs + together - 1) / together * together;
    const int64_t rows = x->numel() / std::max<int64_t>(1, inputs);
    const auto ordered = values ? in_order<8>(*x, rows, width) : in_order<4>(*x, rows, width);
    std::vector<at::Tensor> made;
    std::vector<CodeProduct> products;
    for (int64_t i = 0; i < count; ++i) {
      made.push_back(outputs_of(*x, outputs[i]));
      products.push_back({ordered.data(), static_cast<const uint8_t*>(codes[i]->const_data_ptr()),
                          scales[i]->const_data_ptr<float>(), values, data(biases[i]),
                          made.back().mutable_data_ptr<float>(), rows, inputs, outputs[i], width});
    }
    in_parts(products, values ? multiply_codes : multiply_bytes);
    give(made, out);
  )
}

}  // extern "C"
