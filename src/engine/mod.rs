//! The training engine: forward, backward, step.
//!
//! The engine, not autograd, walks the layers (`stage.rs`): each runs on a detached input, and the
//! backward pass goes from the last to the first, one layer's graph at a time, adding to flat
//! gradients (`gradients.rs`). ZeRO, offload and checkpointing are therefore lines in one visible loop.
//!
//! The losses of a global batch are averaged as `accumulation.rs` says, whose normalizer is corrected
//! once, in [`Engine::step`].

mod accumulation;
mod adapter_base;
mod attention_record;
mod auto_precision;
mod averaged;
mod averages;
mod evaluate;
mod evaluation;
mod exact;
mod facts;
pub mod fitting;
mod gradients;
mod host_gradients;
mod layer_ranks;
mod layout;
mod learning_rate;
mod loss_scaler;
mod master_weights;
mod memory;
mod mesh_limits;
mod observe;
mod offload;
#[cfg(test)]
mod operations;
mod outliers;
mod overflow_check;
mod pace;
mod parameter_shards;
mod parameter_slices;
mod passes;
mod pending;
mod pipe;
mod placement;
pub mod plan;
pub mod plan_meshes;
mod plan_sent;
pub mod plan_stages;
pub mod plan_time;
mod schedule;
mod served;
mod stage;
mod state;
mod state_file;
mod state_tensors;
mod step;
mod step_memory;
mod step_moments;
mod step_peak;
mod stop;
mod timers;
mod totals;
mod trace;
mod train_batch;
mod train_state;
mod trainable;
mod unit_states;

use std::rc::Rc;

pub use crate::model::ModuleProfile;

use self::{
    accumulation::Accumulation, auto_precision::fit_precision, averages::Averages,
    gradients::Gradients, layer_ranks::TensorGroup, master_weights::MasterWeights,
    mesh_limits::check_mesh, offload::Offload, outliers::Outliers, overflow_check::OverflowCheck,
    pace::Pace, pending::Pending, pipe::Pipe, placement::Placement, stage::check_documents,
    stop::StopSignal, timers::Timers, trainable::optimizer_plan, unit_states::UnitStates,
};
pub use self::{
    adapter_base::adapter_base,
    evaluation::Evaluation,
    exact::Exact,
    facts::{ChosenBatch, EngineFacts},
    loss_scaler::LossScalerState,
    memory::MemoryUse,
    mesh_limits::{check_division, check_own_layers},
    outliers::{OutlierState, Skip},
    plan_sent::SentBytes,
    served::exported,
    timers::PhaseTimes,
    trace::Tracer,
    train_batch::BatchWatch,
    train_state::{RecipeRecord, TrainState},
    trainable::trained,
};
use crate::{
    bridge::memory::{self as ledger, Ledger},
    config::{BatchChoice, EngineConfig, optimizer::check_momentum},
    data::Batch,
    dist::{Mesh, ProcessGroup, ShardSpec},
    error::{Code, Error, Result},
    fs::Place,
    model::{LossFunction, Model, Pipeline},
    optim::{GroupRates, Optimizer, StateForm, StateName, StepRates},
    tensor::{Gpu, check_numerics, compute_with, device_name},
    tensor_parallel::Sharing,
};

/// One model with its optimizer, on one rank of a group.
pub struct Engine {
    model: Rc<Model>,
    mesh: Rc<Mesh>,
    placement: Placement,
    pipe: Rc<Pipe>,
    config: EngineConfig,
    /// The loss, where it is not the cross-entropy of the next token.
    loss: Option<LossFunction>,
    master_weights: MasterWeights,
    states: UnitStates,
    averages: Averages,
    optimizer: Optimizer,
    /// The optimizer's state tensors of the whole model.
    state_names: Vec<StateName>,
    gradients: Gradients,
    overflow_check: OverflowCheck,
    outliers: Outliers,
    accumulation: Accumulation,
    pending: Option<Pending>,
    global_step: u64,
    global_samples: u64,
    last_step: Option<StepOutcome>,
    /// The learning rate that was set in place of the optimizer's.
    own_lr: Option<f64>,
    timers: Timers,
    phase_times: Option<PhaseTimes>,
    flops_profile: Option<ModuleProfile>,
    /// The length of the last micro batch's rows.
    row_tokens: i64,
    /// The speed of the recent steps.
    pace: Pace,
    /// The properties of the device, where they are known.
    gpu: Option<Gpu>,
    observers: Vec<Box<dyn Observer>>,
    /// Whether what is done now will be undone.
    is_trial: bool,
    stop: StopSignal,
    /// Set while state is changed, and left set by an error in between.
    is_inconsistent: bool,
    /// The bytes that the engine allocates, by kind.
    ledger: Rc<Ledger>,
}

