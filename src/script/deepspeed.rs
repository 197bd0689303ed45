//! DeepSpeed's config file as a source: faults are shown at its own lines, as those of a recipe.

use std::path::Path;

use rhai::{Map as ScriptMap, Position};
use serde_json::{Map, Value};

use super::engine_options;
use crate::{
    config::deepspeed::{self, Fault, Origin, Settings},
    error::{Code, Error, Result},
    fs::{self, Place},
    recipe::{Failure, error::AtPosition, sources::Sources, value},
};

/// Reads the file at `path` as a recipe on this many ranks would; `None` stands for the number that the
/// file's batch sizes are made for. Fails with all faults of the file.
pub fn read(path: &Place, world_size: Option<usize>) -> Result<Settings, Failure> {
    let sources = Sources::default();
    load(path, None, world_size, &sources).map_err(|e| Failure::of(e, &[], &sources))
}

/// Reads the file at `path`. `given` is what the recipe says beside it, in dsr's terms.
///
/// A file that leaves no `"auto"` open is also read as by `init_engine`, so that a fault is found at its
/// line.
pub(crate) fn load(
    path: impl Into<Place>,
    given: Option<&Map<String, Value>>,
    world_size: Option<usize>,
    sources: &Sources,
) -> Result<Settings> {
    let path = path.into();
    let text = fs::read_to_string(&path)?;
    let name = path.display().to_string();
    sources.insert_text(&name, &text);
    let settings = deepspeed::read(&text, given).map_err(|faults| together(&name, faults))?;
    if settings.is_settled() {
        let world_size = world_size.unwrap_or_else(|| ranks(&settings.options));
        check(&name, &settings, world_size)?;
    }
    Ok(settings)
}

/// Notes for the user about keys that became other options.
pub(crate) fn notes<'a>(
    path: &'a Path,
    settings: &'a Settings,
) -> impl Iterator<Item = String> + 'a {
    let path = path.display();
    settings.notes.iter().map(move |note| format!("{path}:{}: {}", note.at.line, note.text))
}

/// The options as a script's map.
pub(crate) fn script_map(settings: &Settings) -> ScriptMap {
    let entry =
        |(name, value): (&String, &Value)| (name.as_str().into(), value::from_json(value.clone()));
    settings.options.iter().map(entry).collect()
}

fn together(name: &str, faults: Vec<Fault>) -> Error {
    let faults = faults.into_iter().map(|Fault { at, error }| match at {
        Some(at) => located(error, name, at),
        None => error,
    });
    let none = || Error::new(Code::Internal, format!("{name} was refused without a fault"));
    Error::all(faults.collect()).unwrap_or_else(none)
}

fn located(error: Error, name: &str, at: deepspeed::Position) -> Error {
    let narrow = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    error.at(name, Position::new(narrow(at.line).max(1), narrow(at.column)))
}

/// Reads the options as `init_engine` does. The recipe may still add missing ones.
fn check(name: &str, settings: &Settings, world_size: usize) -> Result<()> {
    let map = script_map(settings);
    let no_functions =
        |_| Err(Error::new(Code::Internal, format!("{name} cannot hold a function")));
    let Err(error) = engine_options::read(&map, world_size, no_functions) else { return Ok(()) };
    let faults = error.split().into_iter().filter_map(|error| {
        match settings.origin(error.option_path()?)? {
            Origin::File(at) => Some(located(error, name, at)),
            Origin::Given => Some(error),
        }
    });
    Error::all(faults.collect()).map_or(Ok(()), Err)
}

/// The ranks that the three batch sizes and the mesh are made for; one replica if they do not tell.
fn ranks(options: &Map<String, Value>) -> usize {
    let size = |table: &str, option: &str| {
        let size = options.get(table).and_then(|table| table.get(option)).and_then(Value::as_u64);
        size.and_then(|size| usize::try_from(size).ok()).unwrap_or(1).max(1)
    };
    let stages = size("pipeline", "stages");
    let sharers = size("tensor_parallel", "autotp_size");
    replicas(options).saturating_mul(stages).saturating_mul(sharers)
}

