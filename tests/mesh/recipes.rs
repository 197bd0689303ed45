//! Recipes on meshes: what they do on one rank they do on several, and what a plan shows.

use std::process::Output;

use crate::support::program::{dsr, out, two_ranks};

/// A recipe trains, evaluates, generates, saves and exports on a pipeline as on one rank; dropout
/// draws the same masks.
#[test]
fn a_recipe_does_on_a_pipeline_what_it_does_on_one_rank() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = |stages: usize| {
        format!(
            r#"let model = new_model("gpt2", #{{ n_layer: 3, n_embd: 32, n_head: 2, n_positions: 64, tie_word_embeddings: false }});
let words = tokenizer("dsr:gpt2");
let rows = dataset("dsr:austen").tokenize(words).pack(32);
let loader = rows.loader(#{{ micro_batch_size: 2, endless: true }});
let engine = init_engine(model, #{{
    micro_batch_size: 2,
    gradient_accumulation_steps: 4,
    optimizer: #{{ type: "AdamW", lr: 1e-3 }},
    pipeline: #{{ stages: {stages} }},
}});
let run = start_run(engine, loader, #{{ total_steps: 3, name: "run-{stages}" }});
while run.train_batch() {{ }}
run.finish();
print(`step ${{engine.global_step}} of ${{engine.mesh.pp_size}} stages`);
print(`eval ${{engine.evaluate(rows.take(5)).loss}}`);
print(generate(model, words, "It is", #{{ max_new_tokens: 5, temperature: 0.0 }}));
model.export_hf("export-{stages}");
"#
        )
    };
    let write = |stages| {
        let file = format!("{stages}.rhai");
        std::fs::write(dir.path().join(&file), recipe(stages)).unwrap();
        file
    };
    let told = |output: &Output| {
        let text = out(output);
        let told = text.lines().skip_while(|line| !line.starts_with("step 3")).skip(1);
        told.collect::<Vec<_>>().join("\n")
    };
    let one = dsr(dir.path(), &["run", &write(1)]).env("OMP_NUM_THREADS", "1").output().unwrap();
    let ranks = two_ranks(dir.path(), &["run", &write(2)]);
    assert!(told(&one).starts_with("eval "), "{}", told(&one));
    assert_eq!(told(&ranks[0]), told(&one));
    let weights = |stages| {
        std::fs::read(dir.path().join(format!("export-{stages}/model.safetensors"))).unwrap()
    };
    assert!(weights(1) == weights(2), "the exports differ");
}

/// The same on ranks that share the layers: they sum in another order, and draw other masks, so that
/// there is no dropout here.
#[test]
fn a_recipe_does_on_shared_layers_what_it_does_on_one_rank() {
    let dir = tempfile::tempdir().unwrap();
    let write = |autotp_size: usize| {
        let file = format!("{autotp_size}.rhai");
        let recipe = format!(
            r#"let model = new_model("gpt2", #{{
    n_layer: 3, n_embd: 32, n_head: 2, n_positions: 64, resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0,
}});
let words = tokenizer("dsr:gpt2");
let rows = dataset("dsr:austen").tokenize(words).pack(32);
let loader = rows.loader(#{{ micro_batch_size: 2 }});
let engine = init_engine(model, #{{
    micro_batch_size: 2,
    optimizer: #{{ type: "AdamW", lr: 1e-3 }},
    tensor_parallel: #{{ autotp_size: {autotp_size} }},
}});
for batch in loader {{
    engine.backward(engine.forward(batch));
    if engine.step() && engine.global_step == 3 {{ break; }}
}}
print(`eval ${{(engine.evaluate(rows.take(5)).loss * 1000.0).round()}}`);
print(generate(model, words, "It is", #{{ max_new_tokens: 5, temperature: 0.0 }}));
model.export_hf("export-{autotp_size}");
print(load_model("export-{autotp_size}").num_params);
"#
        );
        std::fs::write(dir.path().join(&file), recipe).unwrap();
        file
    };
    let one = dsr(dir.path(), &["run", &write(1)]).env("OMP_NUM_THREADS", "1").output().unwrap();
    let ranks = two_ranks(dir.path(), &["run", &write(2)]);
    assert!(out(&one).starts_with("eval "), "{}", out(&one));
    assert_eq!(out(&ranks[0]), out(&one));
}

