//! The device that a plan is for.

use serde::Serialize;

use crate::{
    cli::{args::PlanArgs, device::DEVICE_VARIABLE},
    error::{Code, Error, Result},
    tensor::{Device, DeviceChoice, Gpu, LocalRank, has_bf16, total_memory},
    units::Bytes,
};

/// The memory that CUDA itself takes of a GPU, about: its context and kernels.
const CUDA_CONTEXT: u64 = 512 << 20;

/// Where the training is to run.
pub(super) struct Target {
    pub(super) device: Device,
    /// Its description.
    pub(super) name: String,
    /// Its memory, where it is known.
    pub(super) memory: Option<u64>,
    pub(super) kind: TargetKind,
}

/// How the speed of a target is known.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TargetKind {
    /// It is here, and is measured.
    Here,
    /// It is a card with published numbers.
    Card(#[serde(skip)] Gpu),
    /// Nothing is known but its memory.
    Unknown,
}

impl Target {
    pub(super) fn of(args: &PlanArgs) -> Result<Self> {
        let gpu = |name: String, memory: u64, kind| {
            let name = format!("{name}, {}", Bytes(memory));
            Self { device: Device::Cuda(0), name, memory: Some(memory), kind }
        };
        if let Some(memory) = args.gpu_memory {
            return Ok(gpu("a GPU".into(), memory.0, TargetKind::Unknown));
        }
        if let Some(name) = &args.gpu {
            let known = Gpu::named(name).map_err(|e| e.hint("for others there is --gpu-memory"))?;
            return Ok(gpu(name.clone(), known.memory(), TargetKind::Card(known)));
        }
        let device = chosen(args)?.resolve(LocalRank::ALONE)?;
        let name = if device == Device::Cpu { "the CPU here" } else { "the GPU here" };
        let memory = total_memory(device)?;
        let size = memory.map(|memory| format!(", {}", Bytes(memory))).unwrap_or_default();
        Ok(Self { device, name: format!("{name}{size}"), memory, kind: TargetKind::Here })
    }

    /// A card as a target.
    pub(super) fn card(gpu: Gpu) -> Self {
        let (name, memory) = (gpu.name().to_owned(), Some(gpu.memory()));
        Self { device: Device::Cuda(0), name, memory, kind: TargetKind::Card(gpu) }
    }

    /// Whether it computes in bfloat16; so do all GPUs of the last years.
    pub(super) fn has_bf16(&self) -> Result<bool> {
        match self.kind {
            TargetKind::Here => has_bf16(self.device),
            TargetKind::Card(gpu) => Ok(gpu.has_bf16()),
            TargetKind::Unknown => Ok(true),
        }
    }

    /// The memory that a training can use of it.
    pub(super) fn usable(&self) -> Option<u64> {
        let context = if self.device == Device::Cpu { 0 } else { CUDA_CONTEXT };
        self.memory.map(|memory| memory.saturating_sub(context))
    }
}

/// The device that was asked for. Not by clap: the variable must not contradict `--gpu`, which is for
/// a machine elsewhere.
fn chosen(args: &PlanArgs) -> Result<DeviceChoice> {
    let text = std::env::var(DEVICE_VARIABLE).ok().filter(|text| !text.is_empty());
    match (args.device, text) {
        (Some(device), _) => Ok(device),
        (None, None) => Ok(DeviceChoice::Best),
        (None, Some(text)) => text.parse().map_err(|expected| {
            Error::new(Code::Usage, format!("{DEVICE_VARIABLE} is {text:?}: {expected}"))
        }),
    }
}
