//! `zero_optimization`: what is sharded, and how the shards travel.

use serde_json::json;

use super::{
    draft::Draft,
    found::Found,
    key::{
        Fate, Key, Kind, Literal, NO, NOT_NEGATIVE, RATIO, YES, alias, becomes, goes_with, makes,
        no_meaning, only, refused,
    },
    options::with_options,
};
use crate::config::{options::OptionTable, zero::ZeroConfig};

const WHY_PLANNED: &str = "dsr plans its collectives by the layers of the model";
const WHY_FLAT: &str = "the gradients of a layer always lie in one flat buffer";
const WHY_HOOKS: &str = "dsr walks the layers itself and hooks into no module";

pub(super) fn key() -> Key {
    let keys = Box::new(Kind::Block(with_options(ZERO, &[ZeroConfig::ROWS], "zero")));
    // `true` is the form of old, for stage 1.
    makes("zero_optimization", Kind::Either(&Kind::Bool, Box::leak(keys)), "zero")
}

const ZERO: &[Key] = &[
    Key {
        name: "offload_optimizer",
        kind: Kind::OrNull(&Kind::Block(OFFLOAD_OPTIMIZER)),
        fate: Fate::Inside,
    },
    Key {
        name: "offload_param",
        kind: Kind::OrNull(&Kind::Block(OFFLOAD_PARAM)),
        fate: Fate::Inside,
    },
    makes("cpu_offload", Kind::OrNull(&Kind::Bool), "zero.offload_optimizer"),
    makes("cpu_offload_param", Kind::OrNull(&Kind::Bool), "zero.offload_param"),
    goes_with("cpu_offload_use_pin_memory", Kind::OrNull(&Kind::Bool), "cpu_offload"),
    no_meaning("contiguous_gradients", Kind::Bool, WHY_FLAT),
    no_meaning("reduce_scatter", Kind::Bool, WHY_PLANNED),
    no_meaning("use_multi_rank_bucket_allreduce", Kind::Bool, WHY_PLANNED),
    no_meaning("allgather_partitions", Kind::Bool, WHY_PLANNED),
    no_meaning("round_robin_gradients", Kind::Bool, WHY_FLAT),
    no_meaning("parameter_alignment", Kind::Bool, WHY_FLAT),
    no_meaning("compute_grad_norm", Kind::Bool, "the norm tells whether a step may be applied"),
    only(
        "load_from_fp32_weights",
        Kind::Bool,
        YES,
        "a checkpoint of dsr always resumes from its fp32 weights",
    ),
    no_meaning(
        "elastic_checkpoint",
        Kind::Bool,
        "a checkpoint of dsr loads on any number of processes",
    ),
    no_meaning("sub_group_size", NOT_NEGATIVE, "the optimizer steps layer by layer"),
    no_meaning("stage3_model_persistence_threshold", NOT_NEGATIVE, WHY_PLANNED),
    no_meaning("stage3_max_live_parameters", NOT_NEGATIVE, WHY_PLANNED),
    no_meaning("stage3_max_reuse_distance", NOT_NEGATIVE, WHY_PLANNED),
    no_meaning(
        "stage3_gather_16bit_weights_on_model_save",
        Kind::Bool,
        "export_hf always writes whole weights",
    ),
    no_meaning("stage3_module_granularity_threshold", NOT_NEGATIVE, WHY_PLANNED),
    no_meaning("stage3_use_all_reduce_for_fetch_params", Kind::Bool, WHY_PLANNED),
    no_meaning("stage3_allgather_sequential", Kind::Bool, WHY_PLANNED),
    alias("prefetch_bucket_size", "stage3_prefetch_bucket_size"),
    alias("param_persistence_threshold", "stage3_param_persistence_threshold"),
    alias("model_persistence_threshold", "stage3_model_persistence_threshold"),
    alias("max_live_parameters", "stage3_max_live_parameters"),
    alias("max_reuse_distance", "stage3_max_reuse_distance"),
    alias("gather_16bit_weights_on_model_save", "stage3_gather_16bit_weights_on_model_save"),
    alias("stage3_gather_fp16_weights_on_model_save", "stage3_gather_16bit_weights_on_model_save"),
    alias("module_granularity_threshold", "stage3_module_granularity_threshold"),
    alias("use_all_reduce_for_fetch_params", "stage3_use_all_reduce_for_fetch_params"),
    alias("allgather_sequential", "stage3_allgather_sequential"),
    no_meaning("ignore_unused_parameters", Kind::Bool, "every parameter of a model is used"),
    only("legacy_stage1", Kind::Bool, NO, "DeepSpeed has removed it; leave it out"),
    only(
        "zero_hpz_partition_size",
        Kind::Whole(0),
        &[Literal::Number(1.0)],
        "ZeRO++'s second partition is not supported",
    ),
    only("zero_quantized_weights", Kind::Bool, NO, "ZeRO++'s quantization is not supported"),
    only(
        "zero_quantized_nontrainable_weights",
        Kind::Bool,
        NO,
        "ZeRO++'s quantization is not supported",
    ),
    only("zero_quantized_gradients", Kind::Bool, NO, "ZeRO++'s quantization is not supported"),
    no_meaning(
        "memory_efficient_linear",
        Kind::Bool,
        "the backward pass keeps no gathered weights",
    ),
    no_meaning("override_module_apply", Kind::Bool, WHY_HOOKS),
    no_meaning(
        "pipeline_loading_checkpoint",
        Kind::Bool,
        "a rank reads of a checkpoint only what is its own",
    ),
    no_meaning("log_trace_cache_warnings", Kind::Bool, "no trace of the modules is needed"),
    no_meaning("enable_sanity_checks", Kind::Bool, "dsr's checks are always on"),
    no_meaning(
        "save_muon_momentum_buffer_in_memory",
        Kind::Bool,
        "what is offloaded to NVMe is all of the optimizer's state",
    ),
    Key {
        name: "leaf_module",
        kind: Kind::OrNull(&Kind::Block(LEAF_MODULE)),
        fate: Fate::NoMeaning(WHY_HOOKS),
    },
    Key {
        name: "zenflow",
        kind: Kind::OrNull(&Kind::Any),
        fate: Fate::Refused("ZenFlow is not supported; leave it out"),
    },
    refused("mics_shard_size", "DeepSpeed has removed MiCS"),
    refused("mics_hierarchical_params_gather", "DeepSpeed has removed MiCS"),
    refused("zeropp_loco_param", "DeepSpeed has removed LoCo"),
];

