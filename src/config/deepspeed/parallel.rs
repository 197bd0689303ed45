//! Parallelism beside data parallelism. What dsr does not have is fine where it is off.

use serde_json::json;

use super::{
    draft::Draft,
    found::Found,
    key::{
        ANY_NUMBER, Fate, Key, Kind, Literal, NO, NOT_NEGATIVE, block, goes_with, makes,
        no_meaning, only,
    },
};

pub(super) const KEYS: &[Key] = &[
    block("tensor_parallel", TENSOR_PARALLEL),
    block("expert_parallel", EXPERT_PARALLEL),
    block("pipeline", PIPELINE),
    only(
        "sequence_parallel_size",
        Kind::Whole(1),
        &[Literal::Number(1.0)],
        "Ulysses is not supported; ranks that share layers divide the tokens with the recipe's tensor_parallel: #{ sequence_parallel: true }",
    ),
    no_meaning(
        "data_parallel_size",
        Kind::Whole(1),
        "the processes that neither stages nor shared layers take are data parallel",
    ),
    no_meaning("use_data_before_expert_parallelism", Kind::Bool, "there is no expert parallelism"),
];

const SIZE: &str = "autotp_size";

const TENSOR_PARALLEL: &[Key] = &[
    makes(SIZE, Kind::Whole(0), "tensor_parallel.autotp_size"),
    only("tp_overlap_comm", Kind::Bool, NO, "a rank waits for the sum of a layer"),
    no_meaning("preset_model", Kind::OrNull(&Kind::Text), WHY_FAMILY),
    Key {
        name: "partition_config",
        kind: Kind::OrNull(&Kind::Any),
        fate: Fate::Refused(WHY_FAMILY),
    },
    no_meaning("vocab_parallel_lm_head", Kind::OrNull(&Kind::Bool), WHY_VOCABULARY),
    no_meaning("vocab_parallel_ce_backend", Kind::Word(&["torch", "liger"]), WHY_VOCABULARY),
    no_meaning("dtype", Kind::Text, "the precision decides"),
    Key { name: "tp", kind: Kind::Block(TP), fate: Fate::Inside },
    Key { name: "tensor_parallel", kind: Kind::Block(TP), fate: Fate::Inside },
    no_meaning("injection_policy_tuple", Kind::OrNull(&Kind::Any), WHY_FAMILY),
    no_meaning("keep_module_on_host", Kind::Bool, "a rank reads its part of each parameter"),
    no_meaning("kernel_inject", Kind::Bool, "it is for inference"),
    no_meaning("replace_with_kernel_inject", Kind::Bool, "it is for inference"),
];

const WHY_VOCABULARY: &str =
    "ranks that share layers always divide the vocabulary, and none has all logits of a loss";

const WHY_FAMILY: &str = "dsr knows how the layers of a family are divided";

const TP: &[Key] = &[
    only("tp_size", Kind::Whole(1), &[Literal::Number(1.0)], "write autotp_size"),
    goes_with("tp_grain_size", Kind::Whole(1), "tp_size"),
    goes_with("mpu", Kind::Any, "tp_size"),
    goes_with("tp_group", Kind::Any, "tp_size"),
];

const EXPERT_PARALLEL: &[Key] = &[
    only("enabled", Kind::Bool, NO, "the models have no experts"),
    goes_with("autoep_size", Kind::Whole(1), "enabled"),
    goes_with("expert_tensor_parallel_size", Kind::Whole(1), "enabled"),
    goes_with("validate_folding_routing", Kind::Bool, "enabled"),
    goes_with("async_split_plan", Kind::Bool, "enabled"),
    goes_with("preset_model", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("moe_layer_pattern", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("expert_pattern", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("router_pattern", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("use_grouped_mm", Kind::Bool, "enabled"),
    goes_with("disable_triton_grouped_mm", Kind::Bool, "enabled"),
    goes_with("route_norm", Kind::OrNull(&Kind::Bool), "enabled"),
    goes_with("route_scale", ANY_NUMBER, "enabled"),
    goes_with("score_apply", Kind::Text, "enabled"),
    goes_with("combine_impl", Kind::Text, "enabled"),
    goes_with("row_weighting_impl", Kind::Text, "enabled"),
    goes_with("gate_up_impl", Kind::Text, "enabled"),
    goes_with("comm_backend", Kind::Text, "enabled"),
    goes_with("comm_num_sm", Kind::Whole(0), "enabled"),
    goes_with("comm_qp_margin", Kind::Whole(0), "enabled"),
    goes_with("comm_max_tokens_per_rank", Kind::Whole(0), "enabled"),
    goes_with("num_expert_groups", Kind::OrNull(&Kind::Whole(1)), "enabled"),
    goes_with("num_limited_groups", Kind::OrNull(&Kind::Whole(1)), "enabled"),
    goes_with("score_func", Kind::Text, "enabled"),
    goes_with("top_k", Kind::Whole(1), "enabled"),
    goes_with("load_balance_coeff", Kind::OrNull(&NOT_NEGATIVE), "enabled"),
    goes_with("routed_scaling_factor", ANY_NUMBER, "enabled"),
    goes_with("expert_w1", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("expert_w2", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("expert_w3", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("num_experts_attr", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("top_k_attr", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("has_shared_experts", Kind::OrNull(&Kind::Bool), "enabled"),
    goes_with("shared_experts_pattern", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("shared_experts_gate_pattern", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("expert_activation", Kind::OrNull(&Kind::Text), "enabled"),
];

const PIPELINE: &[Key] = &[
    // How many there are is for the recipe to say.
    makes("stages", Kind::Either(&Kind::Word(&["auto"]), &Kind::Whole(1)), "pipeline.stages"),
    makes("partition", Kind::Word(PARTITIONS), "pipeline.partition_method"),
    makes("partition_method", Kind::Word(PARTITIONS), "pipeline.partition_method"),
    no_meaning(
        "seed_layers",
        Kind::Bool,
        "a parameter starts from the seed and its name, whatever stage it is in",
    ),
    only(
        "activation_checkpoint_interval",
        Kind::Whole(0),
        &[Literal::Number(0.0)],
        "give the recipe's activation_checkpointing: #{ every: n }",
    ),
    no_meaning("pipe_partitioned", Kind::Bool, WHY_WHOLE),
    no_meaning("grad_partitioned", Kind::Bool, WHY_WHOLE),
];

/// DeepSpeed's ways to cut layers; `best` is its name for the default.
const PARTITIONS: &[&str] = &["best", "parameters", "uniform"];

const WHY_WHOLE: &str = "what stages send to each other is never divided";

/// The ranks that share layers, the stages, and how layers are cut into them. `"auto"` stages are the recipe's to say.
pub(super) fn translate(found: &Found, draft: &mut Draft) {
    const SHARERS: &str = "tensor_parallel.autotp_size";
    if let Some(sharers) = found.value(SHARERS).and_then(serde_json::Value::as_u64) {
        // 0 is DeepSpeed's word for none.
        draft.set(found, SHARERS, SHARERS, json!(sharers.max(1)));
    }
    const STAGES: &str = "pipeline.stages";
    if let Some(stages) = found.value(STAGES).filter(|stages| stages.is_number()) {
        draft.set(found, STAGES, STAGES, stages.clone());
    }
    for key in ["pipeline.partition", "pipeline.partition_method"] {
        if let Some(method) = found.text(key) {
            let method = if method == "best" { "parameters" } else { method };
            draft.set(found, key, "pipeline.partition_method", json!(method));
        }
    }
}
