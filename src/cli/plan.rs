//! `dsr plan RECIPE`: the memory that each rank will need, before anything is loaded.

use std::fmt::Write;

use super::{args::PlanArgs, console, device::DEVICE_VARIABLE};
use crate::{
    config::{BatchChoice, EngineConfig, OffloadDevice},
    engine::{
        fitting::{Budget, fit_within, usable},
        plan::{MemoryPlan, Setup},
        plan_stages::{bubble, stages},
    },
    error::{Code, Error, Result},
    recipe::{Failure, Recipe},
    script::{Host, Planned, Session},
    tensor::{Device, DeviceChoice, Gpu, LocalRank, total_memory},
    units::Bytes,
};

/// The memory that CUDA itself takes of a GPU, about: its context and kernels.
const CUDA_CONTEXT: u64 = 512 << 20;

/// Tokens of a row where neither recipe nor model has a length.
const USUAL_TOKENS: u64 = 1024;

/// Where the training is to run.
struct TargetDevice {
    device: Device,
    /// Its description.
    name: String,
    /// Its memory, where it is known.
    memory: Option<u64>,
}

impl TargetDevice {
    fn of(args: &PlanArgs) -> Result<Self> {
        let gpu = |name: String, memory: Bytes| {
            let name = format!("{name}, {memory}");
            Self { device: Device::Cuda(0), name, memory: Some(memory.0) }
        };
        if let Some(memory) = args.gpu_memory {
            return Ok(gpu("a GPU".into(), memory));
        }
        if let Some(name) = &args.gpu {
            let known = Gpu::named(name).map_err(|e| e.hint("for others there is --gpu-memory"))?;
            return Ok(gpu(name.clone(), Bytes(known.memory())));
        }
        let device = chosen(args)?.resolve(LocalRank::ALONE)?;
        let name = if device == Device::Cpu { "the CPU here" } else { "the GPU here" };
        let memory = total_memory(device)?;
        let size = memory.map(|memory| format!(", {}", Bytes(memory))).unwrap_or_default();
        Ok(Self { device, name: format!("{name}{size}"), memory })
    }

    /// The memory that a training can use of it.
    fn usable(&self) -> Option<u64> {
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

/// Plans the recipe and prints the plan.
pub(super) fn run(args: &PlanArgs, recipe: &Recipe, host: Host) -> Result<(), Failure> {
    let place = TargetDevice::of(args)?;
    let planned = fitted(Session::plan(host, recipe, args.world_size.into())?, &place)?;
    console::out(&text(&planned, &place)?);
    Ok(())
}

/// The training with the micro batch that fits, where it is "auto".
fn fitted(planned: Planned, place: &TargetDevice) -> Result<Planned> {
    let bytes = place.usable().map_or(u64::MAX, usable);
    let budget = Budget { device: place.device, bytes, host: None };
    let (model, rows) = (&planned.model, (&planned.rows, planned.replicas));
    let config = fit_within(model, planned.config, rows, budget)?;
    Ok(Planned { config, ..planned })
}

fn text(planned: &Planned, place: &TargetDevice) -> Result<String> {
    let Planned { model, config, optimizer_state, rows, world_size, .. } = planned;
    let positions = model.facts().max_positions.map_or(USUAL_TOKENS, i64::unsigned_abs);
    let tokens = rows.tokens.unwrap_or(positions);
    let mut setup =
        Setup::new(model, config, *optimizer_state, tokens, planned.replicas, place.device);
    setup.workload.whole_logits = rows.whole_logits;
    setup.workload.decoder_tokens = rows.targets.unwrap_or(tokens);
    let from = match rows.tokens {
        Some(_) => "as the recipe makes them",
        None if model.facts().max_positions.is_some() => {
            "the model's positions: the recipe packs no rows before init_engine"
        }
        None => "a usual length: the recipe packs no rows before init_engine",
    };
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:.1}M parameters, world_size {world_size}, on {}\n\
         micro_batch_size {}{} x {tokens} tokens ({from}), gradient_accumulation_steps {}\n",
        model.num_params() as f64 / 1e6,
        place.name,
        config.micro_batch_size,
        if matches!(config.batch_choice, BatchChoice::Fitted(_)) { " (auto)" } else { "" },
        config.gradient_accumulation_steps,
    );
    if let Some(line) = model.sparse_line(tokens.cast_signed())? {
        text += &format!("{line}\n\n");
    }
    if planned.replicas < *world_size {
        text += &by_stage(&setup, config)?;
        return Ok(text);
    }
    let plan = setup.plan();
    let precision = config.precision.dtype.name();
    let _ = writeln!(text, "This recipe, {precision}, for each rank at the peak of its memory:");
    for (kind, bytes) in plan.device.kinds() {
        let _ = writeln!(text, "  {kind:<16} {:>10}", Bytes(bytes).to_string());
    }
    let _ = writeln!(text, "  {:<16} {:>10}", "all", Bytes(plan.device.peak()).to_string());
    if plan.host > 0 {
        let _ = writeln!(text, "  {:<16} {:>10}", "in host memory", Bytes(plan.host).to_string());
    }
    if plan.disk > 0 {
        let _ = writeln!(text, "  {:<16} {:>10}", "on disk", Bytes(plan.disk).to_string());
    }
    if let Some(usable) = place.usable() {
        let most = micro_batch(&setup, usable);
        let _ = writeln!(text, "  largest micro_batch_size within {}: {most}", Bytes(usable));
    }
    Ok(text + "\n" + alternatives(&setup, place).as_str())
}

