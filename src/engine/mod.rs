//! The training engine: forward, backward, step.
//!
//! The engine, not autograd, walks the layers (`stage.rs`): each runs on a detached input, and the
//! backward pass goes from the last to the first, one layer's graph at a time, adding to flat
//! gradients (`gradients.rs`). ZeRO, offload and checkpointing are therefore lines in one visible loop.
//!
//! The losses of a global batch are averaged as `accumulation.rs` says, whose normalizer is corrected
//! once, in [`Engine::step`].

mod accumulation;
mod evaluate;
mod gradients;
mod host_gradients;
mod layout;
mod loss_scaler;
mod master_weights;
mod memory;
mod observe;
mod offload;
#[cfg(test)]
mod operations;
mod overflow_check;
mod parameter_shards;
mod parameter_slices;
pub mod plan;
mod stage;
mod state;
mod state_file;
mod step;
mod stop;
mod timers;
mod totals;
mod trace;
mod trainable;
mod unit_states;

use std::rc::Rc;

pub use crate::model::ModuleProfile;

use self::{
    accumulation::Accumulation,
    gradients::Gradients,
    master_weights::MasterWeights,
    offload::Offload,
    overflow_check::OverflowCheck,
    stage::{Activations, Hooks, Pass, Seeds, check_documents, masks_of, targets_of},
    stop::StopSignal,
    timers::{StepPhase, Timers},
    trainable::optimizer_plan,
    unit_states::UnitStates,
};
pub use self::{
    evaluate::Evaluation,
    loss_scaler::LossScalerState,
    memory::MemoryUse,
    state::{RecipeRecord, TrainState},
    timers::PhaseTimes,
    trace::Tracer,
    trainable::trained,
};
use crate::{
    bridge::{
        memory::{self as ledger, Ledger},
        trace::range,
    },
    config::{EngineConfig, LossAverage, optimizer::check_momentum},
    data::{Batch, BatchRows},
    dist::{ProcessGroup, ShardSpec},
    error::{Code, Error, Result},
    fs::Place,
    model::{LossFunction, Model, Sink, record},
    optim::{GroupRates, Optimizer, StepRates},
    tensor::{Gpu, Kind, Tensor, check_numerics, compute_with, guard},
};

/// Tokens of a row that losses are averaged over before the rows are known.
const USUAL_TOKENS: i64 = 2048;

/// One model with its optimizer, on one rank of a group.
pub struct Engine {
    model: Rc<Model>,
    group: Rc<ProcessGroup>,
    config: EngineConfig,
    /// The loss, where it is not the cross-entropy of the next token.
    loss: Option<LossFunction>,
    master_weights: MasterWeights,
    states: UnitStates,
    optimizer: Optimizer,
    gradients: Gradients,
    overflow_check: OverflowCheck,
    accumulation: Accumulation,
    pending: Option<Pending>,
    global_step: u64,
    global_samples: u64,
    last_step: Option<StepOutcome>,
    timers: Timers,
    phase_times: Option<PhaseTimes>,
    flops_profile: Option<ModuleProfile>,
    /// The length of the last micro batch's rows.
    row_tokens: i64,
    /// The properties of the device, where they are known.
    gpu: Option<Gpu>,
    observers: Vec<Box<dyn Observer>>,
    stop: StopSignal,
    /// Set while state is changed, and left set by an error in between.
    is_inconsistent: bool,
    /// The bytes that the engine allocates, by kind.
    ledger: Ledger,
}

/// Is told of each optimizer step.
pub trait Observer {
    /// A step was done: [`Engine::last_step`] says what it was like.
    fn on_step(&mut self, engine: &Engine) -> Result<()>;
}

/// The outcome of an optimizer step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepOutcome {
    /// The mean loss over the target tokens of the global batch.
    pub loss: f64,
    /// The norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The learning rate that the step used.
    pub lr: f64,
    /// The averages' decay that the step used.
    pub betas: (f64, f64),
    /// Tokens of the global batch, padding left out.
    pub tokens: u64,
    /// The loss scale of the backward pass; only with fp16.
    pub loss_scale: Option<f64>,
    /// Whether a gradient was not finite, so that nothing was applied.
    pub skipped: bool,
}

/// A forward pass that waits for its backward pass.
struct Pending {
    loss: Tensor,
    activations: Activations,
    loss_sum: Tensor,
    targets: i64,
    tokens: i64,
    rows: BatchRows,
}