/// Is told of each optimizer step, and of each evaluation.
pub trait Observer {
    /// A step was done: [`Engine::last_step`] says what it was like.
    fn on_step(&mut self, engine: &Engine) -> Result<()>;

    /// An evaluation was made.
    fn on_evaluation(&mut self, _engine: &Engine, _evaluation: &Evaluation) -> Result<()> {
        Ok(())
    }
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
    /// The model's floating-point operations, over all ranks: those of [`Model::flops_per_token`] for
    /// rows as long as this rank's last.
    pub flops: f64,
    /// The loss scale of the backward pass; only with fp16.
    pub loss_scale: Option<f64>,
    /// The reason why nothing was applied, where nothing was.
    pub skipped: Option<Skip>,
}

impl Engine {
    /// An engine for `model` as one rank of `group`, of a program whose paths nobody judges.
    /// [`Engine::model`] takes the place of `model`, whose parameters it may take.
    pub fn new(model: Rc<Model>, group: Rc<ProcessGroup>, config: EngineConfig) -> Result<Self> {
        Self::new_in(&Place::unguarded(""), model, group, config)
    }

    /// [`Engine::new`] where paths of `config` start from `work_dir`, whose guard judges them.
    pub fn new_in(
        work_dir: &Place,
        model: Rc<Model>,
        group: Rc<ProcessGroup>,
        config: EngineConfig,
    ) -> Result<Self> {
        let config = fit_precision(config, &group)?;
        let precision = config.precision;
        if let BatchChoice::Open(_) = config.batch_choice {
            bail!(Code::CallOrder, "the micro batch is open: `fit_batch` chooses it");
        }
        check_momentum(&config.optimizer, &config.scheduler)?;
        let model = trained(&model, &config)?;
        if config.monitor.flops_profiler.is_some() {
            model.measure()?;
        }
        check_numerics(config.numerics, model.device())?;
        let mesh_shape = config.mesh.shape(group.world_size())?;
        let placement = Placement::of(&model, config.mesh.pipeline)?;
        check_mesh(&model, &config)?;
        if let Some(checkpointing) = config.activation_checkpointing {
            checkpointing.check(model.blocks())?;
        }
        let mesh = Rc::new(Mesh::new(&group, mesh_shape)?);
        let sharing = (mesh_shape.tp > 1).then(|| Sharing {
            ranks: Rc::new(TensorGroup(Rc::clone(mesh.tp()))),
            sequence_parallel: config.mesh.tensor_parallel.sequence_parallel,
        });
        model.cut(placement.layers(mesh.place().pp), sharing)?;
        let (dp, world_size) = (mesh.dp(), mesh.dp().world_size());
        let shard = config.zero.shards_optimizer(world_size).then(|| ShardSpec::of(dp));
        let plan = optimizer_plan(&model, &config, world_size, shard)?;
        let state_names = whole_names(&model, plan.state_names());
        let here = 0..model.trainable_units().len();
        let here: Vec<_> = here.map(|i| model.unit_number(i)).collect();
        let plan = plan.keeping(&here);
        let numels: Vec<_> =
            model.trainable_units().iter().map(|unit| unit.numel() as u64).collect();
        let offload = Offload::new(&config, world_size, (work_dir, model.device()), &numels)?;
        plan::check_memory(&model, &config, world_size)?;
        let sharers = placement.sharers(&mesh, &model)?;
        let pipe = Rc::new(Pipe::new(&mesh, &placement));
        let ledger = Rc::new(Ledger::new(model.device())?);
        let optimizer = Optimizer::new(plan);
        let mut states = UnitStates::new(&offload, &optimizer, config.ema.is_some())?;
        // Last: it changes the model, which a failure should leave as it is.
        let zero = &config.zero;
        let master_weights =
            MasterWeights::begin(&model, dp, &precision, zero, &offload, |i, master| {
                let _counting = ledger.open(ledger::Kind::Buffers)?;
                states.add(&optimizer, i, master)
            })?;
        master_weights.count_on(&ledger);
        if !mesh_shape.is_data_parallel() {
            model.set_pipeline(Rc::clone(&pipe) as Rc<dyn Pipeline>);
        }
        let of_ranks = (Rc::clone(dp), sharers);
        let gradients = Gradients::new(model.units(), of_ranks, &config, &offload);
        let timers = Timers::new(model.device(), config.monitor.times_phases());
        compute_with(config.numerics)?;
        let gpu = Gpu::of(model.device());
        Ok(Self {
            model,
            mesh,
            placement,
            pipe,
            overflow_check: OverflowCheck::new(precision.loss_scale),
            averages: Averages::new(config.ema),
            outliers: Outliers::new(config.outliers),
            config,
            loss: None,
            master_weights,
            states,
            optimizer,
            state_names,
            gradients,
            accumulation: Accumulation::default(),
            pending: None,
            global_step: 0,
            global_samples: 0,
            last_step: None,
            own_lr: None,
            timers,
            phase_times: None,
            flops_profile: None,
            row_tokens: 0,
            pace: Pace::default(),
            gpu,
            observers: Vec::new(),
            is_trial: false,
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
        self.mesh.world()
    }

    /// The mesh of these ranks.
    pub fn mesh(&self) -> &Rc<Mesh> {
        &self.mesh
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

    /// The loss scale of the next step; only with fp16.
    pub fn loss_scale(&self) -> Option<f64> {
        self.overflow_check.scaler.shown()
    }

    /// Steps that were skipped, because a gradient was not finite or as outliers; [`Engine::global_step`] counts
    /// them too, the schedule does not.
    pub fn skipped_steps(&self) -> u64 {
        self.overflow_check.skipped_steps
    }

    /// Makes a stop because of a loss or gradient that is not finite save the rows of its batch
    /// into `dir`, as an Arrow file.
    pub fn save_bad_batches(&mut self, dir: impl Into<Place>) {
        let suffix = match self.group().world_size() {
            1 => String::new(),
            _ => format!("-rank-{}", self.group().rank()),
        };
        self.overflow_check.save_bad_batches(dir.into(), suffix);
    }

    fn rates(&self) -> Result<StepRates> {
        let (betas, applied) = (self.config.optimizer.betas(), self.optimizer.applied_steps());
        Ok(StepRates { lr: self.lr()?, betas: self.config.scheduler.betas(betas, applied)? })
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
                "the batch is on {} and the model on {}",
                device_name(batch.input_ids().device()),
                device_name(self.model.device())
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
        Err(Error::new(Code::Data, "the labels of a row are not those of its tokens")
            .hint("these are pairs of texts, for a model with an encoder such as T5; for a model without one each token has a label, -100 where it is not to be learned"))
    }

    /// Gets ready to compute, as this engine does and another one may not.
    fn begin(&self) -> Result<()> {
        self.check_whole()?;
        self.check_trained("training")?;
        self.check_model()?;
        compute_with(self.config.numerics)
    }

    /// Refuses to train a model that the recipe has no more.
    fn check_model(&self) -> Result<()> {
        let Some(call) = self.model.replaced_by() else { return Ok(()) };
        let message = format!(
            "this engine trains a model whose place another one took: `{call}` was called after init_engine"
        );
        Err(Error::new(Code::CallOrder, message)
            .hint(format!("call `{call}` before init_engine, or make a new engine for the model")))
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

/// The names with the shapes of whole parameters.
fn whole_names(model: &Model, mut names: Vec<StateName>) -> Vec<StateName> {
    for state in &mut names {
        let unit = state.place.0;
        let index = model.all_units()[unit].offsets().iter().position(|&at| at == state.offset);
        if let Some(index) = index.filter(|_| state.form != StateForm::Scales) {
            state.shape = model.whole_units()[unit].specs()[index].shape.clone();
        }
    }
    names
}

/// A training in float32 with AdamW, which checkpoints `every` n-th block.
#[cfg(test)]
fn config(every: Option<usize>) -> EngineConfig {
    use crate::config::{
        ActivationCheckpointing, Dtype, LossAverage, MeshConfig, MonitorConfig, Numerics,
        OptimizerConfig, OutlierConfig, PrecisionConfig, Schedule, TrainableConfig, ZeroConfig,
        optimizer::{AdamConfig, Algorithm},
    };
    EngineConfig {
        micro_batch_size: 1,
        gradient_accumulation_steps: 1,
        batch_choice: BatchChoice::Given,
        gradient_clipping: Some(1.0),
        loss_average: LossAverage::Tokens,
        ema: None,
        outliers: OutlierConfig::default(),
        precision: PrecisionConfig::new(Dtype::Fp32),
        numerics: Numerics::default(),
        optimizer: OptimizerConfig::new(Algorithm::Adam(AdamConfig::default()), 1e-3),
        trainable: TrainableConfig::default(),
        scheduler: Schedule::Constant,
        activation_checkpointing: every
            .map(|every| ActivationCheckpointing { every, cpu_checkpointing: false }),
        sparse_attention: None,
        tiled_mlp: None,
        zero: ZeroConfig::default(),
        mesh: MeshConfig::default(),
        seed: 1,
        monitor: MonitorConfig::default(),
    }
}
