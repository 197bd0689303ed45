//! A step of AdamW with averages in 8 bits beside one with averages in float32, and the time to quantize
//! weights, on the CPU.
//!
//!     OMP_NUM_THREADS=1 cargo bench --bench fewer_bits [rounds: 5]
//!
//! Each line is the median of rounds in which all of them run in turns. Numbers from a machine that does
//! something else at the same time mean nothing.
#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::{error::Error, time::Instant};

use dsr::{
    config::{
        OptimizerConfig, Quantization, QuantizedFormat,
        optimizer::{AdamConfig, Algorithm, BlockwiseConfig},
    },
    dist::ProcessGroup,
    optim::{Optimizer, OptimizerPlan, ParamLayout, StepRates, UnitLayout, UnitTensors},
    quantize::Quantizer,
    tensor::{self, Device, Kind, Tensor},
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
/// Together as many weights as GPT-2 has.
const MATRICES: i64 = 118;
const SIDE: i64 = 1024;
const RATES: StepRates = StepRates { lr: 1e-3, betas: (0.9, 0.999) };
const NAMES: [&str; 5] = ["AdamW", "AdamW8bit", "NF4", "NF4, double_quant", "int8"];

fn main() -> Result<()> {
    let rounds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(5);
    let mut adamw = Training::new(None)?;
    let mut adamw_8bit = Training::new(Some(BlockwiseConfig::default()))?;
    let weights = adamw.param.copy().view([MATRICES, SIDE, SIDE]);
    let nf4 = |double_quant| QuantizedFormat::Nf4 { double_quant };
    let mut times = NAMES.map(|_| Vec::new());
    for round in 0..=rounds {
        let row = [
            adamw.step()?,
            adamw_8bit.step()?,
            quantize(nf4(false), &weights)?,
            quantize(nf4(true), &weights)?,
            quantize(QuantizedFormat::Int8, &weights)?,
        ];
        // The first one warms up.
        if round > 0 {
            times.iter_mut().zip(row).for_each(|(times, time)| times.push(time));
        }
    }
    let millions = (MATRICES * SIDE * SIDE) as f64 / 1e6;
    println!("| {millions:.0}M weights, {} threads | s |\n|---|---|", tensor::num_threads());
    for (name, mut times) in NAMES.iter().zip(times) {
        times.sort_by(f64::total_cmp);
        println!("| {name} | {:.3} |", times[times.len() / 2]);
    }
    Ok(())
}

/// An optimizer over a unit of one matrix.
struct Training {
    optimizer: Optimizer,
    group: ProcessGroup,
    param: Tensor,
    grad: Tensor,
    state: Vec<Tensor>,
}

impl Training {
    fn new(blockwise: Option<BlockwiseConfig>) -> Result<Self> {
        let config = OptimizerConfig {
            weight_decay: 0.01,
            blockwise,
            ..OptimizerConfig::new(Algorithm::Adam(AdamConfig::default()), RATES.lr)
        };
        let shape = vec![MATRICES * SIDE, SIDE];
        let numel = MATRICES * SIDE * SIDE;
        let param = ParamLayout { name: "weight".into(), offset: 0, shape, fan_in_out: None };
        let unit = UnitLayout { numel, params: vec![param] };
        let optimizer = Optimizer::new(OptimizerPlan::new(&config, &[unit], None)?);
        let zeros = |(kind, numel)| Tensor::zeros([numel], (kind, Device::Cpu));
        let state = optimizer.state_layout(0).into_iter().map(zeros).collect();
        let group = ProcessGroup::single(Device::Cpu)?;
        let random = || Tensor::randn([numel], CPU);
        Ok(Self { optimizer, group, param: random(), grad: random(), state })
    }

    /// The seconds of a step.
    fn step(&mut self) -> Result<f64> {
        let tensors = UnitTensors { param: &self.param, grad: &self.grad, state: &self.state };
        let start = Instant::now();
        self.optimizer.update(&self.group, &[(0, tensors)], RATES, None)?;
        let seconds = start.elapsed().as_secs_f64();
        self.optimizer.end_step();
        Ok(seconds)
    }
}

/// The seconds to quantize matrices `[MATRICES, SIDE, SIDE]`.
fn quantize(format: QuantizedFormat, weights: &Tensor) -> Result<f64> {
    let quantizer = Quantizer::new(Quantization::of_blocks(format), Device::Cpu)?;
    let (sections, bytes) = quantizer.layout([(SIDE, SIDE)]);
    let storage = Tensor::zeros([bytes], (Kind::Uint8, Device::Cpu));
    let start = Instant::now();
    for i in 0..MATRICES {
        quantizer.encode(&weights.select(0, i), &sections[0], &storage)?;
    }
    Ok(start.elapsed().as_secs_f64())
}
