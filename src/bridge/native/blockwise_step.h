// A step of Adam on one block, compiled for one kind of machine: blockwise.cpp includes this file once
// for each, in a namespace of its own. DSR_MACHINE is 4 for x86-64-v4, 3 for x86-64-v3 and 0 for any.
// The kind decides how wide a vector is and how numbers are looked up in a table, which no vector type
// of the compiler's can.

#if DSR_MACHINE == 4
constexpr int64_t kWidth = 16;
#elif DSR_MACHINE == 3
constexpr int64_t kWidth = 8;
#else
constexpr int64_t kWidth = 4;
#endif
using Floats = float __attribute__((vector_size(4 * kWidth)));
using Integers = int32_t __attribute__((vector_size(4 * kWidth)));
using Bytes = uint8_t __attribute__((vector_size(kWidth)));

template <typename To>
INLINE To read(const void* from) {
  To to;
  std::memcpy(&to, from, sizeof to);
  return to;
}

INLINE void write(const Floats& from, float* to) { std::memcpy(to, &from, sizeof from); }

INLINE Floats lookup(const float* table, const Integers& at) {
#if DSR_MACHINE == 4
  return (Floats)_mm512_i32gather_ps((__m512i)at, table, 4);
#elif DSR_MACHINE == 3
  return (Floats)_mm256_i32gather_ps(table, (__m256i)at, 4);
#else
  Floats found;
  for (int64_t i = 0; i < kWidth; ++i) found[i] = table[at[i]];
  return found;
#endif
}

INLINE Integers lookup(const int32_t* table, const Integers& at) {
  const Floats found = lookup(reinterpret_cast<const float*>(table), at);
  return read<Integers>(&found);
}

// a * b + c, rounded once where the machine can, as in libtorch.
INLINE Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
#if DSR_MACHINE == 4
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif DSR_MACHINE == 3
  return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

INLINE Floats square_root(const Floats& x) {
#if DSR_MACHINE == 4
  return (Floats)_mm512_sqrt_ps((__m512)x);
#elif DSR_MACHINE == 3
  return (Floats)_mm256_sqrt_ps((__m256)x);
#else
  Floats made;
  for (int64_t i = 0; i < kWidth; ++i) made[i] = std::sqrt(x[i]);
  return made;
#endif
}

INLINE Floats decode(const CodeTable& table, const uint8_t* codes, float scale) {
  const Integers numbers = __builtin_convertvector(read<Bytes>(codes), Integers);
  return lookup(table.values, numbers) * scale;
}

// The larger magnitudes, as bits: they are ordered as their numbers are, with what is no number last.
INLINE void raise(Integers& most, const Floats& x) {
  const Integers bits = read<Integers>(&x) & 0x7fffffff;
  most = bits > most ? bits : most;
}

INLINE float largest(const Integers& most) {
  int32_t bits = 0;
  for (int64_t i = 0; i < kWidth; ++i) bits = std::max(bits, most[i]);
  return read<float>(&bits);
}

// Writes codes of averages, one vector of them, which `inverse` brings between -1 and 1.
INLINE void encode(const CodeTable& table, const float* values, float inverse, uint8_t* codes) {
  const Floats value = read<Floats>(values), unit = value * inverse;
  const Floats above = unit < -1.0f ? Floats{} - 1.0f : unit;
  const Floats scaled = above > 1.0f ? Floats{} + 1.0f : above;
  const Integers bits = read<Integers>(&scaled);
  const Integers cell = lookup(table.cells, (bits >> 16) & 0xffff);
  // A comparison that holds is -1. Among numbers below 0 those with lower bits are the larger ones.
  Integers code = (cell >> 16) - (((bits ^ (bits >> 31)) & 0xffff) > (cell & 0xffff));
  if (table.is_signed) code += (value < 0.0f) & (code == table.zero);
  const Bytes bytes = __builtin_convertvector(code, Bytes);
  std::memcpy(codes, &bytes, sizeof bytes);
}

INLINE void encode(const Step& s, const Updated& block, int64_t i) {
  encode(*s.first, block.avgs + i, block.avg_inverse, block.first.codes + i);
  encode(*s.second, block.squares + i, block.square_inverse, block.second.codes + i);
}

// Writes the codes of a block.
void encode_block(const Step& s, const Updated& block) {
  for (int64_t i = 0; i < kBlock; i += kWidth) encode(s, block, i);
}

// Updates a block but for its codes, and writes those of the block before, which may be null: the
// machine looks codes up while it divides. The formula is that of libtorch's fused kernel, in its order
// and with its roundings.
void step_block(const Step& s, float* param, const float* grad, Updated& block,
                const Updated* before) {
  const float first_scale = *block.first.scale, second_scale = *block.second.scale;
  Integers most_avg{}, most_square{};
  for (int64_t i = 0; i < kBlock; i += kWidth) {
    Floats g = read<Floats>(grad + i), p = read<Floats>(param + i);
    if (s.is_scaled) g = g / s.grad_scale;
    if (s.is_decoupled) {
      p = p * s.decay;
    } else if (s.weight_decay != 0.0f) {
      g = multiply_add(p, Floats{} + s.weight_decay, g);
    }
    const Floats old_avg = decode(*s.first, block.first.codes + i, first_scale);
    const Floats old_square = decode(*s.second, block.second.codes + i, second_scale);
    // lerp, which goes from the nearer end.
    const Floats avg = s.new_share < 0.5f
                           ? multiply_add(Floats{} + s.new_share, g - old_avg, old_avg)
                           : multiply_add(Floats{} + (s.new_share - 1.0f), g - old_avg, g);
    const Floats square = multiply_add(g * s.new_square_share, g, old_square * s.beta2);
    const Floats divisor = square_root(square) / s.correction + s.eps;
    write(p + avg * s.step_size / divisor, param + i);
    write(avg, block.avgs + i);
    write(square, block.squares + i);
    raise(most_avg, avg);
    raise(most_square, square);
    if (before) encode(s, *before, i);
  }
  *block.first.scale = largest(most_avg);
  *block.second.scale = largest(most_square);
  const auto inverse_of = [](float scale) { return 1.0f / (scale < 1e-38f ? 1e-38f : scale); };
  block.avg_inverse = inverse_of(*block.first.scale);
  block.square_inverse = inverse_of(*block.second.scale);
}
