//! The option `scheduler` of `init_engine`: a map with a `type`, or a function of the step.

use super::{
    deepspeed::{DeepSpeedSchedule, LrRangeTest, Warmup, WarmupCosineLr, WarmupDecayLr, WarmupLr},
    huggingface::{
        ConstantWithWarmup, Cosine, HuggingFaceSchedule, InverseSqrt, Linear, WarmupStableDecay,
    },
    one_cycle::OneCycle,
    rates::{LrFunction, Schedule},
};
use crate::{
    config::options::{Foreign, Kind, OptionTable, Options, ROW, Row, Typed, Value, Variant},
    error::Result,
};

const OPTION: &str = "scheduler";

/// A schedule that the map's `type` names.
struct ScheduleType {
    variant: Variant,
    read: fn(&mut Options<'_>) -> Schedule,
}

const fn schedule(
    names: &'static [&'static str],
    tables: &'static [&'static [Row]],
    read: fn(&mut Options<'_>) -> Schedule,
) -> ScheduleType {
    ScheduleType { variant: Variant { names, tables }, read }
}

const TYPES: &[ScheduleType] = &[
    schedule(&["constant"], &[], |_| Schedule::Constant),
    schedule(&["constant_with_warmup"], &[ConstantWithWarmup::ROWS], |o| {
        Schedule::HuggingFace(HuggingFaceSchedule::ConstantWithWarmup(OptionTable::read(o)))
    }),
    schedule(&["linear"], &[Linear::ROWS], |o| {
        Schedule::HuggingFace(HuggingFaceSchedule::Linear(OptionTable::read(o)))
    }),
    schedule(&["cosine"], &[Cosine::ROWS], |o| {
        Schedule::HuggingFace(HuggingFaceSchedule::Cosine(OptionTable::read(o)))
    }),
    schedule(&["inverse_sqrt"], &[InverseSqrt::ROWS], |o| {
        Schedule::HuggingFace(HuggingFaceSchedule::InverseSqrt(OptionTable::read(o)))
    }),
    schedule(&["warmup_stable_decay", "wsd"], &[WarmupStableDecay::ROWS], |o| {
        Schedule::HuggingFace(HuggingFaceSchedule::WarmupStableDecay(OptionTable::read(o)))
    }),
    schedule(&["WarmupLR"], &[WarmupLr::ROWS, Warmup::ROWS], |o| {
        Schedule::DeepSpeed(DeepSpeedSchedule::WarmupLr(OptionTable::read(o), Warmup::read(o)))
    }),
    schedule(&["WarmupDecayLR"], &[WarmupDecayLr::ROWS, Warmup::ROWS], |o| {
        Schedule::DeepSpeed(DeepSpeedSchedule::WarmupDecayLr(OptionTable::read(o), Warmup::read(o)))
    }),
    schedule(&["WarmupCosineLR"], &[WarmupCosineLr::ROWS, Warmup::ROWS], |o| {
        Schedule::DeepSpeed(DeepSpeedSchedule::WarmupCosineLr(
            OptionTable::read(o),
            Warmup::read(o),
        ))
    }),
    schedule(&["OneCycle"], &[OneCycle::ROWS], |o| {
        Schedule::DeepSpeed(DeepSpeedSchedule::OneCycle(OptionTable::read(o)))
    }),
    schedule(&["LRRangeTest"], &[LrRangeTest::ROWS], |o| {
        Schedule::DeepSpeed(DeepSpeedSchedule::LrRangeTest(OptionTable::read(o)))
    }),
];

/// The option.
pub(in crate::config) const SCHEDULER_ROWS: &[Row] = &[Row {
    name: OPTION,
    help: &[
        "the learning rate over the steps: a map with a `type`, of transformers' schedules or DeepSpeed's,",
        "or a function of the applied steps that returns the rate itself",
    ],
    kind: || Kind::Typed(typed()),
    ..ROW
}];

/// The options of a schedule, table by table.
pub(in crate::config) fn scheduler_tables(name: &str) -> Vec<&'static [Row]> {
    typed().tables(Some(name))
}

