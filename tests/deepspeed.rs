//! DeepSpeed's own config file: in recipes, and on the command line.

use std::{path::Path, process::Output};

use dsr::{error::Code, script::Session};

use crate::support::{
    files::repository,
    program::{dsr, out, text},
    recipe::{Recipe, places},
};

/// A file that every part of the engine understands.
const FILE: &str = r#"{
  // three rows a step
  "train_batch_size": 3,
  "train_micro_batch_size_per_gpu": 1,
  "optimizer": {
    "type": "Adam",
    "params": { "lr": 0.5, "betas": [0.9, 0.95], "torch_adam": false }
  },
  "scheduler": {
    "type": "WarmupLR",
    "params": { "warmup_max_lr": 1e-3, "warmup_num_steps": 2, "warmup_type": "linear" }
  },
  "zero_optimization": { "stage": 3, "reduce_scatter": true },
  "steps_per_print": null,
}
"#;

/// A recipe that trains a tiny model with `options`, and prints the rate of each step.
fn training(options: &str) -> Recipe {
    let recipe = Recipe::new(&format!(
        r#"let model = new_model("gpt2", #{{ vocab_size: 8, n_positions: 4, n_embd: 4, n_layer: 1, n_head: 1 }});
let options = {options};
let engine = init_engine(model, options);
for batch in dataset("rows.jsonl").loader(#{{ micro_batch_size: 1 }}) {{
    let lr = engine.lr;
    engine.backward(engine.forward(batch));
    if engine.step() {{ print(lr); }}
}}
"#
    ));
    recipe.file("rows.jsonl", &"{\"input_ids\": [1, 2, 3]}\n".repeat(9));
    recipe.file("ds_config.json", FILE);
    recipe
}

#[test]
fn a_recipe_trains_with_deepspeeds_file() {
    let recipe = training("from_deepspeed(\"ds_config.json\")");
    assert_eq!(recipe.prints(), ["0.0", "0.0", "0.0005"]);
}

/// fp16 with a dynamic loss scale, which may skip steps, and four micro batches of two rows a step.
#[test]
fn a_users_file_trains_unchanged() {
    let recipe = training("from_deepspeed(\"ds_config.json\")");
    let text =
        std::fs::read_to_string(repository().join("tests/deepspeed/ds_config.json")).unwrap();
    recipe.file("ds_config.json", &text);
    recipe.file("rows.jsonl", &"{\"input_ids\": [1, 2, 3]}\n".repeat(16));
    let script = std::fs::read_to_string(recipe.directory().join("recipe.rhai")).unwrap();
    let script =
        script.replace("loader(#{ micro_batch_size: 1 })", "loader(#{ micro_batch_size: 2 })");
    recipe.file("recipe.rhai", &format!("{script}print(engine.global_step);"));
    assert_eq!(recipe.prints().last().map(String::as_str), Some("2"));
}

