//! The options of `init_engine`, under DeepSpeed's leaf names and with its defaults.

use rhai::{FnPtr, Map};

use super::{
    Callback,
    api::tensor::{Handle, check},
    memory_options, monitor_options, optimizer_options,
    options::{self, Options},
    precision_options, scheduler_options,
    value::describe,
    zero_options,
};
use crate::{
    config::{BatchSizes, EngineConfig, LossAverage, MatmulPrecision, Numerics},
    error::{Code, Error, Result},
    model::LossFunction,
    tensor::Tensor,
};

const AVERAGES: &[(&str, LossAverage)] =
    &[("tokens", LossAverage::Tokens), ("micro_batches", LossAverage::MicroBatches)];

/// What the functions of `loss` are given, for errors.
const LOSS_ARGUMENTS: &str = "|logits, targets|";

/// The settings of an engine.
#[derive(Debug)]
pub struct EngineOptions {
    /// Those that are data.
    pub config: EngineConfig,
    /// The loss, where it is a function of the recipe.
    pub loss: Option<LossFunction>,
}

/// Reads the option map of `init_engine` for this many ranks; `keep` keeps a function of the script.
///
/// # Errors
/// All mistakes of the map, each with the path of its option, and those of `keep`.
pub fn read(
    map: &Map,
    world_size: usize,
    keep: impl Fn(FnPtr) -> Result<Callback>,
) -> Result<EngineOptions> {
    options::read("init_engine", map, |o| {
        let sizes = BatchSizes {
            train_batch_size: o.get("train_batch_size").range(1..).optional(),
            micro_batch_size: o.get("micro_batch_size").range(1..).optional(),
            gradient_accumulation_steps: o.get("gradient_accumulation_steps").range(1..).optional(),
        };
        let resolved = sizes.resolve(world_size);
        // A size that is wrong in itself is a fault already.
        let (micro_batch_size, gradient_accumulation_steps) = match o.is_faultless() {
            true => o.check(resolved).unwrap_or((1, 1)),
            false => (1, 1),
        };
        let precision = precision_options::read(o);
        let numerics = Numerics {
            matmul_precision: o
                .choice("matmul_precision", MatmulPrecision::NAMES)
                .or(MatmulPrecision::Highest),
            deterministic: o.get("deterministic").or(false),
        };
        let clipping = o.get::<f64>("gradient_clipping").range(0.0..).or(1.0);
        let optimizer = o.map_or_empty("optimizer", optimizer_options::read);
        let scheduler = scheduler_options::read(o, optimizer.config.lr, &keep);
        let optimizer = optimizer.with(o, &scheduler);
        let loss = loss(o, &keep);
        let config = EngineConfig {
            micro_batch_size,
            gradient_accumulation_steps,
            precision,
            numerics,
            gradient_clipping: (clipping > 0.0).then_some(clipping),
            loss_average: o.choice("loss_average", AVERAGES).or(LossAverage::Tokens),
            optimizer,
            scheduler,
            activation_checkpointing: memory_options::activation_checkpointing(o),
            zero: zero_options::read(o),
            seed: o.get("seed").or(42),
            monitor: monitor_options::read(o),
        };
        EngineOptions { config, loss }
    })
}

