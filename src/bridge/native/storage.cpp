// The memory behind tensors, given back and taken again while the tensors and whatever autograd
// saved of them stay (PyTorch's FSDP does the same).
#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/DeviceGuard.h>

#include "bridge.h"

extern "C" {

// Gives the storage of `tensor` new memory of this many bytes with any content, or none. All
// tensors over the storage see it.
int dsr_storage_allocate(at::Tensor* tensor, int64_t bytes) {
  TRY(
    c10::StorageImpl* storage = tensor->storage().unsafeGetStorageImpl();
    const c10::Device device = tensor->device();
    const c10::DeviceGuard guard(device);
    c10::DataPtr memory(nullptr, device);
    // The old memory goes before the new one comes.
    storage->set_data_ptr_noswap(std::move(memory));
    storage->set_nbytes(0);
    if (bytes > 0) {
      storage->set_data_ptr_noswap(c10::GetAllocator(device.type())->allocate(bytes));
      storage->set_nbytes(bytes);
    }
  )
}
}