#[test]
fn what_has_no_meaning_is_told_with_its_line() {
    let recipe = Recipe::new("from_deepspeed(\"ds_config.json\");");
    recipe.file("ds_config.json", FILE);
    let (_, notes) = recipe.prints_and_notes();
    let notes: Vec<_> = notes.iter().map(|note| note.rsplit('/').next().unwrap()).collect();
    insta::assert_snapshot!(notes.join("\n"), @r"
    ds_config.json:6: Adam is AdamW unless adam_w_mode is false, as in DeepSpeed
    ds_config.json:7: `optimizer.params.lr` is not used: WarmupLR goes by its own warmup_max_lr, 0.001
    ds_config.json:13: `zero_optimization.reduce_scatter` has no meaning here: dsr plans its collectives by the layers of the model
    ");
}

#[test]
fn the_recipe_resolves_auto() {
    let auto = FILE
        .replace(
            "\"train_micro_batch_size_per_gpu\": 1",
            "\"train_micro_batch_size_per_gpu\": \"auto\"",
        )
        .replace("\"warmup_max_lr\": 1e-3", "\"warmup_max_lr\": \"auto\"")
        .replace("\"lr\": 0.5", "\"lr\": \"auto\"");
    let options = "#{ micro_batch_size: 1, optimizer: #{ lr: 2e-3 } }";
    let recipe = training(&format!("from_deepspeed(\"ds_config.json\", {options})"));
    recipe.file("ds_config.json", &auto);
    assert_eq!(recipe.prints(), ["0.0", "0.0", "0.001"]);
    // Or it sets what is left open afterwards.
    let set = "from_deepspeed(\"ds_config.json\");\noptions.micro_batch_size = 1;\n\
               options.optimizer.lr = 4e-3";
    let recipe = training(set);
    recipe.file("ds_config.json", &auto);
    assert_eq!(recipe.prints(), ["0.0", "0.0", "0.002"]);
}

#[test]
fn the_recipes_own_options_contradict_at_their_place() {
    let recipe = training(
        "from_deepspeed(\"ds_config.json\", #{\n    micro_batch_size: 2,\n    zero: #{ stage: 1 },\n})",
    );
    assert_eq!(
        places(&recipe.fails()),
        [
            (Code::BadValue, "recipe.rhai:3:23".to_owned()),
            (Code::BadValue, "recipe.rhai:4:21".to_owned()),
        ]
    );
}

#[test]
fn every_fault_of_the_file_has_its_line_there() {
    let recipe = training("from_deepspeed(\"ds_config.json\")");
    // `stage` stands in the recipe too, and is not what is meant.
    recipe.file(
        "ds_config.json",
        "{\n\"zero_optimization\": { \"stage\": 7 },\n\"amp\": {},\n\"lr\": 1 }",
    );
    let failure = recipe.fails();
    assert_eq!(
        places(&failure),
        [
            (Code::BadValue, "ds_config.json:2:33".to_owned()),
            (Code::BadValue, "ds_config.json:3:1".to_owned()),
            (Code::UnknownOption, "ds_config.json:4:1".to_owned()),
        ]
    );
    assert_eq!(failure.calls[0].place.line, 2);
}

#[test]
fn what_init_engine_refuses_is_found_in_the_file() {
    let recipe = training("from_deepspeed(\"ds_config.json\")");
    let file = FILE
        .replace(
            "\"train_batch_size\": 3",
            "\"train_batch_size\": 3, \"gradient_accumulation_steps\": 2",
        )
        .replace("\"stage\": 3", "\"offload_optimizer\": { \"device\": \"cpu\" }");
    recipe.file("ds_config.json", &file);
    let failure = recipe.fails();
    assert_eq!(
        places(&failure),
        [
            (Code::BadValue, "ds_config.json:3:23".to_owned()),
            (Code::BadValue, "ds_config.json:13:59".to_owned()),
        ]
    );
    let messages: Vec<_> = failure.faults.iter().map(|f| f.error.message()).collect();
    assert_eq!(
        messages,
        [
            "train_batch_size 3 is not micro_batch_size 1 x gradient_accumulation_steps 2 x world_size 1 = 2",
            "`zero.offload_optimizer` \"cpu\" needs stage 1 or more, and the stage is 0",
        ]
    );
}

#[test]
fn a_caught_fault_can_be_read_and_a_missing_file_is_named() {
    let recipe = Recipe::new(
        "try { from_deepspeed(\"ds_config.json\"); } catch (e) { print([e.code, e.option]); }\n\
         from_deepspeed(\"nowhere.json\");",
    );
    recipe.file("ds_config.json", "{ \"fp17\": 1 }");
    let (lines, result) = recipe.run(Session::new);
    assert_eq!(lines, [r#"["E101", "fp17"]"#]);
    let failure = result.unwrap_err();
    assert_eq!(places(&failure), [(Code::Io, "recipe.rhai:2:1".to_owned())]);
}

/// Runs `dsr config` with these words, in a directory with this file.
fn config(file: &str, words: &[&str]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("ds_config.json"), file).unwrap();
    let words = [&["config"], words].concat();
    dsr(dir.path(), &words).output().unwrap()
}

#[test]
fn dsr_config_prints_the_file_in_dsrs_terms() {
    let printed = out(&config(FILE, &["ds_config.json"]));
    insta::assert_snapshot!(printed, @r#"
    // ds_config.json as options of init_engine.
    // line 6: Adam is AdamW unless adam_w_mode is false, as in DeepSpeed
    // line 7: `optimizer.params.lr` is not used: WarmupLR goes by its own warmup_max_lr, 0.001
    // line 13: `zero_optimization.reduce_scatter` has no meaning here: dsr plans its collectives by the layers of the model
    #{
        train_batch_size: 3,
        micro_batch_size: 1,
        loss_average: "micro_batches",
        optimizer: #{ type: "AdamW", betas: [0.9, 0.95], weight_decay: 0.0 },
        scheduler: #{
            type: "WarmupLR",
            warmup_max_lr: 0.001,
            warmup_num_steps: 2,
            warmup_type: "linear",
        },
        zero: #{ stage: 3 },
    }
    "#);
    let map: rhai::Map = rhai::Engine::new().eval(&printed).unwrap();
    assert_eq!(map["micro_batch_size"].as_int(), Ok(1));
}

#[test]
fn dsr_config_prints_a_users_file() {
    let text =
        std::fs::read_to_string(repository().join("tests/deepspeed/ds_config.json")).unwrap();
    insta::assert_snapshot!(out(&config(&text, &["ds_config.json"])), @r#"
    // ds_config.json as options of init_engine.
    // line 6: when its loss scale grows DeepSpeed 0.19.8 halves the gradients of that step; here they are divided by the scale that they were computed with
    // line 6: gradients are added up and sent in fp32 here, in fp16 in DeepSpeed; data_types.grad_accum_dtype and communication_data_type say otherwise
    // line 17: `zero_optimization.allgather_partitions` has no meaning here: dsr plans its collectives by the layers of the model
    // line 20: `zero_optimization.reduce_scatter` has no meaning here: dsr plans its collectives by the layers of the model
    // line 22: `zero_optimization.contiguous_gradients` has no meaning here: the gradients of a layer always lie in one flat buffer
    #{
        train_batch_size: 8,
        micro_batch_size: 2,
        gradient_accumulation_steps: 4,
        loss_average: "micro_batches",
        gradient_clipping: 1.0,
        precision: #{
            dtype: "fp16",
            loss_scale: 0,
            loss_scale_window: 100,
            hysteresis: 2,
            min_loss_scale: 1,
        },
        zero: #{
            stage: 2,
            offload_optimizer: "none",
            allgather_bucket_size: 200000000,
            overlap_comm: true,
            reduce_bucket_size: 200000000,
        },
        steps_per_print: 100,
        wall_clock_breakdown: false,
    }
    "#);
}

