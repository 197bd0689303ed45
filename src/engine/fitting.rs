//! The micro batch that fits: the largest of those that the other sizes leave open with which a rank
//! stays within its memory, by the plan ([`Setup`]).
//!
//! A tenth of the memory is left to what a plan does not count: batches, evaluations, and what the
//! allocator keeps beside live tensors. All ranks take what the one with the least memory can.

use std::rc::Rc;

use super::{
    Engine,
    auto_precision::fit_precision,
    mesh_limits::check_mesh,
    plan::{MemoryPlan, Setup, optimizer_state_bytes},
    plan_stages::stages,
    trainable::trained,
};
use crate::{
    config::{BatchChoice, EngineConfig, FittedBatch, MeshConfig, OpenBatch},
    dist::ProcessGroup,
    error::{Code, Error, Result},
    model::{FlatUnit, Model},
    tensor::{self, Device},
};

/// The rows of a training, as far as they are known before the first one.
#[derive(Debug, Clone, Copy, Default)]
pub struct RowShape {
    /// Tokens of a row, at most; `None` stands for the model's positions.
    pub tokens: Option<u64>,
    /// Labels of a row of pairs, at most; `None` is as many as tokens.
    pub targets: Option<u64>,
    /// Whether a loss of the recipe's own gets the logits whole.
    pub whole_logits: bool,
}

/// The memory that a rank may use.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// The kind of device.
    pub device: Device,
    /// Bytes of the device.
    pub bytes: u64,
    /// Bytes of the host beside a GPU; `None` where nobody tells.
    pub host: Option<u64>,
}

impl Budget {
    /// The memory of `model`'s device that is free or holds the model now, as one of `local_ranks`
    /// processes on this machine.
    ///
    /// # Errors
    /// The system does not tell.
    fn of(model: &Model, local_ranks: usize) -> Result<Self> {
        let device = model.device();
        let here: u64 =
            model.units().iter().filter(|unit| unit.is_here()).map(FlatUnit::bytes).sum();
        let share = |bytes: u64| bytes / local_ranks.max(1) as u64;
        let host = tensor::available_bytes().map(share);
        let (free, host) = match device {
            Device::Cpu => (host, None),
            _ => (tensor::free_memory(device)?, host),
        };
        let Some(free) = free else {
            let message = "the system does not tell how much memory is free";
            return Err(Error::new(Code::BadValue, message));
        };
        Ok(Self { device, bytes: usable(free) + here, host: host.map(usable) })
    }

    fn holds(&self, plan: &MemoryPlan) -> bool {
        plan.device.peak() <= self.bytes && self.host.is_none_or(|host| plan.host <= host)
    }
}

/// The part of `bytes` that a plan may fill.
pub fn usable(bytes: u64) -> u64 {
    bytes / 10 * 9
}

/// `config` with the micro batch that fits, where that is open; every rank of `group` must call it.
/// `local_ranks` processes share the memory of this machine's host.
///
/// # Errors
/// [`Code::Memory`] where not even the smallest fits; a training that cannot be planned.
pub fn fit_batch(
    model: &Rc<Model>,
    config: EngineConfig,
    rows: &RowShape,
    (group, local_ranks): (&ProcessGroup, usize),
) -> Result<EngineConfig> {
    let BatchChoice::Open(open) = config.batch_choice else { return Ok(config) };
    let config = fit_precision(config, group)?;
    // The others have their models by then, and no training yet.
    group.barrier()?;
    let replicas = config.mesh.shape(group.world_size())?.dp;
    let own = Budget::of(model, local_ranks)
        .and_then(|budget| Candidates::new(model, &config, (rows, replicas), budget));
    agreed(own, config, &open, group)
}

