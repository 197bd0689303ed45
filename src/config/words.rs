//! The names that users of transformers, TRL, torchtune, PyTorch and DeepSpeed type out of habit, each
//! with what it is called here.

/// The way to say `name` here, if it is a name of elsewhere.
pub fn of_elsewhere(name: &str) -> Option<&'static str> {
    WORDS.iter().find(|(names, _)| names.contains(&name)).map(|(_, here)| *here)
}

/// The one of these words that means `value`, which may be called so elsewhere.
pub fn alike<'a>(value: &str, mut words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let value = value.to_lowercase();
    let names = ALIKE.iter().find(|names| names.contains(&value.as_str()))?;
    words.find(|word| names.contains(word))
}

const ALIKE: &[&[&str]] = &[
    &["fp32", "float32", "float"],
    &["bf16", "bfloat16"],
    &["fp16", "float16", "half"],
    &["nf4", "int4", "fp4", "4bit"],
    &["int8", "8bit"],
];

const WORDS: &[(&[&str], &str)] = &[
    (
        &["per_device_train_batch_size", "per_device_batch_size", "batch_size"],
        "rows in a forward pass of one process are `micro_batch_size`",
    ),
    (
        &["global_batch_size"],
        "the global batch is micro_batch_size x gradient_accumulation_steps x the number of processes: \
         set these",
    ),
    (
        &["per_device_eval_batch_size", "eval_batch_size"],
        "an evaluation has the rows of `micro_batch_size` in a pass",
    ),
    (&["grad_accum", "accumulate_grad_batches"], "write `gradient_accumulation_steps`"),
    (&["bf16", "use_bf16"], "write precision: \"bf16\""),
    (&["fp16", "use_fp16", "amp", "half"], "write precision: \"fp16\""),
    (&["fp32"], "write precision: \"fp32\", which is the default"),
    (&["torch_dtype", "mixed_precision"], "write precision: \"bf16\", \"fp16\" or \"fp32\""),
    (
        &["zero_stage", "deepspeed"],
        "write zero: #{ stage: 2 }; a whole file of DeepSpeed's is read by from_deepspeed(path)",
    ),
    (
        &["max_grad_norm", "clip_grad_norm", "grad_clip", "gradient_clip_val", "clip_grad_norm_"],
        "write gradient_clipping: 1.0 in the options of init_engine",
    ),
    (
        &["learning_rate"],
        "write lr in the optimizer's map: optimizer: #{ type: \"AdamW\", lr: 1e-4 }",
    ),
    (
        &["warmup_steps", "num_warmup_steps", "warmup_ratio"],
        "write warmup_num_steps in the scheduler's map: scheduler: #{ type: \"cosine\", \
         total_num_steps: 1000, warmup_num_steps: 100 }",
    ),
    (
        &["lr_scheduler_type", "lr_scheduler", "lr_schedule"],
        "write scheduler: #{ type: \"cosine\", total_num_steps: 1000 }",
    ),
    (
        &[
            "load_in_4bit",
            "load_in_8bit",
            "bnb_4bit_quant_type",
            "bnb_4bit_use_double_quant",
            "quantization_config",
        ],
        "write quantize: \"nf4\" or \"int8\", and double_quant: true for scales in 8 bits",
    ),
    (&["optim", "optimizer_type"], "write optimizer: #{ type: \"AdamW\", lr: 1e-4 }"),
    (
        &["adam_beta1", "adam_beta2", "beta1", "beta2"],
        "write betas: [0.9, 0.999] in the optimizer's map",
    ),
    (&["adam_epsilon", "epsilon"], "write eps in the optimizer's map"),
    (
        &["params", "weight_decay_rate"],
        "the settings of an optimizer or scheduler stand beside its type: #{ type: \"AdamW\", lr: \
         1e-4, weight_decay: 0.1 }",
    ),
    (
        &["gradient_checkpointing", "gradient_checkpointing_enable", "use_gradient_checkpointing"],
        "write activation_checkpointing: true in the options of init_engine",
    ),
    (&["num_train_epochs", "num_epochs", "n_epochs"], "write epochs in the options of loader"),
    (
        &["max_steps", "num_training_steps", "max_iters"],
        "write total_steps in the options of start_run",
    ),
    (&["save_steps", "save_interval"], "write save_every in the options of start_run"),
    (&["save_total_limit"], "write keep in the options of start_run"),
    (
        &["eval_steps", "eval_interval", "evaluation_strategy", "eval_strategy"],
        "write eval_every in the options of trainer::fit, or call run.evaluate(dataset)",
    ),
    (&["logging_steps", "log_interval"], "write steps_per_print in the options of init_engine"),
    (&["output_dir"], "a run lies in runs/NAME: write name in the options of start_run"),
    (&["run_name"], "write name in the options of start_run"),
    (&["resume_from_checkpoint"], "resume on the command line: dsr run RECIPE --resume auto"),
    (
        &["max_seq_length", "max_seq_len", "block_size", "context_length", "packing"],
        "join rows to this length with .pack(seq_len), or cut them with .tokenize(tok, #{ max_length: \
         ..., truncation: true })",
    ),
    (
        &["dataset_text_field", "text_column", "text_field"],
        "write field in the options of tokenize",
    ),
    (
        &["num_workers", "dataloader_num_workers", "prefetch"],
        "write prefetch_factor in the options of loader",
    ),
    (&["dataloader_drop_last"], "write drop_last in the options of loader"),
    (&["pin_memory"], "leave it out: batches travel from pinned memory where that helps"),
    (
        &["report_to", "wandb_project"],
        "dsr writes metrics.jsonl, TensorBoard files and CSV: see `dsr doc init_engine`",
    ),
    (
        &["do_sample"],
        "leave it out: generate takes the most likely token at temperature: 0, and draws one at any \
         other",
    ),
    (
        &["max_length", "max_tokens", "min_length", "max_gen_len"],
        "write max_new_tokens or min_new_tokens: they count the tokens after the prompt",
    ),
    (
        &["stop_strings", "stop_sequences", "stop_words", "stopping_criteria"],
        "write stop: [\"\\n\\n\"] in the options of generate",
    ),
    (
        &["return_dict_in_generate", "output_scores", "return_logprobs"],
        "write return_details: true and logprobs: true in the options of generate",
    ),
    (&["streamer", "stream"], "write on_token: |text| print(text) in the options of generate"),
    (
        &["num_beams", "num_beam_groups", "early_stopping", "length_penalty"],
        "dsr has no beam search: write temperature, top_k, top_p or min_p, and num_return_sequences for \
         several texts",
    ),
    (
        &["eos_token_id", "pad_token_id", "bos_token_id"],
        "leave it out: the tokenizer and the model's generation_config.json say it",
    ),
    (&["tolist", "numpy", "detach_numpy"], "write .to_array() for the values of a tensor"),
    (
        &["num_parameters", "numel_total", "count_params", "get_num_params"],
        "write model.num_params",
    ),
    (
        &["train", "eval"],
        "leave it out: an engine trains in forward, backward and step, evaluates in evaluate, and \
         clears gradients itself",
    ),
    (&["cuda", "cpu", "to_device"], "leave it out: the device is chosen by dsr run --device"),
    (
        &["state_dict", "load_state_dict"],
        "write engine.save_checkpoint(dir) and engine.load_checkpoint(dir)",
    ),
    (
        &["save_pretrained", "push_to_hub", "save_model"],
        "write model.export_hf(dir, #{ tokenizer: tok })",
    ),
    (&["from_pretrained"], "write load_model(\"Owner/name\") or tokenizer(\"Owner/name\")"),
    (&["load_dataset"], "write dataset(\"Owner/name\", #{ split: \"train\" })"),
    (&["concatenate_datasets"], "write a + b, or a.concat(b)"),
    (
        &["interleave_datasets", "interleave", "probabilities", "stopping_strategy"],
        "write mix([a, b], #{ weights: [0.75, 0.25], stop: \"first\" })",
    ),
    (&["remove_columns"], "write .remove([\"name\"])"),
    (&["rename_column", "rename_columns"], "write .rename(#{ old: \"new\" })"),
    (&["select_columns"], "write .select([\"name\"])"),
    (&["num_rows", "__len__"], "write .count()"),
    (&["column_names", "features"], "write .columns"),
    (&["append", "extend"], "write .push(value), or a + b for arrays"),
    (&["items"], "write for key in map.keys() { ... map[key] ... }"),
    (&["strip"], "write .trim()"),
    (&["startswith"], "write .starts_with(text)"),
    (&["endswith"], "write .ends_with(text)"),
    (&["lower"], "write .to_lower()"),
    (&["upper"], "write .to_upper()"),
    (&["format"], "put values into text with backquotes: `${x}`"),
    (&["str"], "write x.to_string()"),
    (&["int"], "write x.to_int() or parse_int(text)"),
    (&["float"], "write x.to_float() or parse_float(text)"),
    (&["isinstance"], "write type_of(x) == \"map\""),
    (&["None", "null", "nil", "undefined"], "write ()"),
    (&["True"], "write true"),
    (&["False"], "write false"),
    (&["self"], "write this"),
    (&["lambda"], "write a closure: |x| x + 1"),
    (&["range"], "write for i in 0..3, or range(0, 3)"),
    (&["elif"], "write else if"),
    (&["def"], "write fn name(x) { ... }"),
    (&["not"], "write !x"),
    (&["and"], "write a && b"),
    (&["or"], "write a || b"),
    (&["is"], "write a == b"),
    (&["pass"], "write { }"),
    (&["raise"], "write throw \"...\""),
    (&["from"], "import a module with import \"dsr:trainer\" as trainer;"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_name_is_answered_once() {
        let names: Vec<_> = WORDS.iter().flat_map(|(names, _)| *names).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        assert!(of_elsewhere("max_grad_norm").unwrap().contains("gradient_clipping"));
        assert_eq!(of_elsewhere("gradient_clipping"), None);
    }

    #[test]
    fn a_value_of_elsewhere_is_one_of_the_words_that_an_option_has() {
        let of = |value| alike(value, ["nf4", "int8"].into_iter());
        assert_eq!((of("int4"), of("8bit"), of("bfloat16")), (Some("nf4"), Some("int8"), None));
        assert_eq!(alike("bf16", ["float32", "bfloat16"].into_iter()), Some("bfloat16"));
    }
}
