// The memory behind tensors, given back and taken again while the tensors and whatever autograd
// saved of them stay (PyTorch's FSDP does the same).
#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/DeviceGuard.h>
#include <torch/version.h>

#include <string>

#include "bridge.h"

namespace {

#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 13
// libtorch's flag that refuses every access. Before 2.13 no public function may clear it. An explicit instantiation may
// name a private member.
bool& refuses(c10::StorageImpl& storage);

template <bool c10::StorageImpl::* Member>
struct Refusal {
  friend bool& refuses(c10::StorageImpl& storage) { return storage.*Member; }
};
template struct Refusal<&c10::StorageImpl::throw_on_immutable_data_ptr_>;

void allow_access(c10::StorageImpl& storage) { refuses(storage) = false; }
#else
void allow_access(c10::StorageImpl& storage) { storage.clear_data_ptr_access_error_msg_(); }
#endif

}  // namespace

extern "C" {

// Gives the storage of `tensor` new memory of this many bytes with any content, or none. All
// tensors over the storage see it. While there is none, whoever asks for the memory gets an
// exception with the words of src/bridge/refusal.rs: libtorch asks before each read and write.
int dsr_storage_allocate(at::Tensor* tensor, int64_t bytes, const char* released_words) {
  TRY(
    c10::StorageImpl* storage = tensor->storage().unsafeGetStorageImpl();
    const c10::Device device = tensor->device();
    const c10::DeviceGuard guard(device);
    c10::DataPtr memory(nullptr, device);
    // The old memory goes before the new one comes.
    storage->set_data_ptr_noswap(std::move(memory));
    storage->set_nbytes(0);
    storage->release_data_and_set_meta_custom_data_ptr_error_msg_(std::string(released_words));
    if (bytes > 0) {
      c10::DataPtr fresh = c10::GetAllocator(device.type())->allocate(bytes);
      allow_access(*storage);
      storage->set_data_ptr_noswap(std::move(fresh));
      storage->set_nbytes(bytes);
    }
  )
}
}