/// `config` with the largest of the micro batches that fit on every rank of `group`.
fn agreed(
    own: Result<Candidates>,
    config: EngineConfig,
    open: &OpenBatch,
    group: &ProcessGroup,
) -> Result<EngineConfig> {
    // Where one rank cannot tell, none trains.
    let none = open.candidates().len();
    let place = own.as_ref().map_or(none, |candidates| candidates.largest_that_fits(open));
    let all = group.greatest(place as i64)?;
    own.map_err(|e| unplanned(&e))?.take(config, open, usize::try_from(all).unwrap_or(none))
}

/// `config` with the micro batch with which one of `replicas` ranks stays within `budget`.
///
/// # Errors
/// As of [`fit_batch`].
pub fn fit_within(
    model: &Rc<Model>,
    config: EngineConfig,
    (rows, replicas): (&RowShape, usize),
    budget: Budget,
) -> Result<EngineConfig> {
    let BatchChoice::Open(open) = config.batch_choice else { return Ok(config) };
    let of_rows = (rows, replicas);
    let candidates = Candidates::new(model, &config, of_rows, budget).map_err(|e| unplanned(&e))?;
    let place = candidates.largest_that_fits(&open);
    candidates.take(config, &open, place)
}

/// The plans of a training with one micro batch after another.
struct Candidates {
    config: EngineConfig,
    whole: Setup,
    budget: Budget,
}

impl Candidates {
    fn new(
        model: &Rc<Model>,
        config: &EngineConfig,
        (rows, replicas): (&RowShape, usize),
        budget: Budget,
    ) -> Result<Self> {
        check_mesh(model, config)?;
        let model = &trained(model, config)?;
        model.measure()?;
        let positions = model.facts().max_positions.map(i64::unsigned_abs);
        let Some(tokens) = rows.tokens.or(positions) else {
            bail!(
                Code::BadValue,
                "the length of the rows is not known: the model has no longest one, and the recipe \
                 packs or cuts no rows before init_engine"
            );
        };
        let state = optimizer_state_bytes(model, config)?;
        let mut whole = Setup::new(model, config, state, tokens, replicas, budget.device);
        whole.workload.whole_logits = rows.whole_logits;
        whole.workload.decoder_tokens = rows.targets.unwrap_or(tokens);
        Ok(Self { config: config.clone(), whole, budget })
    }

    /// The memory with `rows` a micro batch: that of the stage that needs most.
    fn plan(&self, (rows, accumulation): (usize, usize)) -> Result<MemoryPlan> {
        let mut setup = self.whole.clone();
        setup.workload.rows = rows as u64;
        setup.gradient_accumulation_steps = accumulation;
        if self.config.mesh == MeshConfig::default() {
            return Ok(setup.plan());
        }
        let mut config = self.config.clone();
        (config.micro_batch_size, config.gradient_accumulation_steps) = (rows, accumulation);
        let plans = stages(&setup, &config)?.into_iter().map(|stage| stage.memory);
        let most = plans.max_by_key(|plan| plan.device.peak());
        most.ok_or_else(|| Error::new(Code::Internal, "a mesh without stages"))
    }

    /// The number of the first candidate that fits, or of all that there are.
    fn largest_that_fits(&self, open: &OpenBatch) -> usize {
        let fits =
            |sizes: &(usize, usize)| self.plan(*sizes).is_ok_and(|plan| self.budget.holds(&plan));
        let all = open.candidates();
        all.iter().position(fits).unwrap_or(all.len())
    }

    /// `config` with candidate `place`.
    fn take(
        &self,
        mut config: EngineConfig,
        open: &OpenBatch,
        place: usize,
    ) -> Result<EngineConfig> {
        let all = open.candidates();
        let Some(&sizes) = all.get(place) else { return Err(self.none_fits(open)) };
        let next = place.checked_sub(1).map(|larger| all[larger]);
        let next =
            next.map(|larger| -> Result<_> { Ok((larger.0, self.plan(larger)?.device.peak())) });
        (config.micro_batch_size, config.gradient_accumulation_steps) = sizes;
        config.batch_choice = BatchChoice::Fitted(FittedBatch {
            open: *open,
            tokens: self.whole.workload.tokens,
            needs: self.plan(sizes)?.device.peak(),
            there: self.budget.bytes,
            next: next.transpose()?,
            is_kept: false,
        });
        Ok(config)
    }