impl Engine {
    /// An engine for `model` as one rank of `group`. [`Engine::model`] takes the place of `model`, whose
    /// parameters it may take.
    pub fn new(model: Rc<Model>, group: Rc<ProcessGroup>, config: EngineConfig) -> Result<Self> {
        let precision = config.precision;
        check_momentum(&config.optimizer, &config.scheduler)?;
        let model = trained(&model, &config)?;
        if config.monitor.flops_profiler.is_some() {
            model.measure()?;
        }
        check_numerics(config.numerics, model.device())?;
        let world_size = group.world_size();
        let shard = config.zero.shards_optimizer(world_size).then(|| ShardSpec::of(&group));
        let plan = optimizer_plan(&model, &config, world_size, shard)?;
        let offload = Offload::new(&config, world_size, model.device())?;
        plan::check_memory(&model, &config, world_size)?;
        if let Some(checkpointing) = config.activation_checkpointing {
            checkpointing.check(model.blocks())?;
        }
        let ledger = Ledger::new(model.device())?;
        let optimizer = Optimizer::new(plan);
        let mut states = UnitStates::new(&offload, &optimizer)?;
        // Last: it changes the model, which a failure should leave as it is.
        let zero = &config.zero;
        let master_weights =
            MasterWeights::begin(&model, &group, &precision, zero, &offload, |i, master| {
                let _counting = ledger.open(ledger::Kind::Buffers)?;
                states.add(&optimizer, i, master)
            })?;
        let gradients = Gradients::new(model.units(), Rc::clone(&group), &config, &offload);
        let timers = Timers::new(model.device(), config.monitor.times_phases());
        compute_with(config.numerics)?;
        let gpu = Gpu::of(model.device());
        Ok(Self {
            model,
            group,
            overflow_check: OverflowCheck::new(precision.loss_scale),
            config,
            loss: None,
            master_weights,
            states,
            optimizer,
            gradients,
            accumulation: Accumulation::default(),
            pending: None,
            global_step: 0,
            global_samples: 0,
            last_step: None,
            timers,
            phase_times: None,
            flops_profile: None,
            row_tokens: 0,
            gpu,
            observers: Vec::new(),
            stop: StopSignal::default(),
            is_inconsistent: false,
            ledger,
        })
    }

    /// Trains with `loss` from now on, and not with the cross-entropy of the next token.
    pub fn set_loss(&mut self, loss: LossFunction) {
        self.loss = Some(loss);
    }

    /// The model that is trained: the one that was given, or one over its parameters of which some
    /// are frozen.
    pub fn model(&self) -> &Rc<Model> {
        &self.model
    }

    /// The settings.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// The ranks that train together.
    pub fn group(&self) -> &Rc<ProcessGroup> {
        &self.group
    }

    /// Optimizer steps done.
    pub fn global_step(&self) -> u64 {
        self.global_step
    }

    /// Micro batches of the step that has begun.
    pub fn micro_step(&self) -> usize {
        self.accumulation.micro_steps()
    }

    /// The outcome of the last optimizer step; `None` before the first of this process.
    pub fn last_step(&self) -> Option<StepOutcome> {
        self.last_step
    }

    /// The rates of the last step for each group of parameters; none before the first.
    pub fn group_rates(&self) -> Vec<GroupRates> {
        self.last_step.map_or_else(Vec::new, |StepOutcome { lr, betas, .. }| {
            self.optimizer.group_rates(StepRates { lr, betas })
        })
    }

    /// The learning rate of the next step.
    pub fn lr(&self) -> Result<f64> {
        self.config.scheduler.lr(self.config.optimizer.lr, self.optimizer.applied_steps())
    }

    /// The loss scale of the next step; only with fp16.
    pub fn loss_scale(&self) -> Option<f64> {
        self.overflow_check.scaler.shown()
    }

    /// Steps that were skipped because a gradient was not finite; [`Engine::global_step`] counts
    /// them too, the schedule does not.
    pub fn skipped_steps(&self) -> u64 {
        self.overflow_check.skipped_steps
    }

    /// Makes a stop because of a loss or gradient that is not finite save the rows of its batch
    /// into `dir`, as an Arrow file.
    pub fn save_bad_batches(&mut self, dir: impl Into<Place>) {
        let suffix = match self.group.world_size() {
            1 => String::new(),
            _ => format!("-rank-{}", self.group.rank()),
        };
        self.overflow_check.save_bad_batches(dir.into(), suffix);
    }

    fn rates(&self) -> Result<StepRates> {
        let (betas, applied) = (self.config.optimizer.betas(), self.optimizer.applied_steps());
        Ok(StepRates { lr: self.lr()?, betas: self.config.scheduler.betas(betas, applied)? })
    }

