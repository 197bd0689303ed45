//! Files and what becomes of them, block by block; the tests of precision stand beside it.

use serde_json::{Map, Value, json};

use super::*;

const DS_CONFIG: &str = include_str!("../../../tests/deepspeed/ds_config.json");
const ZERO3: &str = include_str!("../../../tests/deepspeed/transformers_zero3.json");

fn map(value: Value) -> Map<String, Value> {
    let Value::Object(map) = value else { panic!("{value} is no object") };
    map
}

fn settings(text: &str, given: Option<Value>) -> Settings {
    let given = given.map(map);
    read(text, given.as_ref()).unwrap_or_else(|faults| panic!("{faults:?}"))
}

/// The options of a file without those that every file has.
pub(super) fn options(text: &str) -> Value {
    given(text, json!({}))
}

fn given(text: &str, given: Value) -> Value {
    let mut options = settings(text, Some(given)).options;
    options.remove("loss_average");
    Value::Object(options)
}

pub(super) fn notes(text: &str) -> Vec<String> {
    let notes = settings(text, Some(json!({}))).notes;
    notes.into_iter().map(|note| format!("{} {}", note.at.line, note.text)).collect()
}

/// Place and message of every fault.
fn faults_beside(text: &str, given: Option<Value>) -> Vec<String> {
    let given = given.map(map);
    let faults = read(text, given.as_ref()).expect_err(text);
    let shown = |fault: &Fault| {
        let place = fault.at.map_or_else(|| "recipe".to_owned(), |at| at.to_string());
        format!("{place} {}", fault.error.message())
    };
    faults.iter().map(shown).collect()
}

pub(super) fn faults(text: &str) -> Vec<String> {
    faults_beside(text, Some(json!({})))
}