#[test]
fn dsr_config_shows_all_faults_and_fails() {
    let output = config(
        "{\n  \"fp16\": { \"enabled\": 1, },\n  \"gradient_cliping\": 0.5,\n}",
        &["ds_config.json"],
    );
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    insta::assert_snapshot!(text(&output.stderr), @r#"
    error[E102]: `fp16.enabled` must be true or false, found 1
       ,-[ ds_config.json:2:24 ]
       |
     2 |   "fp16": { "enabled": 1, },
       |                        ^

    error[E101]: DeepSpeed has no key `gradient_cliping`
       ,-[ ds_config.json:3:3 ]
       |
     3 |   "gradient_cliping": 0.5,
       |   ^^^^^^^^^|^^^^^^^^
       |            `---------- did you mean `gradient_clipping`?
    "#);
}

#[test]
fn dsr_config_judges_a_file_for_so_many_processes() {
    let run = |words: &[&str]| config(FILE, &[&["ds_config.json"], words].concat());
    assert!(run(&["--world-size", "3"]).status.success());
    let two = run(&["--world-size", "2"]);
    assert_eq!(two.status.code(), Some(2));
    let error = text(&two.stderr);
    assert!(error.contains("train_batch_size"), "{error}");
    assert!(error.contains("[ ds_config.json:3:23 ]"), "{error}");
    assert_eq!(run(&["--world-size", "0"]).status.code(), Some(2));
    assert_eq!(config(FILE, &[]).status.code(), Some(2));
}

#[test]
fn dsr_config_lists_every_key() {
    let listed = out(&config("", &["--keys"]));
    let path: &Path = &repository().join("tests/deepspeed/keys.txt");
    let keys = std::fs::read_to_string(path).unwrap();
    assert!(listed.lines().count() > keys.lines().count());
    for line in listed.lines() {
        let (key, fate) = line.split_once("  ").unwrap();
        assert!(!key.is_empty() && fate.trim().len() > 1, "{line}");
    }
}
