//! The options of `init_engine`, under DeepSpeed's leaf names and with its defaults.

use rhai::Map;

use super::options::{self, Options};
use crate::{
    config::{AdamWConfig, BatchSizes, EngineConfig, LossAverage, Schedule, WarmupType},
    error::Result,
};

/// The only precision of this engine; others are refused by the reader of choices.
const PRECISIONS: &[(&str, ())] = &[("fp32", ())];

const AVERAGES: &[(&str, LossAverage)] =
    &[("tokens", LossAverage::Tokens), ("micro_batches", LossAverage::MicroBatches)];

/// Reads the option map of `init_engine` for this many ranks.
pub(crate) fn read(map: &Map, world_size: usize) -> Result<EngineConfig> {
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
        o.choice("precision", PRECISIONS).or(());
        let clipping = o.get::<f64>("gradient_clipping").range(0.0..).or(1.0);
        EngineConfig {
            micro_batch_size,
            gradient_accumulation_steps,
            gradient_clipping: (clipping > 0.0).then_some(clipping),
            loss_average: o.choice("loss_average", AVERAGES).or(LossAverage::Tokens),
            optimizer: o.map_or_empty("optimizer", optimizer),
            scheduler: o.map("scheduler", scheduler).unwrap_or(Schedule::Constant),
            activation_checkpointing: o.get("activation_checkpointing").or(false),
            seed: o.get("seed").or(42),
        }
    })
}

fn optimizer(o: &mut Options<'_>) -> AdamWConfig {
    let default = AdamWConfig::default();
    o.choice("type", &[("AdamW", ())]).or(());
    AdamWConfig {
        lr: o.get("lr").range(0.0..).or(default.lr),
        betas: betas(o, default.betas),
        eps: o.get("eps").range(0.0..).or(default.eps),
        weight_decay: o.get("weight_decay").range(0.0..).or(default.weight_decay),
    }
}

fn betas(o: &mut Options<'_>, default: (f64, f64)) -> (f64, f64) {
    let Some(betas) = o.get::<Vec<f64>>("betas").optional() else { return default };
    match betas.as_slice() {
        &[a, b] if (0.0..1.0).contains(&a) && (0.0..1.0).contains(&b) => (a, b),
        _ => {
            let code = crate::error::Code::BadValue;
            let message =
                format!("`optimizer.betas` must be two numbers from 0 to below 1, found {betas:?}");
            o.fault("betas", code, message);
            default
        }
    }
}

/// The names of schedules, as the map's `type` gives them.
#[derive(Clone, Copy)]
enum Kind {
    Constant,
    WarmupCosineLr,
    Linear,
    Cosine,
}

const KINDS: &[(&str, Kind)] = &[
    ("constant", Kind::Constant),
    ("linear", Kind::Linear),
    ("cosine", Kind::Cosine),
    ("WarmupCosineLR", Kind::WarmupCosineLr),
];

fn scheduler(o: &mut Options<'_>) -> Schedule {
    let schedule = match o.choice("type", KINDS).required() {
        Kind::Constant => Schedule::Constant,
        Kind::Linear => Schedule::Linear {
            total_num_steps: o.get("total_num_steps").range(1..).required(),
            warmup_num_steps: o.get("warmup_num_steps").or(0),
        },
        Kind::Cosine => Schedule::Cosine {
            total_num_steps: o.get("total_num_steps").range(1..).required(),
            warmup_num_steps: o.get("warmup_num_steps").or(0),
            cos_min_ratio: o.get("cos_min_ratio").range(0.0..=1.0).or(0.0),
        },
        Kind::WarmupCosineLr => Schedule::WarmupCosineLr {
            total_num_steps: o.get("total_num_steps").range(1..).required(),
            warmup_num_steps: o.get("warmup_num_steps").range(1..).or(1000),
            warmup_min_ratio: o.get("warmup_min_ratio").range(0.0..=1.0).or(0.0),
            cos_min_ratio: o.get("cos_min_ratio").range(0.0..=1.0).or(1e-4),
            warmup_type: o
                .choice("warmup_type", &[("log", WarmupType::Log), ("linear", WarmupType::Linear)])
                .or(WarmupType::Log),
        },
    };
    o.check(schedule.check()).unwrap_or(Schedule::Constant)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn config(source: &str) -> Result<EngineConfig> {
        read(&rhai::Engine::new().eval(source).unwrap(), 2)
    }

    #[test]
    fn defaults_are_deepspeeds_and_pytorchs() {
        let config = config("#{ micro_batch_size: 2 }").unwrap();
        assert_eq!(config.gradient_accumulation_steps, 1);
        assert_eq!(config.gradient_clipping, Some(1.0));
        assert_eq!(config.optimizer, AdamWConfig::default());
        assert_eq!(config.scheduler, Schedule::Constant);
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
    fn all_mistakes_are_listed() {
        let e = config(
            r#"#{ precision: "bf16", optimizer: #{ type: "Adam", betas: [0.9] },
                  scheduler: #{ type: "linear", total_num_steps: 5, warmup_num_steps: 9, warmup: 1 } }"#,
        )
        .unwrap_err();
        let paths: Vec<_> =
            std::iter::once(&e).chain(e.others()).filter_map(Error::option_path).collect();
        assert_eq!(
            paths,
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
}
