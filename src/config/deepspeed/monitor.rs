//! What is printed, logged and measured.

use super::{
    draft::Draft,
    found::Found,
    key::{Key, Kind, NO, block, goes_with, no_meaning, only},
    options::with_options,
};
use crate::config::{FlopsProfilerConfig, LogDir, options::OptionTable};

pub(super) fn keys() -> Vec<Key> {
    let options = |name, rows| block(name, with_options(&[], &[rows], name));
    vec![
        only(
            "memory_breakdown",
            Kind::Bool,
            NO,
            "memory is not shown between the phases of a step; metrics.jsonl has that of each step",
        ),
        options("flops_profiler", FlopsProfilerConfig::ROWS),
        options("csv_monitor", LogDir::ROWS),
        options("tensorboard", LogDir::ROWS),
        block("wandb", WANDB),
        block("comet", COMET),
        block("comms_logger", COMMS_LOGGER),
        no_meaning("dump_state", Kind::Bool, "dsr config shows what the file is read as"),
        no_meaning("log_level", Kind::OrNull(&Kind::Text), "dsr --verbose tells more"),
        no_meaning(
            "vocabulary_size",
            Kind::OrNull(&Kind::Whole(0)),
            "DeepSpeed only warns when it is no multiple of 8",
        ),
    ]
}

const WHY_LOCAL: &str =
    "dsr sends nothing away; csv_monitor and tensorboard write files that can be uploaded";

const WANDB: &[Key] = &[
    only("enabled", Kind::Bool, NO, WHY_LOCAL),
    goes_with("group", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("team", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("project", Kind::Text, "enabled"),
];

const COMET: &[Key] = &[
    only("enabled", Kind::Bool, NO, WHY_LOCAL),
    goes_with("samples_log_interval", Kind::Whole(1), "enabled"),
    goes_with("project", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("workspace", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("api_key", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("experiment_name", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("experiment_key", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("online", Kind::OrNull(&Kind::Bool), "enabled"),
    goes_with("mode", Kind::OrNull(&Kind::Text), "enabled"),
];

const COMMS_LOGGER: &[Key] = &[
    only("enabled", Kind::Bool, NO, "collectives are not logged; wall_clock_breakdown times them"),
    goes_with("prof_all", Kind::Bool, "enabled"),
    goes_with("prof_ops", Kind::Texts, "enabled"),
    goes_with("verbose", Kind::Bool, "enabled"),
    goes_with("debug", Kind::Bool, "enabled"),
];

/// Takes away what is not enabled: DeepSpeed has these blocks off without a word.
pub(super) fn translate(found: &Found, draft: &mut Draft) {
    for name in ["flops_profiler", "csv_monitor", "tensorboard"] {
        let enabled = format!("{name}.enabled");
        if found.flag(&enabled) != Some(true) && !found.is_auto(&enabled) {
            draft.drop_block(name);
        }
    }
}
