//! Tensors on their way between a GPU and the host.

use super::{Device, Tensor, no_grad};
use crate::error::Result;

/// `x` on `device`: `x` itself where it is there already. A copy is made by the GPU's stream in its
/// turn and is not waited for: the host may read one, which is in pinned memory, only after
/// [`super::synchronize`].
///
/// # Errors
/// Memory is exhausted.
pub fn moved(x: &Tensor, device: Device) -> Result<Tensor> {
    Ok(no_grad(|| x.f_to_device_(device, x.kind(), true, false))?)
}

/// `values` as one tensor of this shape on `device`. A GPU copies them from pinned memory in its turn,
/// and is not waited for.
///
/// # Errors
/// Memory is exhausted.
pub fn to_device(values: &[i64], shape: &[i64], device: Device) -> Result<Tensor> {
    let host = Tensor::f_from_slice(values)?.f_view(shape)?;
    match device {
        Device::Cuda(_) => moved(&host.f_internal_pin_memory(device)?, device),
        _ => Ok(host),
    }
}

/// Writes `from` into `into`, rounded to its format. A copy from the host to a GPU is rounded before
/// it travels, and is not waited for: the host may change `from` at once.
///
/// # Errors
/// Memory is exhausted.
pub fn write_over(into: &Tensor, from: &Tensor) -> Result<()> {
    let device = into.device();
    let mut into = into.shallow_clone();
    no_grad(|| match (from.device(), device) {
        (Device::Cpu, Device::Cuda(_)) => {
            let pinned = from.f_to_kind(into.kind())?.f_pin_memory(device)?;
            Ok(into.f_copy_(&moved(&pinned, device)?)?)
        }
        _ => Ok(into.f_copy_(from)?),
    })
}
