//! The option `scheduler` of `init_engine`: a map with a `type`, or a function of the step.

use rhai::FnPtr;

use super::{
    Callback,
    options::{Field, Options},
    value::{describe, number},
};
use crate::{
    config::schedule::{
        CycleMomentum, DeepSpeedSchedule, HuggingFaceSchedule, LrFunction, OneCycle, Ramp,
        Schedule, Warmup, WarmupStableDecay, WarmupType, is_rate,
    },
    error::{Code, Error, Result},
};

const OPTION: &str = "scheduler";
/// Steps of DeepSpeed's warm-ups where nothing is said.
const WARMUP_NUM_STEPS: u64 = 1000;
/// transformers' timescale for `inverse_sqrt` without a warm-up.
const TIMESCALE: u64 = 10_000;
/// Half a wave: the cosine goes down and stays there.
const NUM_CYCLES: f64 = 0.5;

/// Reads the options of one type of schedule.
type Reader = fn(&mut Options<'_>) -> Schedule;

/// The schedules, as the map's `type` names them.
const TYPES: &[(&str, Reader)] = &[
    ("constant", |_| Schedule::Constant),
    ("constant_with_warmup", constant_with_warmup),
    ("linear", linear),
    ("cosine", cosine),
    ("inverse_sqrt", inverse_sqrt),
    ("warmup_stable_decay", warmup_stable_decay),
    ("wsd", warmup_stable_decay),
    ("WarmupLR", warmup_lr),
    ("WarmupDecayLR", warmup_decay_lr),
    ("WarmupCosineLR", warmup_cosine_lr),
    ("OneCycle", one_cycle),
    ("LRRangeTest", lr_range_test),
];

const WARMUP_TYPES: &[(&str, WarmupType)] =
    &[("log", WarmupType::Log), ("linear", WarmupType::Linear)];

const RAMPS: &[(&str, Ramp)] =
    &[("linear", Ramp::Linear), ("cosine", Ramp::Cosine), ("1-sqrt", Ramp::OneMinusSqrt)];

/// Reads the option from its map `o`; `lr` is the optimizer's, and `keep` keeps a function.
pub(super) fn read(
    o: &mut Options<'_>,
    lr: f64,
    keep: impl FnOnce(FnPtr) -> Result<Callback>,
) -> Schedule {
    let Some(found) = o.raw(OPTION) else { return Schedule::Constant };
    if found.is_map() {
        return o.map(OPTION, |o| schedule(o, lr)).unwrap_or(Schedule::Constant);
    }
    let Some(function) = found.clone().try_cast::<FnPtr>() else {
        let found = describe(&found);
        let message = format!("`{OPTION}` must be a map or a function of the step, found {found}");
        o.fault(OPTION, Code::WrongType, message);
        return Schedule::Constant;
    };
    o.check(keep(function)).map_or(Schedule::Constant, self::function)
}

/// A script function that gives the learning rate of the step after so many applied steps.
fn function(callback: Callback) -> Schedule {
    Schedule::Function(LrFunction::new(move |applied| {
        let found = callback.call((applied as i64,))?;
        let rate = number(&found);
        if let Some(rate) = rate.filter(|rate| is_rate(*rate)) {
            return Ok(rate);
        }
        let code = if rate.is_some() { Code::BadValue } else { Code::WrongType };
        let message = format!(
            "the function of `{OPTION}` must return a finite number, 0 or more; for step {applied} it returned {}",
            describe(&found)
        );
        Err(callback.at_its_call(Error::new(code, message).option(OPTION)))
    }))
}

fn schedule(o: &mut Options<'_>, lr: f64) -> Schedule {
    let Some(read) = o.choice("type", TYPES).required_or_none() else {
        // Which options there are depends on the type.
        o.accept_rest();
        return Schedule::Constant;
    };
    let schedule = read(o);
    o.check(schedule.check(lr)).map_or(Schedule::Constant, |()| schedule)
}

fn constant_with_warmup(o: &mut Options<'_>) -> Schedule {
    let warmup_num_steps = o.get("warmup_num_steps").required();
    Schedule::HuggingFace(HuggingFaceSchedule::ConstantWithWarmup { warmup_num_steps })
}

fn linear(o: &mut Options<'_>) -> Schedule {
    Schedule::HuggingFace(HuggingFaceSchedule::Linear {
        total_num_steps: total_num_steps(o),
        warmup_num_steps: o.get("warmup_num_steps").or(0),
    })
}

fn cosine(o: &mut Options<'_>) -> Schedule {
    Schedule::HuggingFace(HuggingFaceSchedule::Cosine {
        total_num_steps: total_num_steps(o),
        warmup_num_steps: o.get("warmup_num_steps").or(0),
        cos_min_ratio: ratio(o, "cos_min_ratio").or(0.0),
        num_cycles: finite(o, "num_cycles").or(NUM_CYCLES),
    })
}

fn inverse_sqrt(o: &mut Options<'_>) -> Schedule {
    let warmup_num_steps = o.get("warmup_num_steps").required();
    let timescale = if warmup_num_steps > 0 { warmup_num_steps } else { TIMESCALE };
    let timescale = o.get("timescale").range(1..).or(timescale);
    Schedule::HuggingFace(HuggingFaceSchedule::InverseSqrt { warmup_num_steps, timescale })
}

fn warmup_stable_decay(o: &mut Options<'_>) -> Schedule {
    let warmup_num_steps = o.get("warmup_num_steps").or(0);
    let num_decay_steps = o.get("num_decay_steps").required();
    let num_stable_steps = num_stable_steps(o, warmup_num_steps, num_decay_steps);
    let warmup_type = o.choice("warmup_type", RAMPS).or(Ramp::Linear);
    let decay_type = o.choice("decay_type", RAMPS).or(Ramp::Cosine);
    if decay_type != Ramp::Cosine {
        refuse(o, &["num_cycles"], "for a decay_type that is no cosine");
    }
    Schedule::HuggingFace(HuggingFaceSchedule::WarmupStableDecay(WarmupStableDecay {
        warmup_num_steps,
        num_stable_steps,
        num_decay_steps,
        warmup_type,
        decay_type,
        min_lr_ratio: ratio(o, "min_lr_ratio").or(0.0),
        num_cycles: finite(o, "num_cycles").or(NUM_CYCLES),
    }))
}

/// `num_stable_steps`, or what the other two leave of `total_num_steps`; both must agree.
fn num_stable_steps(o: &mut Options<'_>, warmup: u64, decay: u64) -> u64 {
    let stable = o.get::<u64>("num_stable_steps").optional();
    let total = o.get::<u64>("total_num_steps").range(1..).optional();
    let others = warmup.saturating_add(decay);
    let parts = format!("warmup_num_steps {warmup} + num_decay_steps {decay}");
    let Some(total) = total else {
        if stable.is_none() && !o.has("num_stable_steps") && !o.has("total_num_steps") {
            let path = o.path("num_stable_steps");
            let message = format!("`{path}` or `total_num_steps` is required and missing");
            o.fault("num_stable_steps", Code::Missing, message);
        }
        return stable.unwrap_or(0);
    };
    let fault = match stable {
        Some(stable) if others.saturating_add(stable) != total => {
            format!("is not num_stable_steps {stable} + {parts}")
        }
        None if others > total => format!("is less than {parts}"),
        _ => return total.saturating_sub(others),
    };
    o.fault("total_num_steps", Code::BadValue, format!("total_num_steps {total} {fault}"));
    total.saturating_sub(others)
}

fn warmup_lr(o: &mut Options<'_>) -> Schedule {
    Schedule::DeepSpeed(DeepSpeedSchedule::WarmupLr {
        warmup_min_lr: finite(o, "warmup_min_lr").or(0.0),
        warmup_max_lr: finite(o, "warmup_max_lr").optional(),
        warmup: warmup(o),
    })
}

fn warmup_decay_lr(o: &mut Options<'_>) -> Schedule {
    Schedule::DeepSpeed(DeepSpeedSchedule::WarmupDecayLr {
        total_num_steps: total_num_steps(o),
        warmup_min_lr: finite(o, "warmup_min_lr").or(0.0),
        warmup_max_lr: finite(o, "warmup_max_lr").or(0.001),
        warmup: warmup(o),
    })
}

fn warmup_cosine_lr(o: &mut Options<'_>) -> Schedule {
    Schedule::DeepSpeed(DeepSpeedSchedule::WarmupCosineLr {
        total_num_steps: total_num_steps(o),
        warmup_min_ratio: ratio(o, "warmup_min_ratio").or(0.0),
        cos_min_ratio: ratio(o, "cos_min_ratio").or(1e-4),
        warmup: warmup(o),
    })
}

fn one_cycle(o: &mut Options<'_>) -> Schedule {
    let first = o.get("cycle_first_step_size").range(1..).or(2000);
    let first_stairs = o.get("cycle_first_stair_count").or(0);
    Schedule::DeepSpeed(DeepSpeedSchedule::OneCycle(OneCycle {
        cycle_min_lr: finite(o, "cycle_min_lr").required(),
        cycle_max_lr: finite(o, "cycle_max_lr").required(),
        cycle_first_step_size: first,
        cycle_second_step_size: o.get("cycle_second_step_size").or(first),
        cycle_first_stair_count: first_stairs,
        cycle_second_stair_count: o.get("cycle_second_stair_count").or(first_stairs),
        decay_lr_rate: finite(o, "decay_lr_rate").or(0.0),
        decay_step_size: o.get("decay_step_size").or(0),
        momentum: cycle_momentum(o),
    }))
}

fn cycle_momentum(o: &mut Options<'_>) -> Option<CycleMomentum> {
    if !o.get("cycle_momentum").or(true) {
        let options = ["cycle_min_mom", "cycle_max_mom", "decay_mom_rate"];
        refuse(o, &options, "with cycle_momentum: false");
        return None;
    }
    Some(CycleMomentum {
        cycle_min_mom: o.get("cycle_min_mom").range(0.0..1.0).or(0.8),
        cycle_max_mom: o.get("cycle_max_mom").range(0.0..1.0).or(0.9),
        decay_mom_rate: finite(o, "decay_mom_rate").or(0.0),
    })
}

fn lr_range_test(o: &mut Options<'_>) -> Schedule {
    Schedule::DeepSpeed(DeepSpeedSchedule::LrRangeTest {
        lr_range_test_min_lr: finite(o, "lr_range_test_min_lr").or(1e-3),
        lr_range_test_step_size: o.get("lr_range_test_step_size").range(1..).or(2000),
        lr_range_test_step_rate: finite(o, "lr_range_test_step_rate").or(1.0),
        lr_range_test_staircase: o.get("lr_range_test_staircase").or(false),
    })
}

fn total_num_steps(o: &mut Options<'_>) -> u64 {
    o.get("total_num_steps").range(1..).required()
}

fn warmup(o: &mut Options<'_>) -> Warmup {
    Warmup {
        warmup_num_steps: o.get("warmup_num_steps").range(1..).or(WARMUP_NUM_STEPS),
        warmup_type: o.choice("warmup_type", WARMUP_TYPES).or(WarmupType::Log),
    }
}

fn ratio<'o>(o: &'o mut Options<'_>, key: &'static str) -> Field<'o, f64> {
    o.get(key).range(0.0..=1.0)
}

