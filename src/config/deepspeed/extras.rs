//! What DeepSpeed has around training and dsr has not: what is off is fine.

use super::key::{Fate, Key, Kind, NO, NOT_NEGATIVE, block, goes_with, no_meaning, only, refused};

pub(super) const KEYS: &[Key] = &[
    block("hybrid_engine", HYBRID_ENGINE),
    block("compile", COMPILE),
    block("autotuning", AUTOTUNING),
    block("data_efficiency", DATA_EFFICIENCY),
    refused("weight_quantization", "give the recipe's load_model quantize: \"int8\""),
    no_meaning("disable_python_gc", Kind::Bool, "there is no Python"),
];

const HYBRID_ENGINE: &[Key] = &[
    only(
        "enabled",
        Kind::Bool,
        NO,
        "generate works with the model in training; no second engine is needed",
    ),
    goes_with("max_out_tokens", Kind::Whole(1), "enabled"),
    goes_with("inference_tp_size", Kind::Whole(1), "enabled"),
    goes_with("release_inference_cache", Kind::Bool, "enabled"),
    goes_with("pin_parameters", Kind::Bool, "enabled"),
    goes_with("tp_gather_partition_size", Kind::Whole(1), "enabled"),
    goes_with("enable_cuda_graph", Kind::Bool, "enabled"),
];

const COMPILE: &[Key] = &[
    no_meaning("disable", Kind::Bool, "there is no Python code to compile"),
    no_meaning("backend", Kind::Text, "there is no Python code to compile"),
    only("deepcompile", Kind::Bool, NO, "there is no Python code to compile"),
    only("autoep_non_moe", Kind::Bool, NO, "there is no Python code to compile"),
    goes_with("passes", Kind::OrNull(&Kind::Texts), "deepcompile"),
    goes_with("free_activation", Kind::Bool, "deepcompile"),
    goes_with("free_activation_threshold", Kind::Whole(0), "deepcompile"),
    goes_with("offload_activation", Kind::Bool, "deepcompile"),
    goes_with("offload_activation_pin_memory", Kind::Bool, "deepcompile"),
    goes_with("offload_opt_states", Kind::Bool, "deepcompile"),
    goes_with("offload_parameters", Kind::Bool, "deepcompile"),
    goes_with("double_buffer", Kind::Bool, "deepcompile"),
    goes_with("symmetric_memory", Kind::Bool, "deepcompile"),
    goes_with("debug_log", Kind::Bool, "deepcompile"),
    goes_with("sync_before_reduce", Kind::Bool, "deepcompile"),
    goes_with("sync_after_reduce", Kind::Bool, "deepcompile"),
    goes_with("sync_before_allgather", Kind::Bool, "deepcompile"),
    goes_with("sync_after_allgather", Kind::Bool, "deepcompile"),
    goes_with("keep_int_input_tensors", Kind::Bool, "deepcompile"),
    goes_with("keep_all_input_tensors", Kind::Bool, "deepcompile"),
];

