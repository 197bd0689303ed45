//! The facts of an engine: device, versions, sizes. They stay the same from step to step.

use serde::Serialize;

use super::Engine;
use crate::{
    bridge::device,
    config::{BatchChoice, FittedBatch},
    fs::read_to_string,
    model::FlatUnit,
    tensor::{self, Device, driver_version, why_no_gpu},
};

/// The facts of an engine that a run shows and keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EngineFacts {
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// The maker's name of it, where the system tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_name: Option<String>,
    /// Threads that compute; on the CPU only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// The version of libtorch, with `+cpu` where it is one without CUDA.
    pub libtorch: String,
    /// The format of the computation.
    pub precision: String,
    /// The optimizer.
    pub optimizer: String,
    /// Processes that train together.
    pub world_size: usize,
    /// How many of them are replicas, with rows of their own.
    pub replicas: usize,
    /// Parameters of the model; of rank 0's part of its layers where these are divided.
    pub parameters: u64,
    /// Parameters that are trained.
    pub trained_parameters: u64,
    /// Rows of a micro batch.
    pub micro_batch_size: usize,
    /// Micro batches of a step.
    pub gradient_accumulation_steps: usize,
    /// Rows of a step, over all ranks.
    pub train_batch_size: usize,
    /// How the micro batch was chosen, where it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auto_micro_batch: Option<ChosenBatch>,
}

/// A micro batch that was chosen by the memory that a rank needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ChosenBatch {
    /// Tokens of a row, at most.
    pub tokens: u64,
    /// Bytes that the plan needs.
    pub needs: u64,
    /// Bytes that it may have.
    pub there: u64,
    /// The next larger size that was tried, with the bytes that it would need.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<(usize, u64)>,
    /// Whether it is that of the checkpoint.
    pub is_kept: bool,
}

impl ChosenBatch {
    fn of(choice: &BatchChoice) -> Option<Self> {
        let BatchChoice::Fitted(fitted) = choice else { return None };
        let FittedBatch { tokens, needs, there, next, is_kept, .. } = *fitted;
        Some(Self { tokens, needs, there, next, is_kept })
    }
}

impl Engine {
    /// The facts of this engine.
    pub fn facts(&self) -> EngineFacts {
        let config = self.config();
        let place = self.model().device();
        let numel =
            |units: &[FlatUnit]| -> u64 { units.iter().map(|unit| unit.numel() as u64).sum() };
        let whole = self.model().whole_units();
        let version = device::libtorch_version();
        EngineFacts {
            device: tensor::device_name(place),
            device_name: product_name(place),
            threads: (place == Device::Cpu).then(tensor::num_threads),
            libtorch: match device::is_built_for_cuda() || version.contains('+') {
                true => version,
                false => format!("{version}+cpu"),
            },
            precision: format!("{}{}", config.precision.dtype.name(), config.numerics.unusual()),
            optimizer: config.optimizer.name().to_owned(),
            world_size: self.group().world_size(),
            replicas: self.mesh().shape().dp,
            parameters: self.model().num_params(),
            trained_parameters: numel(&whole[..self.model().trainable_count()]),
            micro_batch_size: config.micro_batch_size,
            gradient_accumulation_steps: config.gradient_accumulation_steps,
            train_batch_size: self.train_batch_size(),
            auto_micro_batch: ChosenBatch::of(&config.batch_choice),
        }
    }

    /// The warning for a GPU of this machine that is not used.
    pub fn unused_gpu(&self) -> Option<String> {
        if self.model().device() != Device::Cpu {
            return None;
        }
        match (tensor::cuda_device_count(), driver_version()) {
            (0, None) => None,
            (0, Some(_)) => Some(format!(
                "warning: this machine has a GPU, and dsr trains on the CPU: {}",
                why_no_gpu()
            )),
            (1, _) => Some("warning: cuda:0 is there, and dsr trains on the CPU".to_owned()),
            (n, _) => Some(format!("warning: {n} GPUs are there, and dsr trains on the CPU")),
        }
    }
}

/// The name of a device, as its maker or the system has it.
fn product_name(place: Device) -> Option<String> {
    match place {
        Device::Cuda(index) => Some(device::properties(index).ok()?.name),
        _ => cpu_in(&read_to_string("/proc/cpuinfo").ok()?),
    }
}

/// The first processor's name in the kernel's list.
fn cpu_in(text: &str) -> Option<String> {
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    let (_, name) = line.split_once(':')?;
    let words: Vec<_> = name.split_whitespace().collect();
    Some(words.join(" ")).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_names_the_processor() {
        let text = "processor\t: 0\nmodel name\t: Intel(R)  Xeon(R) CPU @ 2.20GHz\nflags\t: a\n";
        assert_eq!(cpu_in(text).as_deref(), Some("Intel(R) Xeon(R) CPU @ 2.20GHz"));
        assert_eq!(cpu_in("processor: 0\n"), None);
    }
}
