// Vectors of sixteen floats, and functions that are compiled for several machines.
//
// A file of kernels includes it within its unnamed namespace's reach: everything here is inlined.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <cstring>

namespace dsr {

// Sixteen floats: one register of AVX-512, two of AVX2, four of the least machine.
using Lanes = float __attribute__((vector_size(64)));
using Integers = int32_t __attribute__((vector_size(64)));
constexpr int64_t kLanes = 16;

// A function that is compiled for each of these machines; the program takes the best that it can run.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_MACHINE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_MACHINE
#endif
// What it calls must become a part of it, or would be compiled for the least machine alone. Vectors
// are then never handed from function to function, which GCC warns of.
#define INLINE __attribute__((always_inline)) inline
#pragma GCC diagnostic ignored "-Wpsabi"

// The same anywhere in memory.
using Unaligned = float __attribute__((vector_size(64), aligned(4), may_alias));

INLINE Lanes load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }

// bfloat16 is the upper half of a float.
INLINE Lanes load(const at::BFloat16* from) {
  using Halves = uint16_t __attribute__((vector_size(32)));
  using Wide = uint32_t __attribute__((vector_size(64)));
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  const Wide wide = __builtin_convertvector(halves, Wide) << 16;
  Lanes lanes;
  std::memcpy(&lanes, &wide, sizeof lanes);
  return lanes;
}

// The first `count` elements, and zeros; whole lanes where the caller says so.
template <typename T>
INLINE Lanes load_part(const T* from, int64_t count) {
  if (count == kLanes) return load(from);
  T part[kLanes] = {};
  std::memcpy(part, from, count * sizeof(T));
  return load(part);
}

INLINE void store(float* to, const Lanes& lanes) { *reinterpret_cast<Unaligned*>(to) = lanes; }

// Halves are added to each other until one lane is left.
INLINE float sum(const Lanes& lanes) {
  using Half = float __attribute__((vector_size(32)));
  using Quarter = float __attribute__((vector_size(16)));
  const Half half = __builtin_shufflevector(lanes, lanes, 0, 1, 2, 3, 4, 5, 6, 7) +
                    __builtin_shufflevector(lanes, lanes, 8, 9, 10, 11, 12, 13, 14, 15);
  const Quarter quarter = __builtin_shufflevector(half, half, 0, 1, 2, 3) +
                          __builtin_shufflevector(half, half, 4, 5, 6, 7);
  const Quarter two = quarter + __builtin_shufflevector(quarter, quarter, 2, 3, 2, 3);
  return two[0] + two[1];
}

}  // namespace dsr
