//! The settings of an engine.

use super::{
    batch::{BatchChoice, BatchSizes, ResolvedBatch},
    ema::EmaConfig,
    mesh::MeshConfig,
    monitor::{MonitorConfig, MonitorOptions},
    numerics::Numerics,
    optimizer::{GivenOptimizer, OPTIMIZER_ROWS, OptimizerConfig},
    options::{Foreign, Kind, OptionTable, Options, ROW, Row, Switch, option_table, option_words},
    outliers::OutlierConfig,
    precision::{Dtype, PrecisionConfig},
    schedule::{LrFunction, SCHEDULER_ROWS, Schedule},
    sparse_attention::SparseAttention,
    trainable::TrainableConfig,
    zero::ZeroConfig,
};
use crate::error::{Code, Error, Result};

/// What an engine is made with; options of scripts have these names.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Rows in a batch of one rank.
    pub micro_batch_size: usize,
    /// Micro batches in an optimizer step.
    pub gradient_accumulation_steps: usize,
    /// How these two came about; while the micro batch is open, no engine can be made.
    pub batch_choice: BatchChoice,
    /// The number formats.
    pub precision: PrecisionConfig,
    /// How exactly libtorch computes.
    pub numerics: Numerics,
    /// The largest norm of the gradient, over all parameters; `None` leaves it as it is.
    pub gradient_clipping: Option<f64>,
    /// How the losses of a global batch become one.
    pub loss_average: LossAverage,
    /// How the weights are averaged; `None` is not at all.
    pub ema: Option<EmaConfig>,
    /// The steps that are skipped as outliers.
    pub outliers: OutlierConfig,
    /// The optimizer.
    pub optimizer: OptimizerConfig,
    /// The parameters that are trained.
    pub trainable: TrainableConfig,
    /// The learning rate over the steps.
    pub scheduler: Schedule,
    /// Which blocks keep only their input for the backward pass; `None` is no block.
    pub activation_checkpointing: Option<ActivationCheckpointing>,
    /// The blocks of keys that attention sees; `None` is all.
    pub sparse_attention: Option<SparseAttention>,
    /// How MLPs run over slices of tokens; `None` is over all at once.
    pub tiled_mlp: Option<TiledMlp>,
    /// What the replicas share out among them.
    pub zero: ZeroConfig,
    /// The mesh of the ranks.
    pub mesh: MeshConfig,
    /// The seed of dropout.
    pub seed: u64,
    /// What is timed, printed and logged.
    pub monitor: MonitorConfig,
}

option_table! {
    /// Blocks that keep only their input for the backward pass, which runs them once more (Chen et al.
    /// 2016).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct ActivationCheckpointing {
        /// every how many blocks one does so: the last of each group of this many, as in torchtitan's
        /// selective checkpointing
        #[option(default = 1, range = 1..)]
        pub every: usize,
        /// whether the kept inputs are in host memory until the backward pass, as in DeepSpeed
        #[option(default = false)]
        pub cpu_checkpointing: bool,
    }
}

impl ActivationCheckpointing {
    /// Refuses an `every` that none of `blocks` blocks is reached by.
    pub fn check(&self, blocks: usize) -> Result<()> {
        if self.every <= blocks {
            return Ok(());
        }
        let path = "activation_checkpointing.every";
        let message =
            format!("`{path}` must be at most the model's {blocks} blocks, found {}", self.every);
        Err(Error::new(Code::BadValue, message).option(path))
    }

    /// Whether block `i`, from 0, keeps only its input.
    pub fn applies_to(&self, i: usize) -> bool {
        (i + 1).is_multiple_of(self.every)
    }
}

option_table! {
    /// MLPs over slices of tokens, one after another, as DeepSpeed's TiledMLP.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct TiledMlp {
        /// slices of a micro batch; as many as make slices no longer than the model is wide where it is not
        /// given
        #[option(optional, range = 1..)]
        pub shards: Option<usize>,
    }
}

impl TiledMlp {
    /// The slices of so many tokens of hidden states so wide.
    pub fn of(&self, tokens: i64, width: i64) -> i64 {
        let by_width = (tokens + width - 1) / width.max(1);
        let shards = self.shards.map_or(by_width, |shards| shards as i64);
        shards.clamp(1, tokens.max(1))
    }
}

option_words! {
    /// The parts over which the loss of an optimizer step is averaged.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum LossAverage {
        /// The target tokens of the whole global batch: the result does not depend on how it is cut.
        Tokens = "tokens",
        /// The means of the micro batches, as in DeepSpeed: tokens of a micro batch with few targets
        /// count for more.
        MicroBatches = "micro_batches",
    }
}

