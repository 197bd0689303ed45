//! Keys that change what some model of transformers computes: no family whose table lacks them may pass
//! over them.

use super::table::{Neutral, Neutral::Number, Neutral::OnlyTrue, Neutral::Text, Table};

/// Keys that change one part of a model.
struct KeyGroup {
    /// The reason for refusing them.
    why: &'static str,
    /// Values that turn them off, beside null, false and what is empty.
    also_off: &'static [Neutral],
    /// Their names, with blanks between.
    keys: &'static str,
}

/// A [`KeyGroup`].
const fn group(why: &'static str, also_off: &'static [Neutral], keys: &'static str) -> KeyGroup {
    KeyGroup { why, also_off, keys }
}

/// The reason for refusing `key`, and the values that turn it off; `None` for a key that changes
/// nothing.
pub(super) fn refusal(table: &Table, key: &str) -> Option<(&'static str, &'static [Neutral])> {
    let of_family = table.refused.iter().find(|refused| refused.key == key);
    of_family.map(|refused| (refused.why, refused.also_off)).or_else(|| {
        let group =
            ARITHMETIC.iter().find(|group| group.keys.split(' ').any(|known| known == key))?;
        Some((group.why, group.also_off))
    })
}

/// The keys, by what they change.
const ARITHMETIC: &[KeyGroup] = &[
    group(
        "dsr reads weights in floating point, and quantizes them itself: load_model(dir, #{ quantize: \"nf4\" })",
        &[],
        "quantization_config compression_config",
    ),
    group(
        "all blocks of dsr's models are alike",
        &[],
        "per_layer_config pruned_heads num_attention_heads_per_layer layer_rope_theta cross_attention_layers",
    ),
    group(
        "dsr's decoders attend to their own text alone",
        &[],
        "add_cross_attention cross_attention_hidden_size prefix_lm use_bidirectional_attention vision_config audio_config speech_config text_config",
    ),
    group("a decoder of dsr reads from left to right", &[OnlyTrue], "is_causal"),
    group("dsr's MLPs have no experts", &[Number(0.0), Text("dense")], EXPERTS),
    group("dsr has no layers of this kind", &[Number(0.0)], OTHER_LAYERS),
    group(
        "dsr predicts the next token alone",
        &[Number(0.0)],
        "num_nextn_predict_layers num_mtp_layers mtp_num_hidden_layers mtp_num_layers",
    ),
    group("dsr does not scale these values in this family", &[Number(1.0)], MULTIPLIERS),
    group("dsr does not scale these values in this family", &[], "scale_depth dim_model_base"),
    group("dsr does not cap these values in this family", &[Number(0.0)], CAPS),
    group(
        "dsr divides attention scores of this family by the root of the head's width",
        &[],
        "attention_multiplier query_pre_attn_scalar softmax_scale attn_scale",
    ),
    group("dsr gives this family its own positions", &[], POSITIONS),
    group(
        "dsr gives this family its own positions",
        &[Number(1.0)],
        "partial_rotary_factor rotary_pct no_rope_layers rope_ratio rope_scaling_factor",
    ),
    group(
        "dsr gives this family its own positions",
        &[Text("absolute"), Text("rope")],
        "position_embedding_type",
    ),
    group(
        "attention of this family reaches over the whole text",
        &[Text("full_attention"), Text("global")],
        WINDOWS,
    ),
    group("dsr's attention of this family has no such part", &[Number(0.0)], ATTENTION),
    group("dsr's blocks of this family are built otherwise", &[Number(0.0)], BLOCKS),
    group("dsr does not drop these values out in this family", &[Number(0.0)], DROPOUT),
];

/// Mixtures of experts.
const EXPERTS: &str = "\
    is_moe num_local_experts num_experts num_experts_per_tok num_experts_per_token \
    num_shared_experts n_routed_experts n_shared_experts moe_num_experts \
    moe_num_shared_experts moe_intermediate_size moe_top_k moe_topk moe_k \
    mlp_layer_types expert_ffn_hidden_size shared_expert_intermediate_size \
    shared_intermediate_size zero_expert_num first_k_dense_replace ffn_config";

/// Layers that are neither attention nor MLP, or stand beside them.
const OTHER_LAYERS: &str = "\
    layers_block_type block_types hybrid_override_pattern attn_layer_indices \
    attn_layer_period full_attn_idxs mamba_d_state mamba_num_heads ssm_state_size \
    state_size lru_width conv_L_cache linear_num_key_heads linear_num_value_heads \
    short_conv_kernel_size hc_mult altup_num_inputs laurel_rank";

/// Factors of hidden states and logits.
const MULTIPLIERS: &str = "\
    logits_scaling logit_scale residual_multiplier embedding_multiplier embedding_scale \
    attention_in_multiplier attention_out_multiplier attention_value_scale \
    key_multiplier lm_head_multiplier mlp_multipliers scale_emb scale_embedding \
    scale_embeddings rescale_embeddings mup_enabled use_mup mup_scale_factor";

/// Bounds of scores, logits and activations.
const CAPS: &str = "\
    attn_logit_softcapping final_logit_softcapping attention_logit_cap logits_soft_cap \
    output_logit_soft_cap clip_qkv swiglu_limit swiglu_alpha";

/// The positions of tokens.
const POSITIONS: &str = "\
    rope_theta rope_scaling rope_parameters rope_local_base_freq rope_interleaved \
    rope_interleave rotary_dim rotary_emb_base rotary_emb_fraction rotary_value \
    original_max_position_embeddings use_mrope mrope_section use_rotary_embedding no_rope_layer_interval \
    nope_layer_interval attn_temperature_tuning alibi use_alibi \
    relative_attention_num_buckets";

/// Attention that does not reach over the whole text.
const WINDOWS: &str = "\
    sliding_window use_sliding_window sliding_window_pattern _sliding_window_pattern \
    layer_types attention_types attention_window attention_window_size \
    attention_chunk_size local_attention global_attn_every_n_layers window_size";

/// Parts of attention.
const ATTENTION: &str = "\
    use_qk_norm qk_norm qk_layernorm qk_layer_norm use_qk_layernorm qk_ln \
    num_key_value_heads num_kv_heads num_kv_shared_layers multi_query \
    multi_query_attention multi_query_group_num new_decoder_architecture head_dim \
    v_head_dim qk_rope_head_dim qk_nope_head_dim q_lora_rank kv_lora_rank o_lora_rank \
    index_topk attention_k_eq_v use_attention_gate attention_sink attn_config \
    attention_bias attention_out_bias qkv_bias use_qkv_bias";

/// The order of a block and its biases.
const BLOCKS: &str = "\
    parallel_attn parallel_attention use_parallel_residual \
    apply_residual_connection_post_layernorm use_post_norm post_norm use_sandwich_norm \
    add_out_norm layernorm_embedding mlp_bias add_bias_linear lm_head_bias";

/// Dropout.
const DROPOUT: &str = "\
    dropout dropout_rate dropout_p attention_dropout attn_pdrop resid_pdrop embd_pdrop \
    emb_pdrop hidden_dropout residual_dropout embedding_dropout activation_dropout \
    mlp_dropout layerdrop";