const DEVICE: Kind = Kind::Word(&["none", "cpu", "nvme"]);

const WHY_BUCKET: &str = "stage3_prefetch_bucket_size decides how much is read ahead";
const WHY_PINNED: &str = "host memory is pinned where there is a GPU";
const WHY_OVERLAPS: &str = "reads, updates and writes always overlap, with three buffers";

const OFFLOAD_OPTIMIZER: &[Key] = &[
    becomes("device", DEVICE, "zero.offload_optimizer"),
    makes("nvme_path", Kind::OrNull(&Kind::Text), "zero.nvme_path"),
    no_meaning("buffer_count", Kind::Whole(0), WHY_OVERLAPS),
    no_meaning("pin_memory", Kind::Bool, WHY_PINNED),
    no_meaning("pipeline_read", Kind::Bool, WHY_OVERLAPS),
    no_meaning("pipeline_write", Kind::Bool, WHY_OVERLAPS),
    no_meaning("fast_init", Kind::Bool, "the first state is written layer by layer"),
    makes("ratio", RATIO, "zero.offload_optimizer.ratio"),
    only("super_offload", Kind::Bool, NO, "SuperOffload is not supported"),
    goes_with("cpuadam_cores_perc", RATIO, "super_offload"),
];

const OFFLOAD_PARAM: &[Key] = &[
    becomes("device", DEVICE, "zero.offload_param"),
    makes("nvme_path", Kind::OrNull(&Kind::Text), "zero.nvme_path"),
    no_meaning("buffer_count", Kind::Whole(0), WHY_BUCKET),
    no_meaning("buffer_size", Kind::Whole(0), WHY_BUCKET),
    no_meaning("max_in_cpu", Kind::Whole(0), WHY_BUCKET),
    no_meaning("pin_memory", Kind::Bool, WHY_PINNED),
];

const LEAF_MODULE: &[Key] = &[
    goes_with("classes", Kind::Either(&Kind::Text, &Kind::Texts), "leaf_module"),
    goes_with("names", Kind::Either(&Kind::Text, &Kind::Texts), "leaf_module"),
    goes_with("name_suffixes", Kind::Either(&Kind::Text, &Kind::Texts), "leaf_module"),
];