    /// The mean loss over the target tokens of `batch`, float32 scalar, with all that
    /// [`Engine::backward`] needs. NaN where the batch has no target, as in PyTorch.
    pub fn forward(&mut self, batch: &Batch) -> Result<Tensor> {
        self.begin()?;
        if self.model.is_adapter_off() {
            let message = "`disable_adapter` leaves nothing of the model to be trained";
            return Err(Error::new(Code::CallOrder, message)
                .hint("use `model.logits` or `engine.evaluate` in it"));
        }
        // Frees the activations of a forward pass that was not used.
        self.pending = None;
        self.check_batch(batch)?;
        self.row_tokens = batch.input_ids().size()[1];
        if self.accumulation.micro_steps() == self.config.gradient_accumulation_steps {
            return Err(step_is_due(self.accumulation.micro_steps()));
        }
        self.timers.discard();
        self.timers.start(StepPhase::Forward)?;
        let _range = range("forward");
        let recorder = self.recorder();
        let recorder = recorder.as_ref();
        let _counting = self.ledger.open(ledger::Kind::Buffers)?;
        let pending = guard("forward", || {
            let targets = targets_of(&self.model, batch)?;
            let tokens = batch.stats()?.tokens;
            let grad_kind = self.config.precision.grad_accum_dtype.into();
            let pass = Pass {
                checkpointing: self.config.activation_checkpointing,
                seeds: self.seeds(),
                loss_normalizer: self.loss_normalizer(targets.count())
                    / self.overflow_check.scaler.scale(),
                sink: Sink::new(self.model.units(), grad_kind),
                masks: masks_of(&self.model, batch)?,
            };
            let activations = record(recorder, Model::SCOPE, || {
                let hooks = Hooks { loss: self.loss.as_ref(), recorder, stop: &self.stop };
                Activations::forward(&self.model, batch, &targets, pass, hooks)
            })?;
            let (loss_sum, targets) = activations.loss();
            let loss = (&loss_sum / targets as f64).to_kind(Kind::Float);
            Ok(Pending { loss, activations, loss_sum, targets, tokens, rows: batch.source() })
        })?;
        self.timers.stop()?;
        self.timers.add_data(batch.load_time);
        self.flops_profile = recorder.and_then(|recorder| {
            let size = batch.input_ids().size();
            self.model.profile(size[0], size[1], recorder)
        });
        let loss = pending.loss.shallow_clone();
        self.pending = Some(pending);
        Ok(loss)
    }

    /// Runs the backward pass of the micro batch whose `loss` [`Engine::forward`] returned, and adds
    /// to the gradients.
    ///
    /// # Errors
    /// [`Code::CallOrder`] for any other tensor, or a second time; memory is exhausted.
    pub fn backward(&mut self, loss: &Tensor) -> Result<()> {
        self.begin()?;
        let Some(pending) = self.pending.take() else {
            return Err(Error::new(Code::CallOrder, "backward without a forward before it")
                .hint("call engine.forward(batch) first, once for each backward"));
        };
        if loss.data_ptr() != pending.loss.data_ptr() {
            self.pending = Some(pending);
            return Err(Error::new(
                Code::CallOrder,
                "backward needs the loss that the last engine.forward(batch) returned",
            ));
        }
        self.timers.start(StepPhase::Backward)?;
        let _range = range("backward");
        let _counting = self.ledger.open(ledger::Kind::Buffers)?;
        self.is_inconsistent = true;
        let (model, gradients) = (&self.model, &mut self.gradients);
        let micro_steps = self.accumulation.micro_steps() + 1;
        gradients.begin(micro_steps == self.config.gradient_accumulation_steps);
        let walk = || pending.activations.backward(model, gradients, &self.stop);
        if let Err(e) = guard("backward", walk) {
            if e.code() == Code::Interrupted {
                self.forget_step();
            }
            return Err(e);
        }
        self.is_inconsistent = false;
        self.timers.stop()?;
        let loss = (pending.loss_sum, pending.targets);
        self.accumulation.add(self.config.loss_average, loss, pending.tokens, pending.rows)
    }

    /// The loss normalizer of a micro batch with this many targets.
    fn loss_normalizer(&self, targets: i64) -> f64 {
        match self.config.loss_average {
            LossAverage::Tokens => self.total_normalizer(),
            LossAverage::MicroBatches => self.total_normalizer() * targets.max(1) as f64,
        }
    }

