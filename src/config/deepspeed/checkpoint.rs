//! What is kept: activations for the backward pass, and checkpoints on a disk.

use super::{
    draft::{Draft, Given},
    found::Found,
    key::{Fate, Key, Kind, NO, block, goes_with, makes, no_meaning, only, refused},
};

pub(super) const KEYS: &[Key] = &[
    block("activation_checkpointing", ACTIVATION_CHECKPOINTING),
    block("checkpoint", CHECKPOINT),
    refused("datastates_ckpt", "its asynchronous checkpoints are not supported; leave it out"),
    Key { name: "aio", kind: Kind::OrNull(&Kind::Block(AIO)), fate: Fate::Inside },
];

const WHY_CONFIGURES: &str = "it configures checkpoints of activations that dsr does not keep";

const ACTIVATION_CHECKPOINTING: &[Key] = &[
    makes("cpu_checkpointing", Kind::Bool, "activation_checkpointing.cpu_checkpointing"),
    no_meaning(
        "partition_activations",
        Kind::Bool,
        "ranks that share layers divide what is kept with the recipe's tensor_parallel: #{ sequence_parallel: true }",
    ),
    no_meaning("contiguous_memory_optimization", Kind::Bool, WHY_CONFIGURES),
    no_meaning("number_checkpoints", Kind::OrNull(&Kind::Whole(1)), WHY_CONFIGURES),
    no_meaning("synchronize_checkpoint_boundary", Kind::Bool, WHY_CONFIGURES),
    no_meaning("profile", Kind::Bool, "wall_clock_breakdown times the backward pass"),
];

const WHY_WRITER: &str = "dsr writes its checkpoints in its own way, whole or not at all";

const CHECKPOINT: &[Key] = &[
    no_meaning(
        "tag_validation",
        Kind::Word(&["Ignore", "Warn", "Fail"]),
        "a checkpoint has one name, which one process gives",
    ),
    no_meaning(
        "load_universal",
        Kind::Bool,
        "a checkpoint of dsr loads on any number of processes",
    ),
    only(
        "use_node_local_storage",
        Kind::Bool,
        NO,
        "a checkpoint is one directory, on storage that all nodes see",
    ),
    block("parallel_write", &[no_meaning("pipeline_stage", Kind::Bool, WHY_WRITER)]),
    no_meaning("checkpoint_serialization", Kind::Bool, WHY_WRITER),
    Key {
        name: "writer",
        kind: Kind::OrNull(&Kind::Block(WRITER)),
        fate: Fate::NoMeaning(WHY_WRITER),
    },
];

const WRITER: &[Key] = &[
    goes_with("type", Kind::Word(&["FAST", "PYTHON", "MOCK"]), "writer"),
    goes_with("io_buffer_size", Kind::Whole(1), "writer"),
    goes_with("io_buffer_double", Kind::Bool, "writer"),
    goes_with("io_multiplier", Kind::Whole(1), "writer"),
    goes_with(
        "data_parallel",
        Kind::OrNull(&Kind::Word(&["replica", "socket", "machine"])),
        "writer",
    ),
    goes_with("decoupled", Kind::Bool, "writer"),
    goes_with("show_statistics", Kind::Bool, "writer"),
];

const WHY_NVME: &str = "it tunes the offload to NVMe, which zero_optimization decides about";

const AIO: &[Key] = &[
    no_meaning("block_size", Kind::Whole(1), WHY_NVME),
    no_meaning("queue_depth", Kind::Whole(1), WHY_NVME),
    no_meaning("intra_op_parallelism", Kind::Whole(1), WHY_NVME),
    no_meaning("single_submit", Kind::Bool, WHY_NVME),
    no_meaning("overlap_events", Kind::Bool, WHY_NVME),
    no_meaning("use_gds", Kind::Bool, WHY_NVME),
    refused(
        "thread_count",
        "DeepSpeed's documentation names it and its code does not know it: write intra_op_parallelism",
    ),
];

/// The block configures DeepSpeed's checkpointing and does not turn it on, which is the recipe's to
/// say: `cpu_checkpointing` holds once it does.
pub(super) fn translate(found: &Found, given: &Given, draft: &mut Draft) {
    const OPTION: &str = "activation_checkpointing.cpu_checkpointing";
    let key = OPTION;
    let is_on = found.flag(key) == Some(true);
    match given.value("activation_checkpointing") {
        Some(value) if value.is_object() || (is_on && value.as_bool() == Some(true)) => {
            draft.copy(found, key, OPTION);
        }
        Some(_) => {}
        None if is_on => draft.note(
            found.at(key),
            format!(
                "`{key}` turns nothing on, as in DeepSpeed: give the recipe's activation_checkpointing: #{{ cpu_checkpointing: true }}"
            ),
        ),
        None => {}
    }
}
