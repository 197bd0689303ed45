//! The files of a run, as a process that trains leaves them.

use std::{fmt::Write, fs};

use serde_json::json;

/// A step's line.
pub(crate) fn step(n: u64) -> String {
    let loss = 2.0 + 4.0 / (1.0 + n as f64 / 40.0);
    let norm = 0.5 + 2.0 / (1.0 + n as f64 / 100.0);
    let lr = 3e-4 * (1.0 - n as f64 / 800.0);
    let (speed, resident) = (52_000 + 37 * (n % 50), 2_000_000_000 + n * 100_000);
    format!(
        "{{\"step\":{n},\"loss\":{loss},\"lr\":{lr},\"grad_norm\":{norm},\"tokens\":8192,\
         \"tokens_per_second\":{speed},\"resident_bytes\":{resident}}}\n"
    )
}

/// A directory with the run `low` of 600 steps of 800, which a signal ended.
pub(crate) fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("runs/low");
    fs::create_dir_all(&run).unwrap();
    let told = r#"{"name": "low", "number": 1, "status": "interrupted", "total_steps": 800,
        "started_at": "2026-11-29T07:00:00Z", "ended_at": "2026-11-29T07:21:14Z",
        "device": "cuda:0", "device_name": "NVIDIA \u001b[2JH100", "precision": "bf16", "world_size": 2,
        "ranks": [RANK0, RANK1]}"#;
    let rank = |dp| {
        let memory = json!({ "parameters": 1_u64 << 30, "master_weights": 1_u64 << 30,
            "gradients": 1_u64 << 30, "optimizer_state": 2_u64 << 30, "activations": 3_u64 << 30 });
        json!({ "host": "node-1", "device": format!("cuda:{dp}"), "pp": 0, "dp": dp, "tp": 0,
            "memory": memory })
    };
    let told = told.replace("RANK0", &rank(0).to_string()).replace("RANK1", &rank(1).to_string());
    fs::write(run.join("run.json"), told).unwrap();
    let mut metrics = String::new();
    for n in 1..=600 {
        metrics.push_str(&step(n));
        if n <= 2 {
            // The first step has no state yet.
            let memory = json!({ "parameters": 1_u64 << 30, "activations": n * (3_u64 << 29),
                "gradients": 1_u64 << 30, "optimizer_state": (n - 1) * (2_u64 << 30) });
            metrics = metrics.trim_end().trim_end_matches('}').to_owned();
            writeln!(metrics, ",\"memory\":{memory}}}").unwrap();
        }
        if n % 100 == 0 {
            let loss = 2.3 + 4.0 / (1.0 + n as f64 / 40.0);
            writeln!(metrics, "{{\"step\":{n},\"eval_loss\":{loss},\"eval_perplexity\":9.0}}")
                .unwrap();
        }
    }
    fs::write(run.join("metrics.jsonl"), metrics).unwrap();
    let mut samples = String::new();
    for (step, text) in SAMPLES {
        let sample = json!({ "step": step, "prompt": PROMPT, "text": format!("{PROMPT}{text}") });
        writeln!(samples, "{sample}").unwrap();
    }
    fs::write(run.join("samples.jsonl"), samples).unwrap();
    dir
}

const PROMPT: &str = "It is a truth universally acknowledged, that";

/// What the model made of it.
const SAMPLES: [(u64, &str); 3] = [
    (200, " the the of and a her, and was to the not be in it. She"),
    (400, " she was not to be in the world of a man, and said she could\nnot"),
    (600, " a young man of her acquaintance must be in want of\na carriage, and of a good dinner."),
];
