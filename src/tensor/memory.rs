//! Host memory: the available bytes, so that a request that cannot fit is refused in time.
//!
//! Linux hands out more memory than there is and ends a process that uses it. libtorch therefore
//! never sees an allocation fail; the sizes of models and optimizers are known, and are checked.

use std::path::Path;

use super::Device;
pub use crate::bridge::cuda_memory::AllocatorUse;
use crate::{
    bridge::{alloc, cuda_memory},
    error::{Code, Error, Result},
    fs::{Place, read_to_string},
    units::{Bytes, proc_bytes},
};

/// Refuses `needed` more bytes for `what` on `device`, if that is the host and they are not there.
/// On other devices, and where the system does not tell, the allocation itself decides.
pub fn check_memory(device: Device, needed: u64, what: &str) -> Result<()> {
    let Some(available) = (device == Device::Cpu).then(available_bytes).flatten() else {
        return Ok(());
    };
    check(needed, available, what)
}

fn check(needed: u64, available: u64, what: &str) -> Result<()> {
    if needed <= available {
        return Ok(());
    }
    let (needed, available) = (Bytes(needed), Bytes(available));
    let message = format!("{what} needs {needed} of memory, and {available} are available");
    Err(Error::new(Code::Memory, message).hint("a smaller model needs less"))
}

/// The memory of `device`: of a GPU, or of the host within the limit of this process's control
/// group. `None` where nobody tells.
pub fn total_memory(device: Device) -> Result<Option<u64>> {
    if let Device::Cuda(index) = device {
        return cuda_memory::cuda_memory(index).map(|memory| Some(memory.all));
    }
    let text = read_to_string("/proc/meminfo").ok();
    let system = text.and_then(|text| proc_bytes(&text, "MemTotal:"));
    let limit = group_number("memory.max").unwrap_or(u64::MAX);
    Ok(system.map(|bytes| bytes.min(limit)))
}

/// Bytes that this process can still use of `device`, those included that libtorch's allocator keeps
/// for later. `None` where nobody tells.
pub fn free_memory(device: Device) -> Result<Option<u64>> {
    let Device::Cuda(index) = device else { return Ok(available_bytes()) };
    let AllocatorUse { allocated, reserved, .. } = cuda_memory::cuda_allocator(index)?;
    let free = cuda_memory::cuda_memory(index)?.free;
    Ok(Some(free + reserved.saturating_sub(allocated)))
}

/// The memory that libtorch's allocator of `device` has handed out and taken; `None` on the CPU,
/// whose allocator keeps no account.
pub fn allocator_use(device: Device) -> Result<Option<AllocatorUse>> {
    match device {
        Device::Cuda(index) => cuda_memory::cuda_allocator(index).map(Some),
        _ => Ok(None),
    }
}

/// Bytes of the host that this process can still use: what the kernel says, within the limit of its
/// control group and of its address space (`ulimit -v`). `None` where nobody tells.
pub fn available_bytes() -> Option<u64> {
    let system = proc_bytes(&read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let limits = [group_bytes(), address_bytes()].into_iter().flatten();
    Some(limits.fold(system, u64::min))
}

/// Bytes that Rust code holds, which is all but tensors; 0 in a program with another allocator.
pub fn held_by_rust() -> u64 {
    alloc::held()
}

/// The rest of the limit of this process's address space, where there is one.
fn address_bytes() -> Option<u64> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::As).current?;
    let used = proc_bytes(&read_to_string("/proc/self/status").ok()?, "VmSize:")?;
    Some(limit.saturating_sub(used))
}

/// The rest of the limit of this process's control group (version 2), where there is one.
fn group_bytes() -> Option<u64> {
    Some(group_number("memory.max")?.saturating_sub(group_number("memory.current")?))
}

/// A number that this process's control group is described with.
fn group_number(name: &str) -> Option<u64> {
    let group = read_to_string("/proc/self/cgroup").ok()?;
    let group = group.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let file = Path::new("/sys/fs/cgroup").join(group).join(name);
    read_to_string(Place::unguarded(file)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_refused_with_both_numbers() {
        check(10, 10, "a model").unwrap();
        let e = check(3 << 30, 1 << 30, "the model").unwrap_err();
        assert_eq!(e.code(), Code::Memory);
        assert_eq!(e.message(), "the model needs 3.0 GiB of memory, and 1.0 GiB are available");
    }

    #[test]
    fn the_kernel_tells_the_available_memory() {
        if Path::new("/proc/meminfo").exists() {
            assert!(available_bytes().is_some_and(|bytes| bytes > 0));
        }
    }
}
