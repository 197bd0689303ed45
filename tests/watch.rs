//! `dsr watch`: the screen of a run, as text and in a pseudo-terminal.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::Write as _,
    path::Path,
};

use serde_json::json;

use crate::support::{
    files::{names, repository},
    program::{dsr, out, text},
    terminal::{BACK_TAB, TAB, Terminal},
};

/// A step's line.
fn step(n: u64) -> String {
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
fn folder() -> tempfile::TempDir {
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

/// The block of `docs/src/runs.md` that shows the screen.
fn documented(screen: &str) {
    let file = repository().join("docs/src/runs.md");
    let page = fs::read_to_string(&file).unwrap();
    let start = page.find("```text\n").expect("the page shows the screen") + "```text\n".len();
    let end = start + page[start..].find("```").unwrap();
    if std::env::var_os("DSR_UPDATE_DOCS").is_some() {
        fs::write(&file, format!("{}{screen}{}", &page[..start], &page[end..])).unwrap();
        return;
    }
    assert_eq!(&page[start..end], screen, "write the page again with DSR_UPDATE_DOCS=1");
}

/// What orders the terminal is shown as its escape.
#[test]
fn without_a_terminal_the_screen_is_text_and_the_documentation_shows_it() {
    let dir = folder();
    let screen = out(&dsr(dir.path(), &["watch", "low"]).output().unwrap());
    assert!(screen.contains(r"NVIDIA \u{1b}[2JH100"), "{screen}");
    documented(&screen.replace(r"\u{1b}[2J", ""));
    assert_eq!(out(&dsr(dir.path(), &["watch"]).output().unwrap()), screen);
    assert_eq!(out(&dsr(dir.path(), &["watch", "runs/low"]).output().unwrap()), screen);
    let error = text(&dsr(dir.path(), &["watch", "lwo"]).output().unwrap().stderr);
    assert!(error.contains("no run \"lwo\" in runs"), "{error}");
    assert!(error.contains("did you mean \"low\"?"), "{error}");
}

/// The first row of the charts, which has the title of the large one first.
fn chosen(screen: &str) -> &str {
    screen.lines().find(|line| line.starts_with('┌')).unwrap_or_default()
}

#[test]
fn the_screen_follows_a_run_and_its_keys_and_leaves_the_run_as_it_is() {
    let dir = folder();
    let run = dir.path().join("runs/low");
    let append = |text: &str| {
        let mut file = File::options().append(true).open(run.join("metrics.jsonl")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    let mut terminal = Terminal::sized(dir.path(), &["watch", "low"], (100, 30));
    terminal.wait_for("q: end");
    terminal.wait("the whole loss", |screen| {
        chosen(screen).starts_with("┌ loss ") && screen.contains("step 600/800 (75%)")
    });
    terminal.send(TAB);
    terminal.wait("the next chart", |screen| chosen(screen).starts_with("┌ learning rate "));
    terminal.send("\x1b[D");
    terminal.wait("the chart before", |screen| chosen(screen).starts_with("┌ loss "));
    terminal.send("+");
    terminal.wait("the later half", |screen| screen.contains("300 ") && !screen.contains("│1 "));
    terminal.send(BACK_TAB);
    terminal.wait("the ranks", |screen| chosen(screen).starts_with("┌ ranks "));
    terminal.send(BACK_TAB);
    terminal.wait("the samples", |screen| {
        chosen(screen).starts_with("┌ samples ") && screen.contains("step 600: It is a truth")
    });
    append(&step(601)[..40]);
    append(&step(601)[40..]);
    terminal.wait_for("step 601/800");
    terminal.send("q");
    assert!(terminal.end().success());
    assert_eq!(names(&run), ["metrics.jsonl", "run.json", "samples.jsonl"], "nothing is written");
}

/// A run that goes on has its time left, and one whose process is gone is seen as killed.
#[test]
fn a_run_whose_lock_is_free_was_killed() {
    let dir = folder();
    let file = dir.path().join("runs/low/run.json");
    let told = fs::read_to_string(&file).unwrap().replace("interrupted", "running");
    fs::write(&file, told).unwrap();
    let shown = |dir: &Path| out(&dsr(dir, &["watch"]).output().unwrap());
    assert!(shown(dir.path()).contains("runs/low  killed  step 600/800 (75%)\n"));
    let lock = File::create(dir.path().join("runs/low/lock")).unwrap();
    lock.lock().unwrap();
    // 200 steps of 8192 tokens at 52,000 a second.
    assert!(shown(dir.path()).contains("runs/low  running  step 600/800 (75%)  31s left\n"));
}
