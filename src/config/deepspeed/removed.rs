//! Keys that DeepSpeed 0.19.8 has removed, and refuses by name as dsr does.

use super::key::{Key, refused};

pub(super) const KEYS: &[Key] = &[
    refused("amp", "DeepSpeed has removed Apex AMP; write bf16 or fp16: { \"enabled\": true }"),
    refused("compression_training", "DeepSpeed has removed its compression library"),
    refused(
        "curriculum_learning",
        "DeepSpeed has removed the legacy curriculum; order the rows of the dataset in the recipe",
    ),
    refused(
        "eigenvalue",
        "DeepSpeed has removed it with Mixture-of-Quantization, which it belonged to",
    ),
    refused(
        "elasticity",
        "DeepSpeed has removed elastic training; write the batch sizes themselves. A checkpoint of dsr loads on any number of processes",
    ),
    refused("graph_harvesting", "DeepSpeed has removed it"),
    refused("nebula", "DeepSpeed has removed Nebula checkpointing"),
    refused("progressive_layer_drop", "DeepSpeed has removed it"),
    refused("quantize_training", "DeepSpeed has removed Mixture-of-Quantization"),
    refused(
        "sparse_gradients",
        "DeepSpeed has removed it; the gradient of an embedding is summed as a whole",
    ),
];
