//! The device of a process: the user's choice, checked against this machine.
//!
//! It is decided here alone. A rank's GPU is the one of its number on the machine, as in torchrun's
//! programs; a GPU by its number is for a process that is alone there.

use std::{fmt, str::FromStr};

use super::{Device, cuda_device_count};
use crate::{
    bridge::device,
    error::{Code, Error, Result},
    fs,
};

/// Which device a process computes on: `--device`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// A GPU where libtorch sees one, else the CPU.
    #[default]
    Best,
    /// `cpu`.
    Cpu,
    /// `cuda`: the GPU of the process's number on this machine.
    Cuda,
    /// `cuda:N`: this GPU.
    CudaIndex(usize),
}

/// A process among those of its run on the same machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalRank {
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are.
    pub count: usize,
}

impl LocalRank {
    /// The only rank.
    pub const ALONE: Self = Self { rank: 0, count: 1 };
}

impl DeviceChoice {
    /// The device of the process `local`.
    ///
    /// # Errors
    /// [`Code::Usage`] for a GPU that is not there, and for one GPU by its number for several
    /// processes.
    pub fn resolve(self, local: LocalRank) -> Result<Device> {
        // CUDA takes time to count its devices.
        if self == Self::Cpu {
            return Ok(Device::Cpu);
        }
        let gpus = cuda_device_count();
        self.among(gpus, local).map_err(|e| match gpus {
            0 => e.hint(why_no_gpu()),
            _ => e,
        })
    }

    /// The device of the process `local` on a machine with `gpus` GPUs.
    fn among(self, gpus: usize, local: LocalRank) -> Result<Device> {
        let LocalRank { rank, count } = local;
        let index = match self {
            Self::Cpu => return Ok(Device::Cpu),
            Self::Best if gpus == 0 => return Ok(Device::Cpu),
            Self::CudaIndex(index) if count > 1 => {
                let message =
                    format!("--device cuda:{index} is one GPU, for {count} processes on a machine");
                return Err(Error::new(Code::Usage, message)
                    .hint("--device cuda gives each process the GPU of its number"));
            }
            Self::Best | Self::Cuda => rank,
            Self::CudaIndex(index) => index,
        };
        if index < gpus {
            return Ok(Device::Cuda(index));
        }
        Err(match (self, gpus) {
            (_, 0) => Error::new(Code::Usage, format!("--device {self}: there is no GPU here")),
            (Self::CudaIndex(_), 1) => {
                Error::new(Code::Usage, format!("--device {self}: there is only cuda:0 here"))
            }
            (Self::CudaIndex(_), _) => {
                let there = format!("cuda:0 to cuda:{}", gpus - 1);
                Error::new(Code::Usage, format!("--device {self}: there are {there} here"))
            }
            _ => {
                let message = format!(
                    "process {rank} of {count} on this machine has no GPU: libtorch sees {gpus}"
                );
                Error::new(Code::Usage, message)
                    .hint("start as many processes as GPUs, or with --device cpu")
            }
        })
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let index = text.strip_prefix("cuda:").map(str::parse);
        match (text, index) {
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda),
            (_, Some(Ok(index))) => Ok(Self::CudaIndex(index)),
            _ => Err("a device is cpu, cuda or cuda:N, such as cuda:0".to_owned()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Best => f.write_str("the best there is"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda => f.write_str("cuda"),
            Self::CudaIndex(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// Makes `device` the one that this thread works on where no other is named: streams, events and
/// NCCL's buffers would otherwise be those of the first GPU.
pub fn make_current(device: Device) -> Result<()> {
    match device {
        Device::Cuda(index) => device::use_cuda(index),
        _ => Ok(()),
    }
}

/// The version of the NVIDIA driver that the kernel runs, if one is loaded.
pub fn driver_version() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    driver_in(&text)
}

/// The version in the kernel's line: `NVRM version: NVIDIA UNIX ... Kernel Module  580.65.06  ...`.
fn driver_in(text: &str) -> Option<String> {
    let is_version = |word: &&str| {
        let mut parts = word.split('.');
        parts.clone().count() > 1
            && parts.all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    line.split_whitespace().find(is_version).map(str::to_owned)
}

/// The reason why libtorch sees no GPU, as far as that can be told.
pub fn why_no_gpu() -> String {
    if !device::is_built_for_cuda() {
        return "this dsr was built with a libtorch for the CPU: remove its directory libtorch, and \
                `make` fetches the one for CUDA where nvidia-smi answers"
            .to_owned();
    }
    match driver_version() {
        None => "no NVIDIA driver is loaded: does nvidia-smi answer?".to_owned(),
        Some(driver) => format!(
            "driver {driver} is loaded, and CUDA sees no device: it may be too old for this \
             libtorch's CUDA, or CUDA_VISIBLE_DEVICES hides all GPUs; `dsr doctor` says more"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(rank: usize, count: usize) -> LocalRank {
        LocalRank { rank, count }
    }

    #[test]
    fn a_device_is_written_as_in_pytorch() {
        for text in ["cpu", "cuda", "cuda:3"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        for text in ["", "gpu", "cuda:", "cuda:-1", "CUDA", "cuda:0,1"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }

    #[test]
    fn each_rank_has_the_gpu_of_its_number() {
        use DeviceChoice::{Best, Cpu, Cuda, CudaIndex};
        let of = |choice: DeviceChoice, gpus, local| choice.among(gpus, local).unwrap();
        assert_eq!(of(Best, 0, rank(1, 2)), Device::Cpu);
        assert_eq!(of(Best, 2, rank(1, 2)), Device::Cuda(1));
        assert_eq!(of(Cuda, 2, rank(1, 2)), Device::Cuda(1));
        assert_eq!(of(Cpu, 2, rank(1, 2)), Device::Cpu);
        assert_eq!(of(CudaIndex(1), 2, LocalRank::ALONE), Device::Cuda(1));
    }

    #[test]
    fn a_gpu_that_is_not_there_is_refused_by_its_name() {
        let refused = |choice: &str, gpus, local| {
            let choice: DeviceChoice = choice.parse().unwrap();
            let e = choice.among(gpus, local).unwrap_err();
            assert_eq!(e.code(), Code::Usage);
            e.message().to_owned()
        };
        let alone = LocalRank::ALONE;
        assert_eq!(refused("cuda", 0, alone), "--device cuda: there is no GPU here");
        assert_eq!(refused("cuda:1", 1, alone), "--device cuda:1: there is only cuda:0 here");
        let message = refused("cuda:4", 4, alone);
        assert_eq!(message, "--device cuda:4: there are cuda:0 to cuda:3 here");
        let message = refused("cuda", 2, rank(2, 3));
        assert_eq!(message, "process 2 of 3 on this machine has no GPU: libtorch sees 2");
        let message = refused("cuda:0", 2, rank(0, 2));
        assert_eq!(message, "--device cuda:0 is one GPU, for 2 processes on a machine");
        // The default does not put two ranks on one GPU either.
        assert!(DeviceChoice::Best.among(1, rank(1, 2)).is_err());
    }

    #[test]
    fn the_kernel_tells_the_drivers_version() {
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release \
                    Build  (dvs-builder)\nGCC version:  gcc version 12.2.0\n";
        assert_eq!(driver_in(text).as_deref(), Some("580.65.06"));
        assert_eq!(driver_in("GCC version:  gcc version 12.2.0\n"), None);
    }
}
