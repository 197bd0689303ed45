//! `scheduler`: DeepSpeed's five schedules, whose names and options are dsr's.

use serde_json::Value;

use super::{
    draft::{Draft, Given},
    found::Found,
    key::{Key, Kind, Literal, NOT_NEGATIVE, RATIO, Typed, becomes, only},
};

pub(super) const SCHEDULER: Typed = Typed {
    types: &[
        ("WarmupLR", WARMUP_LR),
        ("WarmupDecayLR", WARMUP_DECAY_LR),
        ("WarmupCosineLR", WARMUP_COSINE_LR),
        ("OneCycle", ONE_CYCLE),
        ("LRRangeTest", LR_RANGE_TEST),
    ],
    refused: &[],
    others: "of torch.optim.lr_scheduler's, give the recipe's scheduler as a function of the step: |step| 1e-3 * 0.9 ** step",
    beside: &[],
    becomes: "scheduler.type",
};

const LAST_BATCH_ITERATION: Key = only(
    "last_batch_iteration",
    Kind::Whole(-1),
    &[Literal::Number(-1.0)],
    "a checkpoint tells where a schedule goes on",
);
const WARMUP_MIN_LR: Key = becomes("warmup_min_lr", NOT_NEGATIVE, "scheduler.warmup_min_lr");
const WARMUP_MAX_LR: Key =
    becomes("warmup_max_lr", Kind::OrNull(&NOT_NEGATIVE), "scheduler.warmup_max_lr");
const WARMUP_NUM_STEPS: Key =
    becomes("warmup_num_steps", Kind::Whole(1), "scheduler.warmup_num_steps");
const WARMUP_TYPE: Key =
    becomes("warmup_type", Kind::Word(&["log", "linear"]), "scheduler.warmup_type");
const TOTAL_NUM_STEPS: Key =
    becomes("total_num_steps", Kind::Whole(1), "scheduler.total_num_steps");

const WARMUP_LR: &[Key] =
    &[WARMUP_MIN_LR, WARMUP_MAX_LR, WARMUP_NUM_STEPS, WARMUP_TYPE, LAST_BATCH_ITERATION];

const WARMUP_DECAY_LR: &[Key] = &[
    TOTAL_NUM_STEPS,
    WARMUP_MIN_LR,
    WARMUP_MAX_LR,
    WARMUP_NUM_STEPS,
    WARMUP_TYPE,
    LAST_BATCH_ITERATION,
];

const WARMUP_COSINE_LR: &[Key] = &[
    TOTAL_NUM_STEPS,
    becomes("warmup_min_ratio", RATIO, "scheduler.warmup_min_ratio"),
    WARMUP_NUM_STEPS,
    becomes("cos_min_ratio", RATIO, "scheduler.cos_min_ratio"),
    WARMUP_TYPE,
    LAST_BATCH_ITERATION,
];

const ONE_CYCLE: &[Key] = &[
    becomes("cycle_min_lr", NOT_NEGATIVE, "scheduler.cycle_min_lr"),
    becomes("cycle_max_lr", NOT_NEGATIVE, "scheduler.cycle_max_lr"),
    becomes("decay_lr_rate", NOT_NEGATIVE, "scheduler.decay_lr_rate"),
    becomes("cycle_first_step_size", Kind::Whole(1), "scheduler.cycle_first_step_size"),
    becomes(
        "cycle_second_step_size",
        Kind::OrNull(&Kind::Whole(1)),
        "scheduler.cycle_second_step_size",
    ),
    becomes("cycle_first_stair_count", Kind::Whole(0), "scheduler.cycle_first_stair_count"),
    becomes(
        "cycle_second_stair_count",
        Kind::OrNull(&Kind::Whole(0)),
        "scheduler.cycle_second_stair_count",
    ),
    becomes("decay_step_size", Kind::Whole(0), "scheduler.decay_step_size"),
    becomes("cycle_momentum", Kind::Bool, "scheduler.cycle_momentum"),
    becomes("cycle_min_mom", RATIO, "scheduler.cycle_min_mom"),
    becomes("cycle_max_mom", RATIO, "scheduler.cycle_max_mom"),
    becomes("decay_mom_rate", NOT_NEGATIVE, "scheduler.decay_mom_rate"),
    LAST_BATCH_ITERATION,
];

const LR_RANGE_TEST: &[Key] = &[
    becomes("lr_range_test_min_lr", NOT_NEGATIVE, "scheduler.lr_range_test_min_lr"),
    becomes("lr_range_test_step_size", Kind::Whole(1), "scheduler.lr_range_test_step_size"),
    becomes("lr_range_test_step_rate", NOT_NEGATIVE, "scheduler.lr_range_test_step_rate"),
    becomes("lr_range_test_staircase", Kind::Bool, "scheduler.lr_range_test_staircase"),
    LAST_BATCH_ITERATION,
];

/// What a schedule cannot do without, by its type.
const REQUIRED: &[(&str, &[&str])] = &[
    ("WarmupDecayLR", &["total_num_steps"]),
    ("WarmupCosineLR", &["total_num_steps"]),
    ("OneCycle", &["cycle_min_lr", "cycle_max_lr"]),
];

/// The options that the schedule of this type cannot do without.
pub(super) fn required(kind: &str) -> &'static [&'static str] {
    REQUIRED.iter().find(|(name, _)| *name == kind).map_or(&[], |(_, options)| options)
}

/// Names the schedule, and refuses one that lacks what it needs.
pub(super) fn translate(found: &Found, given: &Given, draft: &mut Draft) {
    let Some(kind) = found.text("scheduler.type") else { return };
    draft.copy(found, "scheduler.type", "scheduler.type");
    for name in required(kind) {
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