/// The options that the schedule of this type cannot do without.
pub(in crate::config) fn required_options(name: &str) -> Vec<&'static str> {
    let rows = scheduler_tables(name).into_iter().flatten();
    rows.filter(|row| row.is_required).map(|row| row.name).collect()
}

fn typed() -> Typed {
    Typed {
        common: &[],
        variants: TYPES.iter().map(|kind| &kind.variant).collect(),
        untyped: "cosine",
    }
}

impl Schedule {
    /// Reads the option from its map `o`; `lr` is the optimizer's, and `keep` keeps a function of a
    /// recipe.
    pub(in crate::config) fn read(
        o: &mut Options<'_>,
        lr: f64,
        keep: impl FnOnce(&Foreign) -> Option<Result<LrFunction>>,
    ) -> Self {
        let Some(found) = o.raw(OPTION) else { return Self::Constant };
        let function = match &found {
            Value::Map(_) => {
                return o.map(OPTION, |o| Self::of_type(o, lr)).unwrap_or(Self::Constant);
            }
            Value::Foreign(foreign) => keep(foreign),
            _ => None,
        };
        match function {
            Some(function) => o.check(function).map_or(Self::Constant, Self::Function),
            None => {
                o.refuse_value(OPTION, "a map or a function of the step", &found);
                Self::Constant
            }
        }
    }

    fn of_type(o: &mut Options<'_>, lr: f64) -> Self {
        let Some(kind) = o.variant(TYPES, |kind| &kind.variant).required_or_none() else {
            // Which options there are depends on the type.
            o.accept_rest();
            return Self::Constant;
        };
        let schedule = (kind.read)(o);
        o.check(schedule.check(lr)).map_or(Self::Constant, |()| schedule)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::{config::options, error::Error};

    /// The schedule of this map, for an optimizer with lr 0.1.
    fn scheduler(map: Json) -> Result<Schedule> {
        let Value::Map(map) = json!({ "scheduler": map }).into() else { panic!("a map") };
        options::read("init_engine", &map, |o| Schedule::read(o, 0.1, |_| None))
    }

    fn lrs(map: Json, steps: u64) -> Vec<f64> {
        let schedule = scheduler(map).unwrap();
        (0..steps).map(|applied| schedule.lr(0.1, applied).unwrap()).collect()
    }

    /// Option and message of every fault.
    fn faults(map: Json) -> Vec<(String, String)> {
        let e = scheduler(map).unwrap_err();
        let fault = |e: &Error| {
            let option = e.option_path().unwrap_or_default();
            (option.trim_start_matches("scheduler.").to_owned(), e.message().to_owned())
        };
        std::iter::once(&e).chain(e.others()).map(fault).collect()
    }

    fn paths(map: Json) -> Vec<String> {
        faults(map).into_iter().map(|(option, _)| option).collect()
    }

    #[test]
    fn defaults_are_the_originals() {
        let is = |map: Json, expected: &str| {
            assert_eq!(format!("{:?}", scheduler(map).unwrap()), expected);
        };
        let warmup = "Warmup { warmup_num_steps: 1000, warmup_type: Log }))";
        is(
            json!({ "type": "WarmupLR" }),
            &format!(
                "DeepSpeed(WarmupLr(WarmupLr {{ warmup_min_lr: 0.0, warmup_max_lr: None }}, {warmup}"
            ),
        );
        is(
            json!({ "type": "WarmupCosineLR", "total_num_steps": 2e3 }),
            &format!(
                "DeepSpeed(WarmupCosineLr(WarmupCosineLr {{ total_num_steps: 2000, warmup_min_ratio: 0.0, cos_min_ratio: 0.0001 }}, {warmup}"
            ),
        );
        is(
            json!({ "type": "OneCycle", "cycle_min_lr": 0.1, "cycle_max_lr": 1, "cycle_first_step_size": 9, "cycle_first_stair_count": 3 }),
            "DeepSpeed(OneCycle(OneCycle { cycle_min_lr: 0.1, cycle_max_lr: 1.0, \
             cycle_first_step_size: 9, cycle_second_step_size: None, cycle_first_stair_count: 3, \
             cycle_second_stair_count: None, decay_lr_rate: 0.0, decay_step_size: 0, \
             cycle_momentum: true, cycle_min_mom: 0.8, cycle_max_mom: 0.9, \
             decay_mom_rate: 0.0 }))",
        );
        is(
            json!({ "type": "LRRangeTest" }),
            "DeepSpeed(LrRangeTest(LrRangeTest { lr_range_test_min_lr: 0.001, lr_range_test_step_size: 2000, \
             lr_range_test_step_rate: 1.0, lr_range_test_staircase: false }))",
        );
        is(
            json!({ "type": "inverse_sqrt", "warmup_num_steps": 0 }),
            "HuggingFace(InverseSqrt(InverseSqrt { warmup_num_steps: 0, timescale: None }))",
        );
    }

    #[test]
    fn the_stable_steps_are_given_or_what_is_left() {
        let expected = [0.0, 0.05, 0.1, 0.1, 0.1, 0.05, 0.0];
        let wsd = |kind: &str, rest: Json| {
            let mut map = json!({ "type": kind, "warmup_num_steps": 2, "num_decay_steps": 2 });
            let Json::Object(rest) = rest else { panic!("a map") };
            map.as_object_mut().unwrap().extend(rest);
            map
        };
        for rest in [
            json!({ "num_stable_steps": 2 }),
            json!({ "total_num_steps": 6 }),
            json!({ "total_num_steps": 6, "num_stable_steps": 2 }),
        ] {
            for kind in ["wsd", "warmup_stable_decay"] {
                let found = lrs(wsd(kind, rest.clone()), 7);
                assert!(
                    found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12),
                    "{found:?}"
                );
            }
        }
        assert_eq!(paths(wsd("wsd", json!({}))), ["num_stable_steps"]);
        let message = |rest| faults(wsd("wsd", rest)).remove(0).1;
        assert_eq!(
            message(json!({ "total_num_steps": 3 })),
            "total_num_steps 3 is less than warmup_num_steps 2 + num_decay_steps 2"
        );
        assert_eq!(
            message(json!({ "total_num_steps": 6, "num_stable_steps": 1 })),
            "total_num_steps 6 is not num_stable_steps 1 + warmup_num_steps 2 + num_decay_steps 2"
        );
    }