/// A number that a learning rate could be too.
fn finite<'o>(o: &'o mut Options<'_>, key: &'static str) -> Field<'o, f64> {
    o.get(key).check(|number| is_rate(*number), "a finite number, 0 or more")
}

/// Refuses options that other settings leave without an effect; `why` ends the sentence.
fn refuse(o: &mut Options<'_>, keys: &[&'static str], why: &str) {
    for key in keys {
        if o.raw(key).is_some() {
            let message = format!("`{}` has no effect {why}", o.path(key));
            o.fault(key, Code::BadValue, message);
        }
    }
}

#[cfg(test)]
mod tests {
    use rhai::Map;

    use super::*;
    use crate::script::options;

    /// The schedule of this map, for an optimizer with lr 0.1.
    fn scheduler(map: &str) -> Result<Schedule> {
        let map: Map = rhai::Engine::new().eval(&format!("#{{ scheduler: {map} }}")).unwrap();
        let keep = |_| panic!("no function here");
        options::read("init_engine", &map, |o| read(o, 0.1, keep))
    }

    fn lrs(map: &str, steps: u64) -> Vec<f64> {
        let schedule = scheduler(map).unwrap();
        (0..steps).map(|applied| schedule.lr(0.1, applied).unwrap()).collect()
    }

    /// Option and message of every fault.
    fn faults(map: &str) -> Vec<(String, String)> {
        let e = scheduler(map).unwrap_err();
        let fault = |e: &Error| {
            let option = e.option_path().unwrap_or_default();
            (option.trim_start_matches("scheduler.").to_owned(), e.message().to_owned())
        };
        std::iter::once(&e).chain(e.others()).map(fault).collect()
    }