/// A recomputed layer draws the masks that it drew before, within the part of each rank and outside.
#[test]
fn masks_are_drawn_again_where_ranks_share_layers() {
    let dir = tempfile::tempdir().unwrap();
    let losses = |checkpointing: bool, parts: bool| {
        let recipe = format!(
            r#"let model = new_model("gpt2", #{{ n_layer: 2, n_embd: 32, n_head: 2, n_positions: 64 }});
let rows = dataset("dsr:austen").tokenize(tokenizer("dsr:gpt2")).pack(32);
let engine = init_engine(model, #{{
    micro_batch_size: 2,
    activation_checkpointing: {checkpointing},
    tensor_parallel: #{{ autotp_size: 2, sequence_parallel: {parts} }},
}});
let loader = rows.loader(#{{ micro_batch_size: 2 }});
for i in 0..3 {{ print(engine.train_batch(loader)); }}
"#
        );
        let file = format!("{checkpointing}-{parts}.rhai");
        std::fs::write(dir.path().join(&file), recipe).unwrap();
        out(&two_ranks(dir.path(), &["run", &file])[0])
    };
    assert_eq!(losses(true, false), losses(false, false));
    assert_eq!(losses(true, true), losses(false, true));
    assert_ne!(losses(true, true), losses(true, false));
}

/// A plan shows every stage, the slowest, and how long stages wait.
#[test]
fn a_plan_shows_the_stages() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = r#"let model = new_model("gpt2", #{});
init_engine(model, #{ micro_batch_size: 8, gradient_accumulation_steps: 8, pipeline: #{ stages: 4 } });
"#;
    std::fs::write(dir.path().join("r.rhai"), recipe).unwrap();
    let plan =
        |ranks: &str| dsr(dir.path(), &["plan", "r.rhai", "--world-size", ranks]).output().unwrap();
    let text = out(&plan("8"));
    assert!(text.contains("A mesh of pp 4 x dp 2 x tp 1."), "{text}");
    assert!(text.contains("13 to 13"), "{text}");
    assert!(text.contains("Stage 1 is the slowest"), "{text}");
    assert!(text.contains("Stages wait for 27.3 % of the time."), "{text}");
    assert!(text.contains("4 x 2 x 1 *") && text.contains("1 x 2 x 4 "), "{text}");
    assert!(!text.contains("1 x 1 x 8"), "8 does not divide the 12 heads: {text}");
    let refused = plan("6");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("6, is not a multiple of `pipeline.stages` 4"), "{said}");
}

/// Ranks that share layers are planned: half the heads and inner activations, and the rows of the
/// vocabulary; what a mesh cannot have is refused with the numbers.
#[test]
fn a_plan_shows_shared_layers() {
    let dir = tempfile::tempdir().unwrap();
    let plan = |options: &str, ranks: &str| {
        let recipe = format!(
            "let model = new_model(\"gpt2\", #{{}});\n\
             init_engine(model, #{{ micro_batch_size: 4, tensor_parallel: #{{ {options} }} }});\n"
        );
        std::fs::write(dir.path().join("r.rhai"), recipe).unwrap();
        dsr(dir.path(), &["plan", "r.rhai", "--json", "--world-size", ranks]).output().unwrap()
    };
    let json = |options: &str, ranks: &str| -> serde_json::Value {
        serde_json::from_str(&out(&plan(options, ranks))).unwrap()
    };
    let [alone, two, in_parts] = [
        json("autotp_size: 1", "1")["recipe"].clone(),
        json("autotp_size: 2", "2")["mesh"]["stages"][0].clone(),
        json("autotp_size: 2, sequence_parallel: true", "2")["mesh"]["stages"][0].clone(),
    ];
    let bytes = |way: &serde_json::Value, kind: &str| way["memory"][kind].as_u64().unwrap();
    // Positions, norms and the biases of sums are whole.
    assert!((62_000_000..63_000_000).contains(&two["parameters"].as_u64().unwrap()), "{two}");
    for kind in ["parameters", "optimizer_state", "activations", "all"] {
        assert!(bytes(&two, kind) < bytes(&alone, kind) * 3 / 4, "{kind}: {two} {alone}");
    }
    assert!(bytes(&in_parts, "activations") < bytes(&two, "activations"));
    let sent = |way: &serde_json::Value, axis: &str| way["sent"][axis].as_u64().unwrap();
    // 12 blocks of four sums, one of the embedding and one of the head, and two numbers a target.
    let sums = (12 * 4 + 2) * 4 * 1024 * 768 * 4 + 2 * 4 * 1023 * 4;
    assert_eq!(["tp", "dp", "pp"].map(|axis| sent(&two, axis)), [sums, 0, 0]);
    let refused = |options: &str, ranks: &str| {
        let output = plan(options, ranks);
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(refused("autotp_size: 5", "5").contains("does not divide the 12 attention heads"));
    assert!(refused("autotp_size: 2", "3").contains("3, is not a multiple"));
}