    #[test]
    fn contradictions_and_ranges_are_found_together() {
        let found = paths(
            json!({ "type": "OneCycle", "cycle_min_lr": 0.2, "cycle_max_lr": 0.1, "cycle_first_step_size": 0,
                  "decay_lr_rate": 1e-3, "cycle_momentum": false, "cycle_min_mom": 0.7 }),
        );
        assert_eq!(
            found,
            ["cycle_first_step_size", "cycle_min_mom", "cycle_min_lr", "decay_lr_rate"]
        );
        let found =
            paths(json!({ "type": "WarmupLR", "warmup_min_lr": 0.2, "warmup_num_steps": 0 }));
        assert_eq!(found, ["warmup_num_steps", "warmup_min_lr"]);
        let found = paths(
            json!({ "type": "wsd", "num_decay_steps": 1, "num_stable_steps": 1, "decay_type": "linear", "num_cycles": 1 }),
        );
        assert_eq!(found, ["num_cycles"]);
        assert_eq!(paths(json!({ "type": "LRRangeTest", "lr_range_test_min_lr": -1 })).len(), 1);
    }

    #[test]
    fn without_a_type_nothing_else_is_judged() {
        let found = faults(json!({ "type": "cosin", "total_num_steps": 5 }));
        assert_eq!(found.len(), 1);
        assert_eq!(paths(json!({ "total_num_steps": 5 })), ["type"]);
        assert_eq!(
            faults(json!(3)),
            [(
                "scheduler".to_owned(),
                "`scheduler` must be a map or a function of the step, found 3".to_owned()
            )]
        );
    }
}