    fn options(map: &str) -> Vec<String> {
        faults(map).into_iter().map(|(option, _)| option).collect()
    }

    #[test]
    fn defaults_are_the_originals() {
        let is = |map, expected: &str| {
            assert_eq!(format!("{:?}", scheduler(map).unwrap()), expected, "{map}");
        };
        let warmup = "warmup: Warmup { warmup_num_steps: 1000, warmup_type: Log } })";
        is(
            r#"#{ type: "WarmupLR" }"#,
            &format!("DeepSpeed(WarmupLr {{ warmup_min_lr: 0.0, warmup_max_lr: None, {warmup}"),
        );
        is(
            r#"#{ type: "WarmupCosineLR", total_num_steps: 2e3 }"#,
            &format!(
                "DeepSpeed(WarmupCosineLr {{ total_num_steps: 2000, warmup_min_ratio: 0.0, cos_min_ratio: 0.0001, {warmup}"
            ),
        );
        is(
            r#"#{ type: "OneCycle", cycle_min_lr: 0.1, cycle_max_lr: 1, cycle_first_step_size: 9, cycle_first_stair_count: 3 }"#,
            "DeepSpeed(OneCycle(OneCycle { cycle_min_lr: 0.1, cycle_max_lr: 1.0, \
             cycle_first_step_size: 9, cycle_second_step_size: 9, cycle_first_stair_count: 3, \
             cycle_second_stair_count: 3, decay_lr_rate: 0.0, decay_step_size: 0, \
             momentum: Some(CycleMomentum { cycle_min_mom: 0.8, cycle_max_mom: 0.9, \
             decay_mom_rate: 0.0 }) }))",
        );
        is(
            r#"#{ type: "LRRangeTest" }"#,
            "DeepSpeed(LrRangeTest { lr_range_test_min_lr: 0.001, lr_range_test_step_size: 2000, \
             lr_range_test_step_rate: 1.0, lr_range_test_staircase: false })",
        );
        is(
            r#"#{ type: "inverse_sqrt", warmup_num_steps: 0 }"#,
            "HuggingFace(InverseSqrt { warmup_num_steps: 0, timescale: 10000 })",
        );
    }