    fn none_fits(&self, open: &OpenBatch) -> Error {
        let smallest = open.candidates().last().copied().unwrap_or((1, 1));
        let tokens = self.whole.workload.tokens;
        let message = match self.plan(smallest) {
            Ok(plan) => format!(
                "no micro batch fits: {} of {tokens} tokens would need {} MiB, and {} MiB may be used \
                 of the memory that is free",
                counted(smallest.0),
                plan.device.peak().max(1) >> 20,
                self.budget.bytes >> 20,
            ),
            Err(e) => return e,
        };
        Error::new(Code::Memory, message).option("micro_batch_size").hint(open.remedy())
    }
}

fn counted(rows: usize) -> String {
    if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") }
}

/// The error of a training whose memory nobody can tell.
fn unplanned(e: &Error) -> Error {
    let message = format!("`micro_batch_size: \"auto\"` needs a plan: {}", e.message());
    Error::new(e.code(), message)
        .option("micro_batch_size")
        .hint("write the number of rows, such as micro_batch_size: 4")
}

impl Engine {
    /// Goes on with the micro batch of a checkpoint, where this engine's was chosen by its memory and
    /// the checkpoint's, `saved`, is smaller: the training is then cut as before. Returns its rows.
    pub fn keep_batch(&mut self, saved: Option<usize>) -> Option<usize> {
        let BatchChoice::Fitted(fitted) = &mut self.config.batch_choice else { return None };
        let rows = saved.filter(|&rows| rows < self.config.micro_batch_size)?;
        let accumulation = fitted.open.with(rows)?;
        fitted.is_kept = true;
        self.config.micro_batch_size = rows;
        self.config.gradient_accumulation_steps = accumulation;
        self.gradients.set_accumulates(accumulation > 1);
        Some(rows)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::{
        config::{BatchSizes, MicroBatchSize},
        dist::Exchange,
        model::tiny_gpt2,
    };

    fn model() -> Rc<Model> {
        let sizes = [("vocab_size", 512), ("n_positions", 64), ("n_embd", 64), ("n_layer", 2)];
        Rc::new(Model::outline(&tiny_gpt2(&sizes, 0.0, true), Device::Cpu).unwrap())
    }

    fn open(train: Option<usize>, accumulation: Option<usize>) -> EngineConfig {
        let sizes = BatchSizes {
            train_batch_size: train,
            micro_batch_size: Some(MicroBatchSize::Auto),
            gradient_accumulation_steps: accumulation,
        };
        let batch_choice = sizes.resolve(1).unwrap().choice;
        EngineConfig { batch_choice, ..crate::engine::config(None) }
    }

    fn within(bytes: u64, config: EngineConfig, rows: &RowShape) -> Result<EngineConfig> {
        let budget = Budget { device: Device::Cpu, bytes, host: None };
        fit_within(&model(), config, (rows, 1), budget)
    }

    fn fitted(config: &EngineConfig) -> FittedBatch {
        match &config.batch_choice {
            BatchChoice::Fitted(fitted) => *fitted,
            other => panic!("{other:?}"),
        }
    }

    /// The plan of the size that is taken is within the memory, and that of twice the size is not.
    #[test]
    fn the_largest_power_of_two_that_fits_is_taken() {
        for mib in [8, 16, 64] {
            let config = within(mib << 20, open(None, None), &RowShape::default()).unwrap();
            let FittedBatch { needs, there, next, tokens, .. } = fitted(&config);
            assert!(config.micro_batch_size.is_power_of_two());
            let (twice, would_need) = next.unwrap();
            assert_eq!((there, tokens, twice), (mib << 20, 64, 2 * config.micro_batch_size));
            assert!(needs <= there && there < would_need, "{needs} {there} {would_need}");
        }
    }

    #[test]
    fn shorter_rows_and_a_larger_memory_give_more() {
        let rows = |mib: u64, tokens| {
            let shape = RowShape { tokens, ..RowShape::default() };
            within(mib << 20, open(None, None), &shape).unwrap().micro_batch_size
        };
        assert!(rows(16, None) < rows(64, None) && rows(16, None) < rows(16, Some(16)));
        assert_eq!(rows(1 << 20, None), 1024);
    }

    /// Three ranks with different memories take what the smallest has room for, and where one has none
    /// no rank trains.
    #[test]
    fn all_ranks_take_what_fits_on_each() {
        let on_ranks = |mib: [u64; 3]| {
            let exchange = Exchange::new(3, 1);
            let rank = |number: usize| -> Result<usize> {
                let group = ProcessGroup::in_process(&exchange, number, Device::Cpu)?;
                let config = open(None, None);
                let BatchChoice::Open(open) = config.batch_choice else { panic!("it is open") };
                let budget = Budget { device: Device::Cpu, bytes: mib[number] << 20, host: None };
                let rows = &RowShape::default();
                let own = Candidates::new(&model(), &config, (rows, 3), budget);
                Ok(agreed(own, config, &open, &group)?.micro_batch_size)
            };
            let rank_of = &rank;
            thread::scope(|scope| {
                let ranks: Vec<_> = (0..3).map(|i| scope.spawn(move || rank_of(i))).collect();
                ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Vec<_>>()
            })
        };
        let rows = |all: Vec<Result<usize>>| all.into_iter().collect::<Result<Vec<_>>>().unwrap();
        let alone = rows(on_ranks([16; 3]))[0];
        assert_eq!(rows(on_ranks([64, 16, 256])), [alone; 3]);
        assert!(on_ranks([64, 1, 256]).iter().all(Result::is_err));
    }

    #[test]
    fn the_other_sizes_are_respected() {
        let none = &RowShape::default();
        let config = within(1 << 40, open(Some(24), None), none).unwrap();
        assert_eq!((config.micro_batch_size, config.gradient_accumulation_steps), (8, 3));
        assert_eq!(fitted(&config).next, None);
        let config = within(1 << 40, open(Some(24), Some(2)), none).unwrap();
        assert_eq!((config.micro_batch_size, config.gradient_accumulation_steps), (12, 2));
        let e = within(4 << 20, open(Some(4096), Some(1)), none).unwrap_err();
        assert_eq!(e.code(), Code::Memory);
        assert!(e.message().contains("4096 rows of 64 tokens"), "{}", e.message());
        assert!(e.hints()[0].contains("gradient_accumulation_steps"), "{:?}", e.hints());
    }

    /// Of ranks that share the layers each has a part, so that more rows fit; with parts of the tokens
    /// no fewer.
    #[test]
    fn ranks_that_share_layers_have_room_for_more() {
        let rows = |autotp_size, sequence_parallel| {
            let mut config = open(None, None);
            let of_mesh = &mut config.mesh.tensor_parallel;
            (of_mesh.autotp_size, of_mesh.sequence_parallel) = (autotp_size, sequence_parallel);
            within(32 << 20, config, &RowShape::default()).unwrap().micro_batch_size
        };
        assert!(rows(2, false) > rows(1, false));
        assert!(rows(2, true) >= rows(2, false));
    }

    #[test]
    fn a_training_that_is_not_planned_is_refused_with_what_to_write() {
        let mut config = open(None, None);
        config.mesh.tensor_parallel.autotp_size = 3;
        let e = within(1 << 40, config, &RowShape::default()).unwrap_err();
        assert!(e.message().contains("needs a plan"), "{}", e.message());
        assert!(e.message().contains("3 does not divide the 2 attention heads"), "{}", e.message());
        assert!(e.hints()[0].contains("micro_batch_size: 4"));
    }
}
