// The exponentials of softmax.
#pragma once

#include <cmath>
#include <cstring>

#include "lanes.h"

namespace dsr {

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

// Makes each score its weight beside the score `most`, e to their difference. A score that is hidden, by
// minus infinity, weighs nothing, and what is no number stays none.
INLINE void make_weight(Lanes& score, float most) {
  const Lanes less = score - most;
  Lanes weight = less;
  exponential(weight);
  weight = less == less ? weight : less;
  score = score == -INFINITY ? Lanes{} : weight;
}

}  // namespace dsr