/// The stages of a pipeline: what a rank of each needs, in GiB, and which one the others wait for.
fn by_stage(setup: &Setup, config: &EngineConfig) -> Result<String> {
    let heads = [
        "stage",
        "layers",
        "parameters",
        "work",
        "model",
        "master",
        "gradients",
        "optimizer",
        "activations",
        "buffers",
        "all",
        "host",
        "sent",
    ];
    let gib = |bytes: u64| format!("{:.2}", bytes as f64 / f64::from(1 << 30));
    let stages = stages(setup, config)?;
    let all: u64 = stages.iter().map(|stage| stage.macs).sum();
    let share = |macs: u64| 100.0 * macs as f64 / all.max(1) as f64;
    let mut rows = vec![heads.map(ToOwned::to_owned)];
    for (number, stage) in stages.iter().enumerate() {
        let MemoryPlan { device, host, .. } = stage.memory;
        let [parameters, master, gradients, optimizer, activations, buffers] =
            device.kinds().map(|(_, bytes)| gib(bytes));
        rows.push([
            number.to_string(),
            format!("{} to {}", stage.layers.start, stage.layers.end - 1),
            format!("{:.1}M", stage.params as f64 / 1e6),
            format!("{:.1} %", share(stage.macs)),
            parameters,
            master,
            gradients,
            optimizer,
            activations,
            buffers,
            gib(device.peak()),
            gib(host),
            gib(stage.sent),
        ]);
    }
    let slowest = stages.iter().map(|stage| stage.macs).max().unwrap_or(0);
    let slowest_number = stages.iter().position(|stage| stage.macs == slowest).unwrap_or(0);
    Ok(format!(
        "The stages, in GiB for each rank at the peak of its memory; work is the share of the \
         products, sent what goes to the neighbours in a step.\n{}\n\
         Stage {slowest_number} is the slowest, with {:.2} times the work of an even cut. Stages \
         wait for {:.1} % of the time.\n",
        table(&rows),
        share(slowest) * stages.len() as f64 / 100.0,
        100.0 * bubble(config),
    ))
}

fn micro_batch(setup: &Setup, usable: u64) -> String {
    setup.largest_micro_batch(usable).map_or_else(|| "none".to_owned(), |rows| rows.to_string())
}

/// The table of the alternatives, in GiB.
fn alternatives(setup: &Setup, place: &TargetDevice) -> String {
    let heads = [
        "precision",
        "stage",
        "offload",
        "checkpointing",
        "parameters",
        "master",
        "gradients",
        "optimizer",
        "activations",
        "buffers",
        "all",
        "host",
        "micro batch",
    ];
    let gib = |bytes: u64| format!("{:.2}", bytes as f64 / f64::from(1 << 30));
    let mut rows = vec![heads.map(ToOwned::to_owned)];
    for alternative in setup.alternatives() {
        let setup = &alternative.setup;
        let offload = setup.sharding.optimizer;
        let MemoryPlan { device, host, .. } = setup.plan();
        let [parameters, master, gradients, optimizer, activations, buffers] =
            device.kinds().map(|(_, bytes)| gib(bytes));
        let yes = |is: bool, word: &str| if is { word.to_owned() } else { "-".to_owned() };
        rows.push([
            alternative.precision.to_owned(),
            setup.sharding.stage.to_string(),
            yes(offload != OffloadDevice::None, offload.name()),
            yes(setup.activation_checkpointing.is_some(), "on"),
            parameters,
            master,
            gradients,
            optimizer,
            activations,
            buffers,
            gib(device.peak()),
            gib(host),
            place.usable().map_or_else(|| "?".to_owned(), |usable| micro_batch(setup, usable)),
        ]);
    }
    let mut text = "The alternatives, in GiB for each rank; the last column is the largest \
                    micro_batch_size that fits.\n"
        .to_owned();
    if setup.sharding.world_size == 1 {
        text += "ZeRO's stages divide among ranks: --world-size N shows them.\n";
    }
    text + table(&rows).as_str()
}

/// Columns as wide as their widest entry: words on the left, the rest on the right.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |i: usize| rows.iter().map(|row| row[i].len()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).enumerate().map(|(i, (cell, width))| match i {
            0 => format!("{cell:<width$}"),
            _ => format!("{cell:>width$}"),
        });
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  "));
    }
    text
}
