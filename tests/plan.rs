//! `dsr plan`: the numbers of the text and of the JSON.

use serde_json::Value;

use crate::support::{
    program::{dsr, out},
    tiny_run::Folder,
};

/// GPT-2 in bf16 on a card, whose numbers do not depend on this machine.
const GPT2: [&str; 8] =
    ["plan", "gpt2_wikitext", "-p", "precision=bf16", "-p", "seq_len=1024", "--gpu", "RTX 5090"];

fn planned(args: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    out(&dsr(folder.path(), args).output().unwrap())
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&planned(&[args, &["--json"]].concat())).unwrap()
}

fn gib(bytes: &Value) -> String {
    format!("{:.2}", bytes.as_f64().unwrap() / f64::from(1 << 30))
}

#[test]
fn json_has_all_numbers_of_the_table() {
    let (text, plan) = (planned(&GPT2), json(&GPT2));
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("fp32") || line.starts_with("bf16, fp16"))
        .map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect())
        .collect();
    let alternatives = plan["alternatives"].as_array().unwrap();
    assert_eq!(rows.len(), alternatives.len());
    for (row, way) in rows.iter().zip(alternatives) {
        let memory = &way["memory"];
        let kinds = [
            "parameters",
            "master_weights",
            "gradients",
            "optimizer_state",
            "activations",
            "buffers",
            "all",
            "host",
        ];
        assert_eq!(row[4..12], kinds.map(|kind| gib(&memory[kind])), "{row:?}");
        assert_eq!(row[12], way["largest_micro_batch_size"].to_string());
        // An offload has no time.
        assert_eq!(row[13] == "?", way["step_seconds"].is_null());
        assert_eq!(way["step_seconds"].is_null(), way["offload_optimizer"] != "none");
    }
    assert_eq!(plan["recipe"]["memory"]["all"], alternatives[4]["memory"]["all"]);
}

/// Tokens of a step over its time, on each card; a card with twice the peak takes half the time for the
/// products.
#[test]
fn cards_have_memory_and_time() {
    let plan = json(&GPT2);
    let cards = plan["cards"].as_array().unwrap();
    let names: Vec<_> = cards.iter().map(|card| card["name"].as_str().unwrap()).collect();
    let known = ["RTX 3090", "RTX 4090", "RTX 5090", "A100 40GB", "A100 80GB", "H100", "H200"];
    assert_eq!(names, known);
    let tokens = plan["tokens_per_step"].as_f64().unwrap();
    assert_eq!(tokens, 4.0 * 1024.0);
    for card in cards {
        let seconds = card["step_seconds"].as_f64().unwrap();
        let speed = card["tokens_per_second"].as_f64().unwrap();
        assert!((tokens / seconds / speed - 1.0).abs() < 1e-9);
        assert_eq!(card["fits"], true);
    }
    let seconds = |name: &str| {
        let card = cards.iter().find(|card| card["name"] == name).unwrap();
        card["step_seconds"].as_f64().unwrap()
    };
    assert!(seconds("RTX 3090") > seconds("RTX 4090") && seconds("A100 40GB") > seconds("H100"));
    // The target is a card too.
    assert_eq!(plan["recipe"]["step_seconds"].as_f64(), Some(seconds("RTX 5090")));
}

/// "auto" is bf16 on devices that have units for it: not on a CPU, and not before Ampere.
#[test]
fn an_automatic_precision_is_that_of_the_device() {
    let plan =
        |device: &[&str]| json(&[&["plan", "gpt2_wikitext", "-p", "seq_len=16"], device].concat());
    let precision = |device: &[&str]| plan(device)["recipe"]["precision"].clone();
    assert_eq!(precision(&["--gpu", "RTX 5090"]), "bf16");
    assert_eq!(precision(&["--gpu-memory", "24GB"]), "bf16");
    assert_eq!(precision(&["--gpu", "T4"]), "fp32");
    let here = plan(&["--device", "cpu"]);
    assert_eq!(
        (&here["recipe"]["precision"], &here["cards"][0]["precision"]),
        (&"fp32".into(), &"bf16".into())
    );
}

#[test]
fn the_machine_here_is_measured() {
    let folder = Folder::new(TINY);
    let plan = folder.dsr(&["plan", "tiny.rhai", "--device", "cpu", "--json"]);
    let plan: Value = serde_json::from_str(&out(&plan)).unwrap();
    assert_eq!(plan["speed"], "here");
    assert!(plan["recipe"]["step_seconds"].as_f64().is_some_and(|seconds| seconds > 0.0));
    // Nobody knows how fast another GPU is.
    let plan = folder.dsr(&["plan", "tiny.rhai", "--gpu-memory", "24GB", "--json"]);
    let plan: Value = serde_json::from_str(&out(&plan)).unwrap();
    assert_eq!(
        (&plan["speed"], &plan["recipe"]["step_seconds"]),
        (&"unknown".into(), &Value::Null)
    );
}

const TINY: &str = "
    let model = new_model(\"gpt2\", #{ vocab_size: 8, n_positions: 4, n_embd: 64, n_layer: 2, n_head: 1 });
    init_engine(model, #{ micro_batch_size: \"auto\", train_batch_size: 96 });
";

#[test]
fn a_micro_batch_that_is_to_fit_is_planned() {
    let folder = Folder::new(TINY);
    let plan = |args: &[&str]| {
        let output = folder.dsr(&[&["plan", "tiny.rhai"], args].concat());
        (output.status.code(), out_or_error(&output))
    };
    let (_, text) = plan(&["--gpu", "H100"]);
    assert!(text.contains("micro_batch_size 32 (auto) x 4 tokens"), "{text}");
    assert!(text.contains("gradient_accumulation_steps 3"), "{text}");
    let (code, text) = plan(&["--gpu-memory", "513MiB"]);
    assert_eq!(code, Some(5), "{text}");
    assert!(text.contains("no micro batch fits: 1 row of 4 tokens would need"), "{text}");
}

fn out_or_error(output: &std::process::Output) -> String {
    let text = if output.status.success() { &output.stdout } else { &output.stderr };
    String::from_utf8_lossy(text).into_owned()
}