const AUTOTUNING: &[Key] = &[
    only(
        "enabled",
        Kind::Bool,
        NO,
        "settings are not searched for; `dsr sweep` runs a recipe with different parameters",
    ),
    goes_with("fast", Kind::Bool, "enabled"),
    goes_with("results_dir", Kind::Text, "enabled"),
    goes_with("exps_dir", Kind::Text, "enabled"),
    goes_with("overwrite", Kind::Bool, "enabled"),
    goes_with("start_profile_step", Kind::Whole(0), "enabled"),
    goes_with("end_profile_step", Kind::Whole(0), "enabled"),
    goes_with("metric", Kind::Text, "enabled"),
    goes_with("metric_path", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("tuner_type", Kind::Word(&["gridsearch", "random", "model_based"]), "enabled"),
    goes_with("tuner_early_stopping", Kind::Whole(0), "enabled"),
    goes_with("tuner_num_trials", Kind::Whole(1), "enabled"),
    goes_with("arg_mappings", Kind::OrNull(&Kind::Any), "enabled"),
    Key {
        name: "model_info",
        kind: Kind::OrNull(&Kind::Block(MODEL_INFO)),
        fate: Fate::GoesWith("enabled"),
    },
    goes_with("model_info_path", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("mp_size", Kind::Whole(1), "enabled"),
    goes_with("max_train_batch_size", Kind::OrNull(&Kind::Whole(1)), "enabled"),
    goes_with("min_train_batch_size", Kind::Whole(1), "enabled"),
    goes_with("max_train_micro_batch_size_per_gpu", Kind::Whole(1), "enabled"),
    goes_with("min_train_micro_batch_size_per_gpu", Kind::Whole(1), "enabled"),
    goes_with("num_tuning_micro_batch_sizes", Kind::Whole(1), "enabled"),
];

const MODEL_INFO: &[Key] = &[
    goes_with("profile", Kind::Bool, "enabled"),
    goes_with("num_params", Kind::OrNull(&NOT_NEGATIVE), "enabled"),
    goes_with("hidden_size", Kind::OrNull(&NOT_NEGATIVE), "enabled"),
    goes_with("num_layers", Kind::OrNull(&NOT_NEGATIVE), "enabled"),
];

const WHY_DATA: &str = "rows are chosen and ordered in the recipe: .filter, .shuffle, .pack";

const DATA_EFFICIENCY: &[Key] = &[
    only("enabled", Kind::Bool, NO, WHY_DATA),
    goes_with("seed", Kind::Whole(0), "enabled"),
    block("data_sampling", DATA_SAMPLING),
    block("data_routing", DATA_ROUTING),
];

const DATA_SAMPLING: &[Key] = &[
    only("enabled", Kind::Bool, NO, WHY_DATA),
    goes_with("num_epochs", Kind::Whole(1), "enabled"),
    goes_with("num_workers", Kind::Whole(0), "enabled"),
    goes_with("pin_memory", Kind::Bool, "enabled"),
    block("curriculum_learning", CURRICULUM_LEARNING),
    block("dynamic_batching", DYNAMIC_BATCHING),
];

const CURRICULUM_LEARNING: &[Key] = &[
    only("enabled", Kind::Bool, NO, WHY_DATA),
    goes_with("data_cluster_path", Kind::Text, "enabled"),
    goes_with("curriculum_metrics", Kind::Any, "enabled"),
];

const DYNAMIC_BATCHING: &[Key] = &[
    only("enabled", Kind::Bool, NO, "a micro batch has as many rows as micro_batch_size says"),
    goes_with("metrics_path", Kind::Text, "enabled"),
    goes_with("lr_scaling_method", Kind::Text, "enabled"),
    goes_with("min_batch_size", Kind::Whole(1), "enabled"),
    goes_with("max_batch_size", Kind::OrNull(&Kind::Whole(1)), "enabled"),
    goes_with("sequence_picking_order", Kind::Text, "enabled"),
    goes_with("max_tokens", Kind::Whole(1), "enabled"),
    goes_with("verbose", Kind::Bool, "enabled"),
    goes_with("dataloader", Kind::Any, "enabled"),
];

const DATA_ROUTING: &[Key] = &[
    only("enabled", Kind::Bool, NO, "every layer sees every token"),
    block("random_ltd", RANDOM_LTD),
];

const RANDOM_LTD: &[Key] = &[
    only("enabled", Kind::Bool, NO, "every layer sees every token"),
    goes_with("total_layer_num", Kind::Whole(1), "enabled"),
    goes_with("random_ltd_layer_num", Kind::Whole(0), "enabled"),
    goes_with("random_ltd_layer_id", Kind::Any, "enabled"),
    goes_with("model_mask_name", Kind::OrNull(&Kind::Text), "enabled"),
    goes_with("model_type", Kind::Text, "enabled"),
    goes_with("hidden_state_order", Kind::Text, "enabled"),
    goes_with("micro_batch_size", Kind::Whole(1), "enabled"),
    goes_with("global_batch_size", Kind::Whole(1), "enabled"),
    goes_with("random_ltd_schedule", Kind::Any, "enabled"),
    goes_with("layer_token_lr_schedule", Kind::Any, "enabled"),
];
