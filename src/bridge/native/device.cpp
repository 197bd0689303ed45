// What libtorch was built for, which device a thread works on, and what CUDA says of a device.
#include <ATen/Context.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/version.h>

#include <cstdint>
#include <string>

#include "bridge.h"
#ifdef USE_C10D_NCCL
#include <ATen/cuda/CUDAContextLight.h>
#include <torch/csrc/distributed/c10d/NCCLUtils.hpp>
#endif

namespace {

c10::Device cuda(int index) {
  return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(index));
}

#ifdef USE_C10D_NCCL

void properties(int index, const char** name, int* major, int* minor) {
  thread_local std::string text;
  const cudaDeviceProp* found =
      at::cuda::getDeviceProperties(static_cast<c10::DeviceIndex>(index));
  text = found->name;
  *name = text.c_str();
  *major = found->major;
  *minor = found->minor;
}

void versions(int64_t* cuda, int64_t* cudnn, const char** nccl) {
  thread_local std::string text;
  *cuda = at::detail::getCUDAHooks().versionCUDART();
  *cudnn = at::detail::getCUDAHooks().versionCuDNN();
  text = c10d::getNcclVersion();
  *nccl = text.c_str();
}

#else

void properties(int, const char**, int*, int*) {
  TORCH_CHECK(false, "this is a libtorch for the CPU");
}

void versions(int64_t*, int64_t*, const char**) {
  TORCH_CHECK(false, "this is a libtorch for the CPU");
}

#endif

}  // namespace

extern "C" {

// Whether this is a libtorch for CUDA.
bool dsr_is_built_for_cuda() {
#ifdef USE_C10D_NCCL
  return true;
#else
  return false;
#endif
}

// Makes a CUDA device the one that this thread works on where no other is named.
int dsr_cuda_use(int index) {
  TRY(c10::impl::getDeviceGuardImpl(c10::kCUDA)->setDevice(cuda(index));)
}

// The name of a CUDA device, which is this thread's until its next call, and its compute capability.
int dsr_cuda_properties(int index, const char** name, int* major, int* minor) {
  TRY(properties(index, name, major, minor);)
}

// Whether products of float32 on CUDA may round to TF32.
int dsr_cuda_uses_tf32(bool* uses) {
  TRY(
    const auto precision =
        at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL);
    *uses = precision == at::Float32Precision::TF32;
  )
}

const char* dsr_libtorch_version() { return TORCH_VERSION; }

// The version of CUDA's runtime as it numbers itself (13000 is 13.0), that of cuDNN (92000 is
// 9.20.0), and NCCL's as text, which is this thread's until its next call.
int dsr_cuda_versions(int64_t* cuda, int64_t* cudnn, const char** nccl) {
  TRY(versions(cuda, cudnn, nccl);)
}
}