/// What the older forms stand for.
pub(super) fn translate(found: &Found, draft: &mut Draft) {
    if let Some(is_on) = found.flag("zero_optimization") {
        draft.set(found, "zero_optimization", "zero.stage", json!(u8::from(is_on)));
    }
    for (old, new, option) in [
        ("cpu_offload", "offload_optimizer", "zero.offload_optimizer"),
        ("cpu_offload_param", "offload_param", "zero.offload_param"),
    ] {
        let (old, new) = (format!("zero_optimization.{old}"), format!("zero_optimization.{new}"));
        let Some(is_on) = found.flag(&old) else { continue };
        if found.mentions(&new) {
            draft.fault(found.at(&old), format!("`{old}` is the older form of `{new}`: give one"));
        } else {
            draft.set(found, &old, option, json!(if is_on { "cpu" } else { "none" }));
        }
    }
    nvme_path(found, draft);
    ratio(found, draft);
    ignored_offload(draft);
}

/// Twin-Flow: the share of what is offloaded, where it is not all.
fn ratio(found: &Found, draft: &mut Draft) {
    let device = "zero_optimization.offload_optimizer.device";
    let ratio = found.number("zero_optimization.offload_optimizer.ratio");
    let Some((device_name, ratio)) = found.text(device).zip(ratio.filter(|ratio| *ratio != 1.0))
    else {
        return;
    };
    if !device_name.eq_ignore_ascii_case("none") {
        let map = json!({ "device": device_name, "ratio": ratio });
        draft.set(found, device, "zero.offload_optimizer", map);
    }
}

/// An offload that the stage does not divide: DeepSpeed passes over it.
fn ignored_offload(draft: &mut Draft) {
    let Some(stage) = draft.number("zero.stage") else { return };
    for (name, least) in [("offload_optimizer", 1.0), ("offload_param", 3.0)] {
        let option = format!("zero.{name}");
        let device = draft.text(&option).or_else(|| draft.text(&format!("{option}.device")));
        let is_on = device.is_some_and(|device| device != "none");
        if is_on && stage < least {
            draft.withdraw(&option, &format!("it needs stage {least}, and the stage is {stage}"));
        }
    }
}

/// One directory for both offloads; without the device "nvme" a path means nothing, as in DeepSpeed.
fn nvme_path(found: &Found, draft: &mut Draft) {
    let block = |name: &str, key: &str| format!("zero_optimization.{name}.{key}");
    let used = ["offload_optimizer", "offload_param"].into_iter().filter(|name| {
        let device = found.text(&block(name, "device"));
        device.is_some_and(|device| device.eq_ignore_ascii_case("nvme"))
    });
    let mut paths = used
        .map(|name| block(name, "nvme_path"))
        .filter_map(|key| found.text(&key).map(|path| (key.clone(), path)));
    let Some((first, path)) = paths.next() else { return };
    if let Some((other, _)) = paths.find(|(_, other)| *other != path) {
        let message =
            format!("`{other}` is not the directory of `{first}`: dsr takes one for both");
        draft.fault(found.at(&other), message);
    }
    draft.set(found, &first, "zero.nvme_path", json!(path));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::config::deepspeed::tests::{faults, options};

    fn zero(offload: &str) -> serde_json::Value {
        let zero = format!(r#"{{ "stage": 3, "offload_optimizer": {offload} }}"#);
        options(&format!(r#"{{ "zero_optimization": {zero} }}"#))["zero"].clone()
    }

    #[test]
    fn a_ratio_is_a_share_of_what_goes() {
        let shared = json!({ "device": "cpu", "ratio": 0.4 });
        let expected = json!({ "stage": 3, "offload_optimizer": shared });
        assert_eq!(zero(r#"{ "device": "cpu", "ratio": 0.4 }"#), expected);
        let whole = json!({ "stage": 3, "offload_optimizer": "cpu" });
        assert_eq!(zero(r#"{ "device": "cpu", "ratio": 1.0 }"#), whole);
        let none = json!({ "stage": 3, "offload_optimizer": "none" });
        assert_eq!(zero(r#"{ "device": "none", "ratio": 0.4 }"#), none);
        let text = r#"{ "zero_optimization": { "stage": 3,
"offload_optimizer": { "device": "cpu", "ratio": 1.4 } } }"#;
        assert_eq!(faults(text).len(), 1);
    }

    /// DeepSpeed passes over it, and a file is taken as DeepSpeed takes it.
    #[test]
    fn an_offload_below_its_stage_is_passed_over() {
        let text = r#"{ "zero_optimization": { "stage": 0,
"offload_optimizer": { "device": "cpu", "ratio": 0.4 } } }"#;
        assert_eq!(options(text)["zero"], json!({ "stage": 0 }));
    }
}