    #[test]
    fn the_stable_steps_are_given_or_what_is_left() {
        let expected = [0.0, 0.05, 0.1, 0.1, 0.1, 0.05, 0.0];
        for rest in
            ["num_stable_steps: 2", "total_num_steps: 6", "total_num_steps: 6, num_stable_steps: 2"]
        {
            for kind in ["wsd", "warmup_stable_decay"] {
                let map = format!(
                    "#{{ type: \"{kind}\", warmup_num_steps: 2, num_decay_steps: 2, {rest} }}"
                );
                let found = lrs(&map, 7);
                assert!(
                    found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12),
                    "{found:?}"
                );
            }
        }
        let wsd =
            |rest| format!("#{{ type: \"wsd\", warmup_num_steps: 2, num_decay_steps: 2{rest} }}");
        assert_eq!(options(&wsd("")), ["num_stable_steps"]);
        let message = |rest| faults(&wsd(rest)).remove(0).1;
        assert_eq!(
            message(", total_num_steps: 3"),
            "total_num_steps 3 is less than warmup_num_steps 2 + num_decay_steps 2"
        );
        assert_eq!(
            message(", total_num_steps: 6, num_stable_steps: 1"),
            "total_num_steps 6 is not num_stable_steps 1 + warmup_num_steps 2 + num_decay_steps 2"
        );
    }

    #[test]
    fn contradictions_and_ranges_are_found_together() {
        let found = options(
            r#"#{ type: "OneCycle", cycle_min_lr: 0.2, cycle_max_lr: 0.1, cycle_first_step_size: 0,
                  decay_lr_rate: 1e-3, cycle_momentum: false, cycle_min_mom: 0.7 }"#,
        );
        assert_eq!(
            found,
            ["cycle_first_step_size", "cycle_min_mom", "cycle_min_lr", "decay_lr_rate"]
        );
        let found = options(r#"#{ type: "WarmupLR", warmup_min_lr: 0.2, warmup_num_steps: 0 }"#);
        assert_eq!(found, ["warmup_num_steps", "warmup_min_lr"]);
        let found = options(
            r#"#{ type: "wsd", num_decay_steps: 1, num_stable_steps: 1, decay_type: "linear", num_cycles: 1 }"#,
        );
        assert_eq!(found, ["num_cycles"]);
        assert_eq!(options(r#"#{ type: "LRRangeTest", lr_range_test_min_lr: 1.0/0.0 }"#).len(), 1);
    }

    #[test]
    fn without_a_type_nothing_else_is_judged() {
        let found = faults(r#"#{ type: "cosin", total_num_steps: 5 }"#);
        assert_eq!(found.len(), 1);
        assert_eq!(options("#{ total_num_steps: 5 }"), ["type"]);
        assert_eq!(
            faults("3"),
            [(
                "scheduler".to_owned(),
                "`scheduler` must be a map or a function of the step, found 3".to_owned()
            )]
        );
    }
}
