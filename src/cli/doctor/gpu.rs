//! Libtorch, CUDA, the driver, each GPU, and the transport of collectives.

use super::finding::Finding;
use crate::{
    bridge::device,
    dist,
    error::{Code, Error, Result},
    recipe::rights::Environment,
    tensor::{
        self, Device, Gpu, Kind, Tensor, driver_version, guard, make_current, total_memory,
        why_no_gpu,
    },
    units::Bytes,
};

/// Versions first, then what they do.
pub(super) fn findings(env: &Environment) -> Vec<Finding> {
    let mut found = vec![Finding::fine("dsr", env!("CARGO_PKG_VERSION")), libtorch()];
    let driver = driver_version();
    found.extend(cuda(driver.as_deref()));
    let gpus = tensor::cuda_device_count();
    found.extend((0..gpus).map(gpu));
    if gpus == 0 {
        found.push(match (device::is_built_for_cuda(), &driver) {
            (false, None) => Finding::fine("GPUs", "none"),
            _ => Finding::problem("GPUs", "none that libtorch sees", &why_no_gpu()),
        });
    }
    found.push(gloo(env));
    found
}

fn libtorch() -> Finding {
    let kind = if device::is_built_for_cuda() { "for CUDA" } else { "for the CPU" };
    Finding::fine("libtorch", format!("{}, {kind}", device::libtorch_version()))
}

/// The libraries, where libtorch has them, and the driver.
fn cuda(driver: Option<&str>) -> Vec<Finding> {
    let mut found = Vec::new();
    if device::is_built_for_cuda() {
        match device::versions() {
            Ok(device::Versions { cuda, cudnn, nccl }) => {
                found.push(Finding::fine("CUDA", format!("{cuda}, cuDNN {cudnn}")));
                found.push(Finding::fine("NCCL", nccl));
            }
            Err(e) => {
                let advice = "the libraries that libtorch loads must be those it was built with: is \
                              another CUDA on LD_LIBRARY_PATH?";
                found.push(Finding::problem("CUDA", e.message(), advice));
            }
        }
    }
    found.extend(driver.map(|version| Finding::fine("NVIDIA driver", version)));
    found
}

/// One GPU, on which a kernel of libtorch's was tried.
fn gpu(index: usize) -> Finding {
    let name = format!("cuda:{index}");
    let place = Device::Cuda(index);
    let described = device::properties(index).and_then(|properties| {
        let (major, minor) = properties.capability;
        let memory = total_memory(place)?.map(|memory| format!(", {}", Bytes(memory)));
        let memory = memory.unwrap_or_default();
        let known = Gpu::find(&properties.name).is_some();
        let peak = if known { "" } else { ", peak not known (no MFU)" };
        let name = properties.name;
        Ok(format!("{name}{memory}, compute capability {major}.{minor}{peak}"))
    });
    let advice = "another process may have it, or the driver lost it: what does nvidia-smi say?";
    let value = match described {
        Ok(value) => value,
        Err(e) => return Finding::problem(name, e.message(), advice),
    };
    match try_kernels(place) {
        Ok(()) => Finding::fine(name, value),
        Err(e) => {
            let first = e.first_line();
            let advice = match first.contains("no kernel image") {
                true => {
                    "this libtorch has no kernels for it: LIBTORCH must be one that was built for \
                         its compute capability"
                }
                false => advice,
            };
            Finding::problem(name, format!("{value}: {first}"), advice)
        }
    }
}

/// Multiplies there, with a kernel of libtorch's own and one of cuBLAS.
fn try_kernels(place: Device) -> Result<()> {
    make_current(place)?;
    let sum = guard("a kernel", || {
        let ones = Tensor::f_ones([16, 16], (Kind::Float, place))?;
        let product = ones.f_add_scalar(1.0)?.f_matmul(&ones)?;
        Ok(product.f_sum(Kind::Double)?.f_double_value(&[])?)
    })?;
    match sum {
        8192.0 => Ok(()),
        _ => Err(Error::new(Code::Torch, format!("it computes 16 x 16 x 16 x 2 = {sum}"))),
    }
}

fn gloo(env: &Environment) -> Finding {
    let interface = env("GLOO_SOCKET_IFNAME").filter(|name| !name.is_empty());
    match dist::check_gloo(interface.as_deref()) {
        Ok(()) => Finding::fine("Gloo", interface.unwrap_or_else(|| "works".to_owned())),
        Err(e) => Finding::problem(
            "Gloo",
            e.first_line(),
            "GLOO_SOCKET_IFNAME names the network interface that ranks meet on, such as eth0",
        ),
    }
}
