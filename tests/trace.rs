//! `dsr run --profile`: a trace of some steps, as chrome://tracing and Perfetto read it.

use std::{fs, path::Path, process::Output};

use serde_json::Value;

use crate::support::{
    program::{dsr, out, text, two_ranks},
    recipe::Recipe,
};

/// Trains as many steps as its parameter says.
const RECIPE: &str = r#"
param("steps", 6);
let loader = dataset("dsr:austen", #{ split: "train[:1%]" })
    .tokenize(tokenizer("dsr:gpt2"))
    .pack(16)
    .loader(#{ micro_batch_size: 2, endless: true });
let model = new_model("gpt2", #{ n_layer: 2, n_head: 2, n_embd: 8, n_positions: 16 });
let engine = init_engine(model, #{
    micro_batch_size: 2,
    gradient_accumulation_steps: 2,
    optimizer: #{ type: "AdamW", lr: 1e-3 },
});
for batch in loader {
    if engine.global_step == P::steps { break; }
    engine.backward(engine.forward(batch));
    engine.step();
}
print(engine.loss);
"#;

fn traced(dir: &Path, args: &[&str]) -> Output {
    dsr(dir, &[&["run", "recipe.rhai"], args].concat()).output().unwrap()
}

/// The events of a trace.
fn events(file: &Path) -> Vec<Value> {
    let trace: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    trace["traceEvents"].as_array().unwrap().clone()
}

/// How many events of a category have this name.
fn count(events: &[Value], category: &str, name: &str) -> usize {
    events.iter().filter(|event| event["cat"] == category && event["name"] == name).count()
}

#[test]
fn three_steps_after_the_first_are_traced_by_the_names_of_their_parts() {
    let recipe = Recipe::new(RECIPE);
    let plain = out(&traced(recipe.directory(), &[]));
    let output = traced(recipe.directory(), &["--profile"]);
    assert_eq!(out(&output), plain, "the training is the same");
    let notes = text(&output.stderr);
    let note = "traced 3 steps into trace.json, for https://ui.perfetto.dev or chrome://tracing\n";
    assert_eq!(notes, note, "and nothing of the profiler's own");

    let events = events(&recipe.directory().join("trace.json"));
    let ranges = |name| count(&events, "user_annotation", name);
    // Two micro batches a step; a layer has a range in each direction.
    assert_eq!([ranges("step"), ranges("forward"), ranges("backward")], [3, 6, 6]);
    assert_eq!([ranges("h.0"), ranges("h.1"), ranges("head")], [12, 12, 12]);
    assert_eq!(ranges("mlp"), 12);
    // The projections of both blocks, forward, at least.
    assert!(count(&events, "cpu_op", "aten::addmm") >= 3 * 2 * 2 * 4);
    let timed = events.iter().filter(|event| event["cat"] == "user_annotation");
    assert!(timed.clone().all(|event| event["dur"].as_f64().is_some_and(|dur| dur >= 0.0)));
    // Layers lie in their pass.
    let of = |name: &str| timed.clone().find(|event| event["name"] == name).unwrap();
    let span = |event: &Value| {
        let begin = event["ts"].as_f64().unwrap();
        (begin, begin + event["dur"].as_f64().unwrap())
    };
    let (pass, layer) = (span(of("forward")), span(of("h.0")));
    assert!(pass.0 <= layer.0 && layer.1 <= pass.1, "{pass:?} {layer:?}");
}

#[test]
fn a_training_that_ends_early_leaves_what_it_did() {
    let recipe = Recipe::new(RECIPE);
    let output = traced(recipe.directory(), &["--profile=short.json", "-p", "steps=2"]);
    let notes = text(&output.stderr);
    assert!(notes.contains("traced 1 step into short.json"), "{notes}");
    assert_eq!(
        count(&events(&recipe.directory().join("short.json")), "user_annotation", "step"),
        1
    );

    let output = traced(recipe.directory(), &["--profile=none.json", "-p", "steps=1"]);
    out(&output);
    let notes = text(&output.stderr);
    assert!(notes.contains("no step was traced: the first one warms up"), "{notes}");
    assert!(!recipe.directory().join("none.json").exists());
}

#[test]
fn each_rank_has_a_trace_of_its_own() {
    let recipe = Recipe::new(RECIPE);
    let output = two_ranks(recipe.directory(), &["run", "recipe.rhai", "--profile"]);
    output.iter().for_each(|rank| drop(out(rank)));
    for rank in [0, 1] {
        let file = recipe.directory().join(format!("trace.rank-{rank}.json"));
        let events = events(&file);
        assert_eq!(count(&events, "user_annotation", "step"), 3, "rank {rank}");
    }
}

#[test]
fn a_place_that_cannot_be_is_an_error_before_the_training() {
    let recipe = Recipe::new(RECIPE);
    recipe.file("file", "");
    let output = traced(recipe.directory(), &["--profile=file/trace.json", "--sandbox=off"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{error}");
    assert!(error.contains("recipe.rhai") && error.contains("the directory file"), "{error}");
    assert_eq!(text(&output.stdout), "");
}
