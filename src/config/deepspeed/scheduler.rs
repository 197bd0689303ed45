//! `scheduler`: DeepSpeed's five schedules, whose names and options are dsr's.

use serde_json::Value;

use super::{
    draft::{Draft, Given},
    found::Found,
    key::{Key, Kind, Literal, NOT_NEGATIVE, Typed, becomes, only, typed},
    options::with_options,
};
use crate::config::schedule::{required_options, scheduler_tables};

pub(super) fn key() -> Key {
    let of = |name, own: &[Key]| (name, with_options(own, &scheduler_tables(name), "scheduler"));
    let scheduler = Typed {
        types: vec![
            of("WarmupLR", &[LAST_BATCH_ITERATION]),
            of("WarmupDecayLR", &[WARMUP_MAX_LR, LAST_BATCH_ITERATION]),
            of("WarmupCosineLR", &[LAST_BATCH_ITERATION]),
            of("OneCycle", &[CYCLE_SECOND_STEP_SIZE, LAST_BATCH_ITERATION]),
            of("LRRangeTest", &[LAST_BATCH_ITERATION]),
        ],
        refused: &[],
        others: "of torch.optim.lr_scheduler's, give the recipe's scheduler as a function of the step: |step| 1e-3 * 0.9 ** step",
        beside: &[],
        becomes: "scheduler.type",
    };
    typed("scheduler", scheduler)
}

const LAST_BATCH_ITERATION: Key = only(
    "last_batch_iteration",
    Kind::Whole(-1),
    &[Literal::Number(-1.0)],
    "a checkpoint tells where a schedule goes on",
);
const WARMUP_MAX_LR: Key =
    becomes("warmup_max_lr", Kind::OrNull(&NOT_NEGATIVE), "scheduler.warmup_max_lr");
const CYCLE_SECOND_STEP_SIZE: Key = becomes(
    "cycle_second_step_size",
    Kind::OrNull(&Kind::Whole(1)),
    "scheduler.cycle_second_step_size",
);

/// Names the schedule, and refuses one that lacks what it needs.
pub(super) fn translate(found: &Found, given: &Given, draft: &mut Draft) {
    let Some(kind) = found.text("scheduler.type") else { return };
    draft.copy(found, "scheduler.type", "scheduler.type");
    for name in required_options(kind) {
        let key = format!("scheduler.params.{name}");
        if !found.mentions(&key) && !given.has(&format!("scheduler.{name}")) {
            draft.missing(found.at("scheduler.type"), &key);
        }
    }
}

/// Takes back what the schedule replaces in the optimizer, once all rates are known: DeepSpeed
/// overwrites it without a word, dsr refuses the contradiction.
pub(super) fn settle(draft: &mut Draft) {
    let Some(kind) = draft.text("scheduler.type") else { return };
    let (own, default) = match kind.as_str() {
        "WarmupLR" => ("warmup_max_lr", None),
        "WarmupDecayLR" => {
            // The peak that is left open is the optimizer's rate, as transformers has it.
            if draft.is_open("scheduler.warmup_max_lr")
                && let Some(lr) = draft.value("optimizer.lr").cloned()
            {
                draft.resolve("scheduler.warmup_max_lr", lr);
            }
            ("warmup_max_lr", Some(0.001))
        }
        "OneCycle" => ("cycle_max_lr", None),
        "LRRangeTest" => ("lr_range_test_min_lr", Some(0.001)),
        _ => return,
    };
    let path = format!("scheduler.{own}");
    let rate = draft.number(&path).or(default.filter(|_| !draft.is_open(&path)));
    if let Some(rate) = rate
        && draft.number("optimizer.lr") != Some(rate)
    {
        draft.withdraw("optimizer.lr", &format!("{kind} goes by its own {own}, {rate}"));
    }
    if kind == "OneCycle" {
        settle_cycle(draft);
    }
}

/// What OneCycle replaces, and what its own settings leave without an effect.
fn settle_cycle(draft: &mut Draft) {
    let cycles = draft.value("scheduler.cycle_momentum").and_then(Value::as_bool).unwrap_or(true);
    if cycles {
        for option in ["optimizer.betas", "optimizer.momentum"] {
            draft.withdraw(option, "OneCycle cycles the momentum");
        }
    } else {
        for option in ["cycle_min_mom", "cycle_max_mom", "decay_mom_rate"] {
            draft.withdraw(&format!("scheduler.{option}"), "cycle_momentum is false");
        }
    }
    if draft.number("scheduler.decay_step_size").unwrap_or(0.0) == 0.0 {
        for option in ["scheduler.decay_lr_rate", "scheduler.decay_mom_rate"] {
            draft.withdraw(option, "decay_step_size is 0");
        }
    }
}