#[test]
fn a_users_file_is_read_unchanged() {
    let found = settings(DS_CONFIG, None);
    assert_eq!(
        Value::Object(found.options),
        json!({
            "train_batch_size": 8,
            "micro_batch_size": 2,
            "gradient_accumulation_steps": 4,
            "loss_average": "micro_batches",
            "gradient_clipping": 1.0,
            "precision": {
                "dtype": "fp16",
                "loss_scale": 0,
                "loss_scale_window": 100,
                "hysteresis": 2,
                "min_loss_scale": 1,
            },
            "zero": {
                "stage": 2,
                "offload_optimizer": "none",
                "allgather_bucket_size": 200_000_000,
                "overlap_comm": true,
                "reduce_bucket_size": 200_000_000,
            },
            "steps_per_print": 100,
            "wall_clock_breakdown": false,
        })
    );
    let found: Vec<_> = found.notes.iter().map(|n| format!("{} {}", n.at.line, n.text)).collect();
    insta::assert_snapshot!(found.join("\n"), @r"
    6 when its loss scale grows DeepSpeed 0.19.8 halves the gradients of that step; here they are divided by the scale that they were computed with
    6 gradients are added up and sent in fp32 here, in fp16 in DeepSpeed; data_types.grad_accum_dtype and communication_data_type say otherwise
    17 `zero_optimization.allgather_partitions` has no meaning here: dsr plans its collectives by the layers of the model
    20 `zero_optimization.reduce_scatter` has no meaning here: dsr plans its collectives by the layers of the model
    22 `zero_optimization.contiguous_gradients` has no meaning here: the gradients of a layer always lie in one flat buffer
    ");
}

#[test]
fn every_auto_is_the_recipes_to_say() {
    let found = settings(ZERO3, None);
    assert!(!found.is_settled());
    assert_eq!(
        Value::Object(found.options),
        json!({
            "micro_batch_size": "auto",
            "loss_average": "micro_batches",
            "optimizer": { "type": "AdamW" },
            "scheduler": { "type": "WarmupDecayLR" },
            "zero": { "stage": 3, "overlap_comm": true },
            "steps_per_print": 2000,
            "wall_clock_breakdown": false,
        })
    );
    let recipe = json!({
        "micro_batch_size": 4,
        "precision": "fp16",
        "optimizer": { "lr": 1e-4, "weight_decay": 0.1 },
        "scheduler": { "total_num_steps": 1000, "warmup_num_steps": 100 },
        "seed": 7,
    });
    let options = given(ZERO3, recipe);
    assert_eq!(options["micro_batch_size"], 4);
    assert_eq!(options["seed"], 7);
    assert_eq!(options["optimizer"], json!({ "type": "AdamW", "lr": 1e-4, "weight_decay": 0.1 }));
    // The peak is the optimizer's rate, as transformers resolves it.
    assert_eq!(
        options["scheduler"],
        json!({
            "type": "WarmupDecayLR",
            "total_num_steps": 1000,
            "warmup_num_steps": 100,
            "warmup_max_lr": 1e-4,
        })
    );
    assert_eq!(options["precision"]["dtype"], "fp16");
    assert_eq!(options["precision"]["loss_scale_window"], 1000);
    let bf16 = given(
        ZERO3,
        json!({ "micro_batch_size": 4, "precision": { "dtype": "bf16" },
                                    "scheduler": { "total_num_steps": 9 } }),
    );
    assert_eq!(bf16["precision"], json!({ "dtype": "bf16" }));
}

#[test]
fn a_needed_auto_that_stays_open_is_named() {
    assert_eq!(
        faults(ZERO3),
        ["19:40 `scheduler.params.total_num_steps` is \"auto\", and nothing says what it is",]
    );
    let text = r#"{ "train_batch_size": 8, "train_micro_batch_size_per_gpu": "auto" }"#;
    assert_eq!(options(text), json!({ "train_batch_size": 8, "micro_batch_size": "auto" }));
    assert_eq!(given(text, json!({ "micro_batch_size": 2 }))["micro_batch_size"], 2);
}

#[test]
fn what_the_recipe_says_against_the_file_is_listed_together() {
    let text = "{ \"train_micro_batch_size_per_gpu\": 2, \"gradient_clipping\": 1,\n\
                \"optimizer\": { \"type\": \"adamw\", \"params\": { \"lr\": 1e-4, \"betas\": [0.9, 0.95] } },\n\
                \"bf16\": { \"enabled\": true }, \"fp16\": { \"enabled\": false } }";
    let recipe = json!({
        "micro_batch_size": 4,
        "gradient_clipping": 1.0,
        "precision": "fp16",
        "optimizer": { "type": "AdamW", "lr": 0.0001, "betas": [0.9, 0.99], "eps": 1e-6 },
    });
    assert_eq!(
        faults_beside(text, Some(recipe)),
        [
            "recipe `micro_batch_size` is 4 here, and `train_micro_batch_size_per_gpu` is 2 on line 1 of the file",
            "recipe `precision.dtype` is \"fp16\" here, and `bf16.enabled` is true on line 3 of the file",
            "recipe `optimizer.betas` is [0.9,0.99] here, and `optimizer.params.betas` is [0.9,0.95] on line 2 of the file",
        ]
    );
    let off = "{ \"fp16\": { \"enabled\": false } }";
    assert_eq!(
        faults_beside(off, Some(json!({ "precision": "fp16" }))),
        [
            "recipe `precision.dtype` is \"fp16\" here, and `fp16.enabled` is false on line 1 of the file"
        ]
    );
    assert_eq!(
        given(off, json!({ "precision": "bf16" })),
        json!({ "precision": { "dtype": "bf16" } })
    );
    assert_eq!(
        faults_beside("{ \"zero_optimization\": { \"stage\": 2 } }", Some(json!({ "zero": 2 }))),
        ["recipe `zero` must be a map beside this file, found 2"]
    );
}

#[test]
fn what_is_the_same_is_no_contradiction() {
    let text = r#"{ "train_batch_size": 8, "optimizer": { "type": "Adam" } }"#;
    for kind in ["adam", "AdamW"] {
        let recipe = json!({ "train_batch_size": 8.0, "optimizer": { "type": kind } });
        assert_eq!(given(text, recipe)["optimizer"]["type"], "AdamW");
    }
    let recipe = json!({ "optimizer": { "type": "Lion" } });
    assert_eq!(
        faults_beside(text, Some(recipe)),
        [
            "recipe `optimizer.type` is \"Lion\" here, and `optimizer.type` is \"Adam\" on line 1 of the file"
        ]
    );
}

#[test]
fn what_the_file_only_implies_gives_way_to_the_recipe() {
    let text = r#"{ "optimizer": { "type": "AdamW" } }"#;
    let recipe = json!({ "loss_average": "tokens", "optimizer": { "weight_decay": 0.1 } });
    let found = settings(text, Some(recipe)).options;
    assert_eq!(found["loss_average"], "tokens");
    assert_eq!(found["optimizer"]["weight_decay"], 0.1);
}

#[test]
fn each_removed_key_is_refused_by_name() {
    for key in [
        "amp",
        "compression_training",
        "curriculum_learning",
        "eigenvalue",
        "elasticity",
        "graph_harvesting",
        "nebula",
        "progressive_layer_drop",
        "quantize_training",
        "sparse_gradients",
    ] {
        let found = faults(&format!("{{ \"{key}\": {{}} }}"));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(&format!("1:3 `{key}` is not supported: ")), "{found:?}");
    }
    for key in ["mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param"] {
        let found = faults(&format!("{{ \"zero_optimization\": {{ \"{key}\": 1 }} }}"));
        assert!(found[0].contains(&format!("`zero_optimization.{key}` is not supported")));
    }
}