option_table! {
    /// The options of an engine beside those that have files of their own.
    #[derive(Debug)]
    pub(super) struct EngineOptions {
        /// the number formats
        #[option(default = PrecisionConfig::new(Dtype::Fp32))]
        pub precision: PrecisionConfig,
        /// the largest norm of the gradient, over all parameters; 0 leaves it as it is
        #[option(default = 1.0, range = 0.0.., deepspeed = "gradient_clipping")]
        pub gradient_clipping: f64,
        /// how the losses of a global batch become one: the mean over its target tokens, or DeepSpeed's
        /// mean of the micro batches' means
        #[option(default = LossAverage::Tokens)]
        pub loss_average: LossAverage,
        /// whether blocks keep only their input for the backward pass, which runs them once more
        #[option(default = Switch(None))]
        pub activation_checkpointing: Switch<ActivationCheckpointing>,
        /// the blocks of keys that each block of queries sees, in training, evaluation and generation with this
        /// engine's model; true is DeepSpeed's default
        #[option(default = Switch(None))]
        pub sparse_attention: Switch<SparseAttention>,
        /// whether MLPs run over slices of tokens, one after another, and once more in the backward pass: their
        /// inner activations are then those of one slice
        #[option(default = Switch(None))]
        pub tiled_mlp: Switch<TiledMlp>,
        /// an exponential moving average of the trained weights, in float32, which `engine.with_ema` computes with
        /// and checkpoints have
        #[option(default = Switch(None))]
        pub ema: Switch<EmaConfig>,
        /// ZeRO: the training state of which each rank keeps a shard
        #[option(default = ZeroConfig::default(), deepspeed = "zero_optimization")]
        pub zero: ZeroConfig,
        /// the seed of dropout
        #[option(default = 42)]
        pub seed: u64,
    }
}

/// The options of `init_engine`, table by table.
pub const ENGINE_TABLES: &[&[Row]] = &[
    BatchSizes::ROWS,
    EngineOptions::ROWS,
    OutlierConfig::ROWS,
    MeshConfig::ROWS,
    OPTIMIZER_ROWS,
    SCHEDULER_ROWS,
    LOSS_ROWS,
    TrainableConfig::ROWS,
    Numerics::ROWS,
    MonitorOptions::ROWS,
];

const LOSS_ROWS: &[Row] = &[Row {
    name: "loss",
    help: &[
        "computes the loss of a micro batch in place of the cross-entropy, in evaluations too: logits are",
        "float32, `[batch, tokens, vocabulary]`, targets the token that each position should predict,",
        "`[batch, tokens]`, shifted already and -100 where there is none. What it returns is taken for a",
        "mean over the targets",
    ],
    kind: || Kind::Function("|logits, targets|"),
    ..ROW
}];