/// A function of the script that computes the loss of a micro batch.
fn loss(o: &mut Options<'_>, keep: impl Fn(FnPtr) -> Result<Callback>) -> Option<LossFunction> {
    let found = o.raw("loss")?;
    let Some(function) = found.clone().try_cast::<FnPtr>() else {
        let message =
            format!("`loss` must be a function {LOSS_ARGUMENTS}, found {}", describe(&found));
        o.fault("loss", Code::WrongType, message);
        return None;
    };
    let kept = keep(function).and_then(|callback| callback.taking(2..=2, LOSS_ARGUMENTS));
    let callback = o.check(kept.map_err(|e| e.option("loss")))?;
    Some(LossFunction::new(move |logits, targets| {
        let handle = |tensor: &Tensor| Handle::new(tensor.shallow_clone());
        let found = callback.call((handle(logits), handle(targets)))?;
        let result = found.clone().try_cast::<Handle>();
        let scalar = result
            .filter(|loss| loss.tensor().numel() == 1 && check::is_floating(loss.tensor().kind()));
        scalar.map(|loss| loss.tensor().shallow_clone()).ok_or_else(|| {
            let found = match found.read_lock::<Handle>() {
                Some(tensor) => check::shown(tensor.tensor()),
                None => describe(&found),
            };
            let message = format!(
                "the function of `loss` must give a tensor with one floating point number, found {found}"
            );
            callback.at_its_call(Error::new(Code::WrongType, message).option("loss"))
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{OptimizerConfig, Schedule},
        error::Error,
    };

    fn config(source: &str) -> Result<EngineConfig> {
        let map = rhai::Engine::new().eval(source).unwrap();
        read(&map, 2, |_| panic!("no function here")).map(|options| options.config)
    }

    #[test]
    fn defaults_are_deepspeeds_and_pytorchs() {
        let config = config("#{ micro_batch_size: 2 }").unwrap();
        assert_eq!(config.gradient_accumulation_steps, 1);
        assert_eq!(config.gradient_clipping, Some(1.0));
        assert_eq!(config.optimizer, OptimizerConfig::default());
        assert!(matches!(config.scheduler, Schedule::Constant));
    }

    #[test]
    fn the_batch_sizes_give_each_other() {
        let config = config("#{ train_batch_size: 32, micro_batch_size: 4 }").unwrap();
        assert_eq!(config.gradient_accumulation_steps, 4);
        let e = self::config("#{ train_batch_size: 30, micro_batch_size: 4 }").unwrap_err();
        assert_eq!(e.option_path(), Some("train_batch_size"));
    }

    #[test]
    fn a_clipping_of_zero_is_none() {
        let config = config("#{ micro_batch_size: 2, gradient_clipping: 0 }").unwrap();
        assert_eq!(config.gradient_clipping, None);
    }

    #[test]
    fn numerics_are_pytorchs() {
        let numerics = |source: &str| config(source).map(|config| config.numerics);
        assert_eq!(numerics("#{ micro_batch_size: 1 }").unwrap(), Numerics::default());
        for &(name, matmul_precision) in MatmulPrecision::NAMES {
            assert_eq!(matmul_precision.name(), name);
            let source = format!(
                r#"#{{ micro_batch_size: 1, matmul_precision: "{name}", deterministic: true }}"#
            );
            let expected = Numerics { matmul_precision, deterministic: true };
            assert_eq!(numerics(&source).unwrap(), expected);
        }
        let source = r#"#{ micro_batch_size: 1, matmul_precision: "tf32", deterministic: "warn" }"#;
        assert_eq!(paths(source), ["matmul_precision", "deterministic"]);
    }

    fn paths(source: &str) -> Vec<String> {
        let e = config(source).unwrap_err();
        let all = std::iter::once(&e).chain(e.others());
        all.filter_map(Error::option_path).map(ToOwned::to_owned).collect()
    }

    #[test]
    fn all_mistakes_are_listed() {
        let source = r#"#{ precision: "int8", optimizer: #{ type: "Adan", betas: [0.9] },
            scheduler: #{ type: "linear", total_num_steps: 5, warmup_num_steps: 9, warmup: 1 } }"#;
        assert_eq!(
            paths(source),
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
        let cycle = r#"scheduler: #{ type: "OneCycle", cycle_min_lr: 1e-4, cycle_max_lr: 1e-3 } }"#;
        let given = "#{ micro_batch_size: 1, optimizer: #{ lr: 0.1, betas: [0.9, 0.95] }, ";
        assert_eq!(paths(&format!("{given}{cycle}")), ["optimizer.lr", "optimizer.betas"]);
        assert!(config(&format!("#{{ micro_batch_size: 1, {cycle}")).is_ok());
        let e = config(
            r#"#{ micro_batch_size: 1, optimizer: #{ lr: 5e-5 },
                  scheduler: #{ type: "WarmupDecayLR", total_num_steps: 1000 } }"#,
        )
        .unwrap_err();
        assert_eq!(
            e.message(),
            "`optimizer.lr` 0.00005 would not be used: WarmupDecayLR goes by its own warmup_max_lr, 0.001"
        );
    }
}