#[test]
fn unknown_keys_are_refused_with_the_nearest() {
    let text = "{ \"zero_optimisation\": {}, \"bf16\": { \"enable\": true }, \"lr\": 1,\n\
                \"optimizer\": { \"type\": \"Lion\", \"parms\": {}, \"params\": { \"eps\": 1 } },\n\
                \"aio\": { \"thread_count\": 4 }, \"xyzzy\": 1 }";
    let faults = read(text, None).unwrap_err();
    let found: Vec<_> =
        faults.iter().map(|f| format!("{}: {:?}", f.error.message(), f.error.hints())).collect();
    insta::assert_snapshot!(found.join("\n"), @r#"
    DeepSpeed has no key `zero_optimisation`: ["did you mean `zero_optimization`?"]
    `bf16` has no key `enable`: ["did you mean `enabled`?"]
    DeepSpeed has no key `lr`: ["it belongs in `optimizer.params`"]
    `optimizer` has no key `parms`: ["did you mean `params`?"]
    `optimizer.params` has no key `eps`: ["it has: lr, betas, weight_decay, fp32_optimizer_states, max_grad_norm, set_grad_none"]
    `aio.thread_count` is not supported: DeepSpeed's documentation names it and its code does not know it: write intra_op_parallelism: []
    "#);
}

#[test]
fn adam_is_what_deepspeed_makes_of_it() {
    let optimizer = |kind: &str, params: &str| {
        let text =
            format!(r#"{{ "optimizer": {{ "type": "{kind}", "params": {{ {params} }} }} }}"#);
        options(&text)["optimizer"].clone()
    };
    let adamw = json!({ "type": "AdamW", "weight_decay": 0.0 });
    assert_eq!(optimizer("Adam", ""), adamw);
    assert_eq!(optimizer("adamw", "\"adam_w_mode\": false"), adamw);
    assert_eq!(optimizer("AdamW", "\"torch_adam\": true")["weight_decay"], 0.01);
    assert_eq!(
        optimizer("ADAM", "\"adam_w_mode\": false, \"lr\": 1, \"bias_correction\": false"),
        json!({ "type": "Adam", "adam_w_mode": false, "lr": 1, "bias_correction": false })
    );
    assert_eq!(
        optimizer("lamb", "\"max_coeff\": 5, \"bias_correction\": true"),
        json!({ "type": "Lamb", "max_coeff": 5 })
    );
    assert_eq!(
        optimizer("Muon", "\"muon_lr\": 0.1, \"ns_method\": \"Standard\"")["ns_method"],
        "standard"
    );
}

/// DeepSpeed's loader, or pydantic in it, passes over these: they are notes.
#[test]
fn what_deepspeed_takes_or_ignores_is_no_fault() {
    let text = r#"{ "gradient_clipping": "1.0", "comms_config": {}, "compile": { "backend": "inductor" },
        "zero_optimization": { "stage": 2, "offload_param": { "device": "cpu" }, "reduce_bucket_size": "5e8" } }"#;
    let settings = read(text, None).unwrap();
    let expected = json!({
        "loss_average": "micro_batches", "gradient_clipping": 1.0,
        "zero": { "stage": 2, "reduce_bucket_size": 500_000_000 },
    });
    assert_eq!(Value::Object(settings.options.clone()), expected);
    let told = |part: &str| settings.notes.iter().any(|note| note.text.contains(part));
    for part in [
        "`gradient_clipping` is a number in quotes",
        "`comms_config` is no key that DeepSpeed reads",
        "`compile.backend` has no meaning here",
        "`zero_optimization.offload_param.device` is not used: it needs stage 3",
    ] {
        assert!(told(part), "{part}: {:?}", settings.notes);
    }
}

#[test]
fn an_optimizer_that_cannot_be_is_refused() {
    let optimizer = |inside: &str| {
        let found = faults(&format!("{{ \"optimizer\": {{ {inside} }} }}"));
        found.iter().map(|f| f.split_once(' ').unwrap().1.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(optimizer("\"params\": {}"), ["`optimizer.type` is required and missing"]);
    assert!(optimizer("\"type\": \"OneBitAdam\"")[0].contains("removed the 1-bit optimizers"));
    assert!(optimizer("\"type\": \"RMSprop\"")[0].contains("must be one of \"AdamW\", "));
    assert_eq!(
        optimizer(
            r#""type": "Adam", "params": { "amsgrad": true, "max_grad_norm": 1, "betas": [0.9], "lr": "1e-4" }"#
        ),
        [
            "`optimizer.params.amsgrad` must be false, found true: AMSGrad is not supported, in DeepSpeed neither",
            "`optimizer.params.max_grad_norm` is not supported: write gradient_clipping at the top level, as DeepSpeed demands",
            "`optimizer.params.betas` must be a list of 2 numbers, found a list",
        ]
    );
    assert_eq!(optimizer("\"type\": \"Adam\", \"params\": 3").len(), 1);
    assert_eq!(optimizer("\"type\": 3").len(), 1);
}

#[test]
fn a_schedule_with_rates_of_its_own_replaces_lr() {
    let text = |scheduler: &str| {
        format!(
            r#"{{ "optimizer": {{ "type": "AdamW", "params": {{ "lr": 0.1, "betas": [0.9, 0.95] }} }},
                  "scheduler": {{ {scheduler} }} }}"#
        )
    };
    let optimizer = |scheduler: &str| options(&text(scheduler))["optimizer"].clone();
    let with_lr = json!({ "type": "AdamW", "lr": 0.1, "betas": [0.9, 0.95], "weight_decay": 0.0 });
    let without_lr = json!({ "type": "AdamW", "betas": [0.9, 0.95], "weight_decay": 0.0 });
    assert_eq!(optimizer(r#""type": "WarmupLR", "params": { "warmup_max_lr": null }"#), with_lr);
    assert_eq!(optimizer(r#""type": "WarmupLR", "params": { "warmup_max_lr": 0.1 }"#), with_lr);
    let own = r#""type": "WarmupLR", "params": { "warmup_max_lr": 0.2 }"#;
    assert_eq!(optimizer(own), without_lr);
    assert_eq!(
        notes(&text(own)),
        ["1 `optimizer.params.lr` is not used: WarmupLR goes by its own warmup_max_lr, 0.2"]
    );
    // 0.001 where the file says nothing.
    let decay = r#""type": "WarmupDecayLR", "params": { "total_num_steps": 10 }"#;
    assert_eq!(optimizer(decay), without_lr);
    let cosine = r#""type": "WarmupCosineLR", "params": { "total_num_steps": 10 }"#;
    assert_eq!(optimizer(cosine), with_lr);
    assert_eq!(optimizer(r#""type": "LRRangeTest""#), without_lr);
    let cycle = |momentum: bool| {
        let params = format!(
            r#"{{ "cycle_min_lr": 0.01, "cycle_max_lr": 0.1, "cycle_momentum": {momentum} }}"#
        );
        optimizer(&format!(r#""type": "OneCycle", "params": {params}"#))
    };
    assert_eq!(cycle(false), with_lr);
    assert_eq!(cycle(true), json!({ "type": "AdamW", "lr": 0.1, "weight_decay": 0.0 }));
}

#[test]
fn what_a_cycle_does_not_use_is_told() {
    let text = r#"{ "scheduler": { "type": "OneCycle", "params": { "cycle_min_lr": 0.01,
        "cycle_max_lr": 0.1, "cycle_momentum": false, "cycle_min_mom": 0.7,
        "decay_lr_rate": 0.1 } } }"#;
    assert_eq!(
        options(text)["scheduler"],
        json!({ "type": "OneCycle", "cycle_min_lr": 0.01, "cycle_max_lr": 0.1,
                "cycle_momentum": false })
    );
    assert_eq!(
        notes(text),
        [
            "2 `scheduler.params.cycle_min_mom` is not used: cycle_momentum is false",
            "3 `scheduler.params.decay_lr_rate` is not used: decay_step_size is 0",
        ]
    );
}

#[test]
fn a_schedule_lacks_what_deepspeed_would_miss_too() {
    let found = faults(
        "{ \"scheduler\": { \"type\": \"OneCycle\",\n\"params\": { \"cycle_min_lr\": 1 } } }",
    );
    assert_eq!(found, ["1:26 `scheduler.params.cycle_max_lr` is required and missing"]);
    let text = r#"{ "scheduler": { "type": "WarmupCosineLR" } }"#;
    let recipe = json!({ "scheduler": { "total_num_steps": 5 } });
    assert_eq!(given(text, recipe)["scheduler"]["total_num_steps"], 5);
    let found = faults(r#"{ "scheduler": { "type": "StepLR" } }"#);
    assert!(found[0].contains("must be one of \"WarmupLR\", "), "{found:?}");
}

#[test]
fn a_block_that_is_off_only_has_the_right_types() {
    let text = r#"{ "csv_monitor": { "job_name": "x" }, "flops_profiler": { "enabled": false },
                    "data_efficiency": { "enabled": false, "data_sampling": { "enabled": true } },
                    "tensorboard": { "enabled": true, "output_path": "logs" },
                    "wandb": { "enabled": false, "project": "p" },
                    "zero_optimization": { "zenflow": null, "offload_param": null } }"#;
    let expected = json!({ "tensorboard": { "enabled": true, "output_path": "logs" } });
    assert_eq!(options(text), expected);
    assert_eq!(
        faults(r#"{ "wandb": { "project": 3 }, "data_efficiency": { "enabled": true } }"#).len(),
        2
    );
}

#[test]
fn activation_checkpointing_configures_what_the_recipe_turns_on() {
    let text = "{ \"activation_checkpointing\": { \"cpu_checkpointing\": true } }";
    assert_eq!(options(text), json!({}));
    assert!(notes(text)[0].contains("turns nothing on, as in DeepSpeed"));
    let on = |option: Value| given(text, json!({ "activation_checkpointing": option }));
    let with_cpu = json!({ "activation_checkpointing": { "cpu_checkpointing": true } });
    assert_eq!(on(json!(true)), with_cpu);
    assert_eq!(on(json!(false)), json!({ "activation_checkpointing": false }));
    let every = on(json!({ "every": 2 }));
    assert_eq!(every["activation_checkpointing"], json!({ "cpu_checkpointing": true, "every": 2 }));
    let recipe = json!({ "activation_checkpointing": { "cpu_checkpointing": false } });
    assert_eq!(faults_beside(text, Some(recipe)).len(), 1);
}

#[test]
fn the_origin_of_an_option_is_known() {
    let text =
        "{ \"optimizer\": { \"type\": \"AdamW\",\n\"params\": { \"betas\": [0.9, 0.95] } } }";
    let found = settings(text, Some(json!({ "micro_batch_size": 1 })));
    let at = |line, column| Some(Origin::File(Position { line, column }));
    assert_eq!(found.origin("optimizer.betas[1]"), at(2, 22));
    assert_eq!(found.origin("optimizer"), at(2, 22));
    assert_eq!(found.origin("optimizer.weight_decay"), None);
    assert_eq!(found.origin("micro_batch_size"), Some(Origin::Given));
    assert!(found.is_settled());
}

#[test]
fn a_file_that_cannot_be_parsed_has_one_fault() {
    assert_eq!(faults("{ \"a\": ").len(), 1);
    let both = faults("{ \"steps_per_print\": 1, \"steps_per_print\": 2,\n\"amp\": {} }");
    assert_eq!(both.len(), 2, "{both:?}");
}

/// The list is independent of the tables, see `tests/deepspeed/README.md`.
#[test]
fn every_key_of_deepspeed_is_known() {
    let known: Vec<_> = known_keys().into_iter().map(|key| key.path).collect();
    let keys = include_str!("../../../tests/deepspeed/keys.txt");
    assert!(keys.lines().count() > 390);
    for key in keys.lines() {
        let is = |path: &String| {
            let path = path.split(' ').next().unwrap();
            path == key || path.starts_with(&format!("{key}."))
        };
        assert!(known.iter().any(is), "{key} is not known");
    }
}