    /// The weight of a whole step before it is known. For tokens any number would do; this one is
    /// the same however the global batch is cut.
    fn total_normalizer(&self) -> f64 {
        let micro_batches =
            (self.config.gradient_accumulation_steps * self.group.world_size()) as f64;
        let positions = self.model.facts().max_positions.unwrap_or(USUAL_TOKENS);
        let tokens = (positions.min(USUAL_TOKENS) - 1).max(1) as f64;
        match self.config.loss_average {
            LossAverage::Tokens => micro_batches * self.config.micro_batch_size as f64 * tokens,
            LossAverage::MicroBatches => micro_batches,
        }
    }

    fn seeds(&self) -> Seeds {
        Seeds::new(
            self.config.seed,
            self.global_step,
            self.accumulation.micro_steps() as u64,
            self.group.rank() as u64,
        )
    }

    fn check_batch(&self, batch: &Batch) -> Result<()> {
        let (rows, expected) = (batch.input_ids().size()[0], self.config.micro_batch_size);
        if rows > expected as i64 {
            return Err(Error::new(
                Code::Shape,
                format!("the batch has {rows} rows, the engine's micro_batch_size is {expected}"),
            )
            .hint("give loader and init_engine the same micro_batch_size"));
        }
        if batch.input_ids().device() != self.model.device() {
            bail!(
                Code::Shape,
                "the batch is on {:?} and the model on {:?}",
                batch.input_ids().device(),
                self.model.device()
            );
        }
        self.check_ids(batch).map_err(|e| {
            let place = format!(
                "in the batch that begins at row {} of epoch {}",
                batch.first_row, batch.epoch
            );
            e.hint(place)
        })
    }

    fn check_ids(&self, batch: &Batch) -> Result<()> {
        let (facts, model) = (batch.stats()?, &self.model);
        model.check_length(batch.input_ids().size()[1])?;
        model.check_ids(facts.lowest_id, facts.highest_id)?;
        check_documents(model, batch)?;
        if model.facts().is_seq2seq() {
            if !facts.has_labels {
                return Err(Error::new(Code::Data, "the rows have no labels: a model with an encoder learns a second text")
                    .hint("name its column with .tokenize(tok, #{ text_target: \"...\" }), or give rows a column labels"));
            }
            return model.check_labels(facts.label_range.1);
        }
        if facts.is_aligned {
            return model.check_labels(facts.label_range.1);
        }
        Err(Error::new(Code::Data, "labels and input_ids of a row differ in number")
            .hint("these are pairs of texts, for a model with an encoder such as T5; for a model without one each token has a label, -100 where it is not to be learned"))
    }

    /// Gets ready to compute, as this engine does and another one may not.
    fn begin(&self) -> Result<()> {
        self.check_whole()?;
        compute_with(self.config.numerics)
    }

    /// Refuses to go on after an error left gradients or parameters half changed.
    fn check_whole(&self) -> Result<()> {
        if !self.is_inconsistent {
            return Ok(());
        }
        Err(Error::new(Code::CallOrder, "this engine stopped in the middle of an earlier call")
            .hint("load a checkpoint into it, or make a new one"))
    }
}

fn step_is_due(micro_steps: usize) -> Error {
    Error::new(
        Code::CallOrder,
        format!("{micro_steps} micro batches are accumulated and step was not called"),
    )
    .hint("call engine.step() after each engine.backward(loss); it applies the gradients when they are due")
}

/// A training in float32 with AdamW, which checkpoints `every` n-th block.
#[cfg(test)]
fn config(every: Option<usize>) -> EngineConfig {
    use crate::config::{
        ActivationCheckpointing, Dtype, MonitorConfig, Numerics, OptimizerConfig, PrecisionConfig,
        Schedule, TrainableConfig, ZeroConfig,
        optimizer::{AdamConfig, Algorithm},
    };
    EngineConfig {
        micro_batch_size: 1,
        gradient_accumulation_steps: 1,
        gradient_clipping: Some(1.0),
        loss_average: LossAverage::Tokens,
        precision: PrecisionConfig::new(Dtype::Fp32),
        numerics: Numerics::default(),
        optimizer: OptimizerConfig::new(Algorithm::Adam(AdamConfig::default()), 1e-3),
        trainable: TrainableConfig::default(),
        scheduler: Schedule::Constant,
        activation_checkpointing: every
            .map(|every| ActivationCheckpointing { every, cpu_checkpointing: false }),
        zero: ZeroConfig::default(),
        seed: 1,
        monitor: MonitorConfig::default(),
    }
}