impl EngineConfig {
    /// Reads the option map of `init_engine` for this many ranks, but for `loss`, which is a function;
    /// `keep` keeps the function of a scheduler.
    pub fn read(
        o: &mut Options<'_>,
        world_size: usize,
        keep: impl FnOnce(&Foreign) -> Option<Result<LrFunction>>,
    ) -> Self {
        let mesh = MeshConfig::read(o);
        let sizes = BatchSizes::read(o);
        // What is wrong in itself is a fault already.
        let resolved = match o.is_faultless() {
            true => o.check(sizes.resolve(mesh.replicas(world_size))),
            false => None,
        };
        let batch = resolved.unwrap_or(ResolvedBatch {
            micro_batch_size: 1,
            gradient_accumulation_steps: 1,
            choice: BatchChoice::Given,
        });
        let options = EngineOptions::read(o);
        let optimizer = o.map_or_empty("optimizer", GivenOptimizer::read);
        let scheduler = Schedule::read(o, optimizer.config.lr, keep);
        let optimizer = optimizer.with(o, &scheduler);
        let clipping = options.gradient_clipping;
        Self {
            micro_batch_size: batch.micro_batch_size,
            gradient_accumulation_steps: batch.gradient_accumulation_steps,
            batch_choice: batch.choice,
            precision: options.precision,
            numerics: Numerics::read(o),
            gradient_clipping: (clipping > 0.0).then_some(clipping),
            loss_average: options.loss_average,
            ema: options.ema.0,
            outliers: OutlierConfig::read(o),
            optimizer,
            trainable: TrainableConfig::read(o),
            scheduler,
            activation_checkpointing: options.activation_checkpointing.0,
            sparse_attention: options.sparse_attention.0,
            tiled_mlp: options.tiled_mlp.0,
            zero: options.zero,
            mesh,
            seed: options.seed,
            monitor: MonitorConfig::read(o),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::config::{
        MatmulPrecision,
        options::{self, Value},
    };

    fn config(map: Json) -> Result<EngineConfig> {
        let Value::Map(map) = map.into() else { panic!("a map") };
        options::read("init_engine", &map, |o| EngineConfig::read(o, 2, |_| None))
    }

    fn paths(map: Json) -> Vec<String> {
        let e = config(map).unwrap_err();
        let all = std::iter::once(&e).chain(e.others());
        all.filter_map(Error::option_path).map(ToOwned::to_owned).collect()
    }

    #[test]
    fn defaults_are_deepspeeds_and_pytorchs() {
        let config = config(json!({ "micro_batch_size": 2 })).unwrap();
        assert_eq!(config.gradient_accumulation_steps, 1);
        assert_eq!(config.gradient_clipping, Some(1.0));
        assert_eq!(config.optimizer, OptimizerConfig::default());
        assert!(matches!(config.scheduler, Schedule::Constant));
    }

    #[test]
    fn the_batch_sizes_give_each_other() {
        let config = config(json!({ "train_batch_size": 32, "micro_batch_size": 4 })).unwrap();
        assert_eq!(config.gradient_accumulation_steps, 4);
        let found = paths(json!({ "train_batch_size": 30, "micro_batch_size": 4 }));
        assert_eq!(found, ["train_batch_size"]);
    }

    #[test]
    fn a_clipping_of_zero_is_none() {
        let config = config(json!({ "micro_batch_size": 2, "gradient_clipping": 0 })).unwrap();
        assert_eq!(config.gradient_clipping, None);
    }

    #[test]
    fn numerics_are_pytorchs() {
        let numerics = |map| config(map).map(|config| config.numerics);
        assert_eq!(numerics(json!({ "micro_batch_size": 1 })).unwrap(), Numerics::default());
        for &(name, matmul_precision) in MatmulPrecision::NAMES {
            let map =
                json!({ "micro_batch_size": 1, "matmul_precision": name, "deterministic": true });
            let expected = Numerics { matmul_precision, deterministic: true };
            assert_eq!(numerics(map).unwrap(), expected);
        }
        let wrong =
            json!({ "micro_batch_size": 1, "matmul_precision": "tf32", "deterministic": "warn" });
        assert_eq!(paths(wrong), ["matmul_precision", "deterministic"]);
    }

    #[test]
    fn checkpointing_is_a_bool_or_a_map() {
        let read = |value: Json| {
            let map = json!({ "micro_batch_size": 1, "activation_checkpointing": value });
            config(map).map(|config| config.activation_checkpointing)
        };
        let some =
            |every, cpu_checkpointing| Some(ActivationCheckpointing { every, cpu_checkpointing });
        assert_eq!(read(json!(false)).unwrap(), None);
        assert_eq!(read(json!(true)).unwrap(), some(1, false));
        assert_eq!(read(json!({})).unwrap(), some(1, false));
        assert_eq!(read(json!({ "every": 3, "cpu_checkpointing": true })).unwrap(), some(3, true));
        let path = |value| read(value).unwrap_err().option_path().map(ToOwned::to_owned);
        assert_eq!(path(json!(1)).as_deref(), Some("activation_checkpointing"));
        assert_eq!(path(json!({ "every": 0 })).as_deref(), Some("activation_checkpointing.every"));
        assert_eq!(path(json!({ "evry": 2 })).as_deref(), Some("activation_checkpointing.evry"));
    }

    #[test]
    fn all_mistakes_are_listed() {
        let found = paths(json!({
            "precision": "int8", "optimizer": { "type": "Adan", "betas": [0.9] },
            "scheduler": { "type": "linear", "total_num_steps": 5, "warmup_num_steps": 9, "warmup": 1 },
        }));
        assert_eq!(
            found,
            [
                "micro_batch_size",
                "precision",
                "optimizer.type",
                "optimizer.betas",
                "scheduler.warmup_num_steps",
                "scheduler.warmup"
            ]
        );
    }

    #[test]
    fn what_the_scheduler_replaces_is_refused() {
        let cycle = json!({ "type": "OneCycle", "cycle_min_lr": 1e-4, "cycle_max_lr": 1e-3 });
        let given = json!({ "lr": 0.1, "betas": [0.9, 0.95] });
        let both = json!({ "micro_batch_size": 1, "optimizer": given, "scheduler": cycle });
        assert_eq!(paths(both), ["optimizer.lr", "optimizer.betas"]);
        assert!(config(json!({ "micro_batch_size": 1, "scheduler": cycle })).is_ok());
        let e = config(json!({
            "micro_batch_size": 1, "optimizer": { "lr": 5e-5 },
            "scheduler": { "type": "WarmupDecayLR", "total_num_steps": 1000 },
        }))
        .unwrap_err();
        assert_eq!(
            e.message(),
            "`optimizer.lr` 0.00005 would not be used: WarmupDecayLR goes by its own warmup_max_lr, 0.001"
        );
    }
}
