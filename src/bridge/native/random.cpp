// Random numbers of a seed, which touch no generator that others draw from.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>

#include "bridge.h"

namespace {

// What at::manual_seed makes of libtorch's generator of the CPU.
at::Generator of_seed(uint64_t seed) {
  return at::make_generator<at::CPUGeneratorImpl>(seed);
}

}  // namespace

extern "C" {

int dsr_fill_normal(void* tensor, double mean, double std, uint64_t seed) {
  TRY(static_cast<at::Tensor*>(tensor)->normal_(mean, std, of_seed(seed));)
}

int dsr_fill_uniform(void* tensor, double from, double to, uint64_t seed) {
  TRY(static_cast<at::Tensor*>(tensor)->uniform_(from, to, of_seed(seed));)
}

}  // extern "C"
