//! The top level of the file: batch sizes, gradients, and where each block is described.

use std::sync::LazyLock;

use super::{
    checkpoint, extras,
    key::{Fate, Key, Kind, Literal, NO, NOT_NEGATIVE, YES, block, makes, no_meaning, only},
    monitor, optimizer,
    options::with_options,
    parallel, precision, removed, scheduler, sparse, zero,
};
use crate::config::{
    batch::BatchSizes, engine::EngineOptions, monitor::MonitorOptions, options::OptionTable,
};

/// Every key of the top level, blocks by their own files.
pub(super) fn keys() -> &'static [Key] {
    static KEYS: LazyLock<&[Key]> = LazyLock::new(|| {
        let own = [
            BATCH,
            &[optimizer::key(), scheduler::key()],
            TRAINING,
            precision::KEYS,
            &[zero::key()],
            REDUCTION,
            checkpoint::KEYS,
            &monitor::keys(),
            parallel::KEYS,
            extras::KEYS,
            &[sparse::key()],
            removed::KEYS,
        ];
        let rows = [BatchSizes::ROWS, EngineOptions::ROWS, MonitorOptions::ROWS];
        with_options(&own.concat(), &rows, "")
    });
    *KEYS
}

const BATCH: &[Key] = &[
    Key {
        name: "train_micro_batch_size_per_gpu",
        kind: Kind::OrNull(&Kind::Whole(1)),
        fate: Fate::Becomes("micro_batch_size"),
    },
    only(
        "managed_gradient_accumulation",
        Kind::Bool,
        YES,
        "the engine always decides which micro batch ends a step; for one step a micro batch write gradient_accumulation_steps 1",
    ),
    no_meaning(
        "dataloader_drop_last",
        Kind::Bool,
        "loaders are made in the recipe, with their own drop_last",
    ),
];

const TRAINING: &[Key] = &[
    no_meaning(
        "zero_allow_untested_optimizer",
        Kind::Bool,
        "every optimizer of dsr works at every ZeRO stage",
    ),
    no_meaning(
        "zero_force_ds_cpu_optimizer",
        Kind::Bool,
        "there is one implementation of each optimizer",
    ),
];

const REDUCTION: &[Key] = &[
    makes(
        "communication_data_type",
        Kind::OrNull(&Kind::Word(&["fp16", "bf16", "fp32"])),
        "precision.communication_data_type",
    ),
    only(
        "prescale_gradients",
        Kind::Bool,
        NO,
        "dsr divides by the number of processes after the sum, which communication_data_type \"fp32\" keeps from overflowing",
    ),
    only(
        "gradient_predivide_factor",
        NOT_NEGATIVE,
        &[Literal::Number(1.0)],
        "dsr divides by the number of processes after the sum, which communication_data_type \"fp32\" keeps from overflowing",
    ),
    only(
        "gradient_allreduce_op",
        Kind::Word(&["mean", "sum"]),
        &[Literal::Word("mean")],
        "a sum would scale the learning rate with the number of processes; raise lr instead",
    ),
    no_meaning(
        "seq_parallel_communication_data_type",
        Kind::OrNull(&Kind::Word(&["fp16", "bf16", "fp32"])),
        "Ulysses, to which it belongs, is not supported",
    ),
    no_meaning("disable_allgather", Kind::Bool, "DeepSpeed 0.19 does not use it either"),
    no_meaning(
        "allgather_size",
        NOT_NEGATIVE,
        "dsr plans its collectives by the layers of the model",
    ),
    block("timers", TIMERS),
];

const TIMERS: &[Key] = &[block("throughput", THROUGHPUT)];

const THROUGHPUT: &[Key] = &[
    no_meaning("enabled", Kind::Bool, "the progress lines of a run always have the throughput"),
    no_meaning(
        "synchronized",
        Kind::Bool,
        "throughput is measured over whole steps, without waiting for the device",
    ),
];