fn replicas(options: &Map<String, Value>) -> usize {
    let size = |name| options.get(name).and_then(Value::as_u64);
    let (Some(train), Some(micro)) = (size("train_batch_size"), size("micro_batch_size")) else {
        return 1;
    };
    let Some(steps) = size("gradient_accumulation_steps") else { return 1 };
    let rows = micro.saturating_mul(steps);
    match rows > 0 && train.is_multiple_of(rows) {
        true => usize::try_from(train / rows).unwrap_or(1).max(1),
        false => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{
        config::{
            Dtype, EngineConfig, LossScale,
            optimizer::{AdamConfig, Algorithm},
        },
        recipe::literal,
    };

    /// The options that `init_engine` reads from a map.
    fn config(map: &ScriptMap, world_size: usize) -> EngineConfig {
        let config = engine_options::read(map, world_size, |_| panic!("no function here"))
            .map(|options| options.config);
        config.unwrap_or_else(|e| panic!("{e:?}"))
    }

    /// A number of the file, as some people write them.
    fn rate() -> impl Strategy<Value = f64> + Clone {
        prop_oneof![Just(0.0), Just(1e-4), 1e-9..10.0, Just(3.0)]
    }

    fn params(adam: Option<(f64, f64, f64, f64)>) -> Value {
        adam.map_or(json!({}), |(lr, beta, eps, weight_decay)| {
            json!({ "lr": lr, "betas": [beta, 0.999], "eps": eps, "weight_decay": weight_decay })
        })
    }

    /// A scheduler that DeepSpeed takes, whose rates are its own unless it is WarmupCosineLR.
    fn scheduler() -> impl Strategy<Value = Option<Value>> {
        let schedule =
            |kind: &'static str, params: Value| json!({ "type": kind, "params": params });
        let rates = (rate(), rate()).prop_map(|(a, b)| (a.min(b), a.max(b)));
        let cycle = (rates.clone(), 1_u64..50, any::<bool>());
        let warm = (rates, 1_u64..50, 50_u64..100);
        prop_oneof![
            Just(None),
            (0.0..=1.0, 1_u64..50, 50_u64..100).prop_map(move |(ratio, warmup, total)| Some(schedule(
                "WarmupCosineLR",
                json!({ "total_num_steps": total, "warmup_num_steps": warmup, "cos_min_ratio": ratio }),
            ))),
            warm.clone().prop_map(move |((min, max), warmup, _)| Some(schedule(
                "WarmupLR",
                json!({ "warmup_min_lr": min, "warmup_max_lr": max, "warmup_num_steps": warmup,
                        "warmup_type": "linear" }),
            ))),
            warm.prop_map(move |((min, max), warmup, total)| Some(schedule(
                "WarmupDecayLR",
                json!({ "warmup_min_lr": min, "warmup_max_lr": max, "warmup_num_steps": warmup,
                        "total_num_steps": total }),
            ))),
            cycle.prop_map(move |((min, max), first, momentum)| Some(schedule(
                "OneCycle",
                json!({ "cycle_min_lr": min, "cycle_max_lr": max, "cycle_first_step_size": first,
                        "cycle_momentum": momentum, "cycle_second_step_size": null }),
            ))),
            (rate(), any::<bool>()).prop_map(move |(min, stairs)| Some(schedule(
                "LRRangeTest",
                json!({ "lr_range_test_min_lr": min, "lr_range_test_staircase": stairs }),
            ))),
        ]
    }

    /// The blocks of a number format, with its loss scale where that is a static one.
    fn precision() -> impl Strategy<Value = (Dtype, Option<f64>, Value)> {
        prop_oneof![
            Just((Dtype::Fp32, None, json!({}))),
            any::<bool>().prop_map(|check| {
                let bf16 = json!({ "enabled": true, "check_grad_overflow": check });
                (Dtype::Bf16, None, json!({ "bf16": bf16, "fp16": { "enabled": false } }))
            }),
            (0_u32..3, 1_u32..30).prop_map(|(scale, power)| {
                let scale = f64::from(scale) * 64.0;
                let fp16 =
                    json!({ "enabled": true, "loss_scale": scale, "initial_scale_power": power });
                (Dtype::Fp16, Some(scale), json!({ "fp16": fp16 }))
            }),
        ]
    }

    fn zero() -> impl Strategy<Value = Value> {
        (0_u8..=3, 1_u64..1_000_000_000, prop::option::of(any::<bool>())).prop_map(
            |(stage, bucket, overlap)| {
                json!({
                    "stage": stage,
                    "reduce_bucket_size": bucket as f64,
                    "overlap_comm": overlap,
                    "contiguous_gradients": true,
                    "offload_param": { "device": "none", "pin_memory": true },
                })
            },
        )
    }

    fn optional(file: &mut Value, key: &str, value: Option<Value>) {
        if let Some(value) = value {
            file[key] = value;
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// What `dsr config` prints is what the engine is made with, and that is what the file says.
        #[test]
        fn the_settings_that_are_printed_are_those_of_the_file(
            sizes in (1_usize..5, 1_usize..5, 1_usize..4),
            clipping in prop::option::of(rate()),
            adam in prop::option::of((rate(), 0.0..0.999, rate(), rate())),
            scheduler in scheduler(),
            zero in prop::option::of(zero()),
            (dtype, loss_scale, formats) in precision(),
        ) {
            let (micro, steps, ranks) = sizes;
            // A stage above 0 needs one rank, for now.
            let ranks = if zero.is_some() { 1 } else { ranks };
            let mut file = json!({
                "train_batch_size": micro * steps * ranks,
                "train_micro_batch_size_per_gpu": micro,
                "gradient_accumulation_steps": steps,
                "optimizer": { "type": "Adam", "params": params(adam) },
                "prescale_gradients": false,
            });
            for (name, block) in formats.as_object().unwrap() {
                file[name] = block.clone();
            }
            optional(&mut file, "gradient_clipping", clipping.map(Value::from));
            optional(&mut file, "scheduler", scheduler.clone());
            optional(&mut file, "zero_optimization", zero.clone());
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("ds_config.json");
            fs::write_json(&path, &file).unwrap();

            let settings = read(&path.into(), None).unwrap_or_else(|f| panic!("{:?}", f.faults));
            let found = config(&script_map(&settings), ranks);
            let printed: ScriptMap =
                rhai::Engine::new().eval(&literal::options(&settings.options)).unwrap();
            prop_assert_eq!(format!("{:?}", config(&printed, ranks)), format!("{found:?}"));

            prop_assert_eq!(found.micro_batch_size, micro);
            prop_assert_eq!(found.gradient_accumulation_steps, steps);
            let clipping = clipping.unwrap_or(1.0);
            prop_assert_eq!(found.gradient_clipping, (clipping > 0.0).then_some(clipping));
            let (lr, beta, eps, weight_decay) = adam.unwrap_or((1e-3, 0.9, 1e-8, 0.0));
            prop_assert_eq!(found.optimizer.weight_decay, weight_decay);
            let Algorithm::Adam(AdamConfig { betas, eps: found_eps, adam_w_mode, .. }) =
                found.optimizer.algorithm
            else {
                return Err(TestCaseError::fail("Adam became another optimizer"));
            };
            prop_assert!(adam_w_mode);
            prop_assert_eq!(found_eps, eps);
            prop_assert_eq!(found.precision.dtype, dtype);
            let fixed = match found.precision.loss_scale {
                LossScale::None => None,
                LossScale::Static(scale) => Some(scale),
                LossScale::Dynamic(_) => Some(0.0),
            };
            prop_assert_eq!(fixed, loss_scale);
            if let Some(zero) = zero {
                prop_assert_eq!(json!(found.zero.stage), zero["stage"].clone());
                prop_assert_eq!(json!(found.zero.reduce_bucket_size as f64), zero["reduce_bucket_size"].clone());
                prop_assert_eq!(json!(found.zero.overlap_comm), zero["overlap_comm"].clone());
            }
            // A schedule's peak, or the optimizer's rate where it has none of its own.
            let kind = scheduler.as_ref().map(|s| s["type"].as_str().unwrap_or_default().to_owned());
            let given = |name: &str| scheduler.as_ref().unwrap()["params"][name].as_f64().unwrap();
            let (at, peak) = match kind.as_deref() {
                None => (0, lr),
                Some("WarmupLR") => (1000, given("warmup_max_lr")),
                Some("OneCycle") => (
                    scheduler.as_ref().unwrap()["params"]["cycle_first_step_size"].as_u64().unwrap(),
                    given("cycle_max_lr"),
                ),
                Some("LRRangeTest") => (0, given("lr_range_test_min_lr")),
                Some(_) => return Ok(()),
            };
            let rate = found.scheduler.lr(found.optimizer.lr, at).unwrap();
            // One rounding apart: the schedules compute it.
            prop_assert!((rate - peak).abs() <= 1e-12 * peak.max(1.0), "{rate} is not {peak}");
            if kind.as_deref() != Some("OneCycle") {
                prop_assert_eq!(betas.0, beta);
            }
        }
    }

    #[test]
    fn the_ranks_are_what_the_batch_sizes_say() {
        let ranks = |value: Value| ranks(value.as_object().unwrap());
        let all = json!({ "train_batch_size": 32, "micro_batch_size": 2,
                          "gradient_accumulation_steps": 4 });
        assert_eq!(ranks(all), 4);
        assert_eq!(ranks(json!({ "train_batch_size": 32, "micro_batch_size": 2 })), 1);
        let not = json!({ "train_batch_size": 30, "micro_batch_size": 4,
                          "gradient_accumulation_steps": 4 });
        assert_eq!(ranks(not), 1);
    }
}
