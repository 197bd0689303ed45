//! The screens of a run and of runs, as pictures that the documentation shows: taken from a real
//! pseudo-terminal, with the numbers replaced that are never the same.

use std::{fmt::Write as _, fs, path::Path};

use serde_json::{Value, json};

use crate::support::{
    files::repository,
    program::{dsr, out},
    terminal::Terminal,
    tiny_run::Folder,
    watched_run,
};

/// Compares a picture with the one of the documentation; `DSR_UPDATE_DOCS=1` writes it instead.
fn is_documented(name: &str, picture: &str) {
    let file = repository().join("docs/src/images").join(name);
    if std::env::var_os("DSR_UPDATE_DOCS").is_some() {
        fs::write(&file, picture).unwrap();
    }
    let known = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(picture, known, "{name}: write it again with DSR_UPDATE_DOCS=1");
    let page = fs::read_to_string(repository().join("docs/src/runs.md")).unwrap();
    assert!(page.contains(&format!("(images/{name})")), "docs/src/runs.md does not show {name}");
}

/// A picture of what is written.
fn picture(terminal: &Terminal, steady: impl Fn(&str) -> String) -> String {
    let rows = terminal.screen().lines().count();
    terminal.steady_picture(rows.try_into().unwrap(), steady)
}

/// It goes on for ever after its 40th step, so that the progress stays as it is.
const STOPPING: &str = r#"let rows = dataset("rows.jsonl");
let model = new_model("gpt2", #{ vocab_size: 8, n_positions: 4, n_embd: 4, n_layer: 1, n_head: 1 });
let engine = init_engine(model, #{ micro_batch_size: 4, optimizer: #{ lr: 1e-3 } });
let run = start_run(engine, rows.loader(#{ micro_batch_size: 4, endless: true }), #{ total_steps: 100 });
while run.train_batch() {
    if engine.global_step == 40 {
        run.evaluate(rows);
        loop {}
    }
}
"#;

#[test]
fn a_run_on_a_terminal() {
    let folder = Folder::new(STOPPING);
    let terminal = Terminal::sized(folder.0.path(), &["run", "tiny.rhai"], (120, 16));
    terminal.wait("the progress below the evaluation", |screen| {
        let at = |text: &str| screen.rfind(text).unwrap_or(0);
        at("step 40/100  loss") > at("step 40  eval loss") && at("eval loss") > 0
    });
    let picture = picture(&terminal, |text| {
        text.split("  ").map(steady_field).collect::<Vec<_>>().join("  ")
    });
    assert!(picture.contains("fill=\"#a6e3a1\""), "the bar is green");
    is_documented("run.svg", &picture);
}

/// A value of the header or the progress line that depends on the machine or its numerics.
fn steady_field(field: &str) -> String {
    let values = [
        (field.contains(", libtorch "), "cpu (AMD EPYC 9654), 16 threads, libtorch 2.9.1+cpu"),
        (field.starts_with("loss "), "loss 2.079"),
        (field.starts_with("eval loss "), "eval loss 2.078"),
        (field.starts_with("perplexity "), "perplexity 7.99"),
        (field.starts_with("|g| "), "|g| 0.12"),
        (field.ends_with(" tok/s"), "52.0k tok/s"),
        (field.ends_with("FLOP/s"), "131.0 MFLOP/s"),
        (field.ends_with("iB"), "301.4 MiB"),
        (field.ends_with(" left"), "9s left"),
    ];
    values.iter().find(|(is, _)| *is).map_or(field, |(_, value)| value).to_owned()
}

#[test]
fn a_run_that_is_watched() {
    let dir = watched_run::folder();
    let terminal = Terminal::sized(dir.path(), &["watch", "low"], (100, 44));
    terminal.wait("the charts and the samples", |screen| {
        screen.contains("┌ samples ") && screen.contains("q: end")
    });
    let picture = picture(&terminal, |text| text.replace(r"\u{1b}[2J", ""));
    is_documented("watch.svg", &picture);
}

/// A run of these values, with the metrics of some steps.
fn run(root: &Path, name: &str, rate: f64, told: Value) {
    let dir = root.join("runs").join(name);
    fs::create_dir_all(&dir).unwrap();
    let mut all = json!({ "name": name, "number": 1, "total_steps": 800,
        "params": { "lr": rate }, "started_at": "2026-11-29T07:00:00Z" });
    all.as_object_mut().unwrap().extend(told.as_object().unwrap().clone());
    fs::write(dir.join("run.json"), all.to_string()).unwrap();
    let mut metrics = String::new();
    for step in 1..=200 {
        let loss = 2.0 + 4.0 / (1.0 + f64::from(step) * rate * 100.0);
        let line = json!({ "step": step, "loss": loss, "tokens_per_second": 52_000.0 });
        writeln!(metrics, "{line}").unwrap();
    }
    fs::write(dir.join("metrics.jsonl"), metrics).unwrap();
}

fn some_runs() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let ended = |status: &str, step: u64, loss: f64, best: Value| {
        json!({ "status": status, "step": step, "loss": loss, "best_evaluation": best,
            "ended_at": "2026-11-29T07:21:14Z" })
    };
    let best = |step: u64, loss: f64| json!({ "step": step, "loss": loss });
    run(root, "high", 0.01, ended("finished", 800, 2.25, best(700, 2.41)));
    run(root, "low", 0.001, ended("interrupted", 600, 3.018, best(600, 3.104)));
    let mut failed = ended("failed", 41, 7.412, Value::Null);
    failed["error"] = "error[E401]: the loss of step 41 is NaN".into();
    run(root, "wild", 1.0, failed);
    run(root, "gone", 0.002, json!({ "status": "running", "step": 0, "loss": null }));
    dir
}

#[test]
fn runs_on_a_terminal() {
    let dir = some_runs();
    let terminal = Terminal::sized(dir.path(), &["runs"], (100, 12));
    terminal.wait_for("wild: error[E401]: the loss of step 41 is NaN");
    let shown = picture(&terminal, str::to_owned);
    assert!(terminal.end().success());
    is_documented("runs.svg", &shown);
}

#[test]
fn compared_runs_on_a_terminal() {
    let dir = some_runs();
    let terminal = Terminal::sized(dir.path(), &["runs", "compare", "high", "low"], (100, 60));
    terminal.wait_for("low: loss, 200 points");
    let ended = |screen: &str| screen.lines().last().is_some_and(|line| line.contains("200"));
    terminal.wait("the axis of the second curve", ended);
    is_documented("compare.svg", &picture(&terminal, str::to_owned));
}

const SWEPT: &str = r#"param("lr", 0.01);
let rows = dataset("rows.jsonl");
let model = new_model("gpt2", #{ vocab_size: 8, n_positions: 4, n_embd: 4, n_layer: 1, n_head: 1 });
let engine = init_engine(model, #{ micro_batch_size: 4, optimizer: #{ lr: P::lr } });
let run = start_run(engine, rows.loader(#{ micro_batch_size: 4, endless: true }), #{ total_steps: 20 });
while run.train_batch() {}
run.evaluate(rows);
run.finish();
"#;

/// The second time, when nothing is left to do.
#[test]
fn a_sweep_on_a_terminal() {
    let folder = Folder::new(SWEPT);
    let args = ["sweep", "tiny.rhai", "-p", "lr=1e-3,1e-2,1e-1"];
    out(&folder.dsr(&args));
    let terminal = Terminal::sized(folder.0.path(), &args, (100, 12));
    terminal.wait_for("the best run: ");
    let shown = picture(&terminal, |text| match text.rsplit_once(" at ") {
        // The last column is the speed.
        Some((before, _)) => format!("{before} at 20  48000  "),
        None => text.to_owned(),
    });
    assert!(terminal.end().success());
    is_documented("sweep.svg", &shown);
}

/// Plain where nothing asks for colours, and where something forbids them.
#[test]
fn colours_are_where_they_are_asked_for() {
    let dir = some_runs();
    let has_colours = |args: &[&str], env: &[(&str, &str)]| {
        let mut command = dsr(dir.path(), args);
        for name in ["NO_COLOR", "CLICOLOR_FORCE", "CLICOLOR"] {
            command.env_remove(name);
        }
        let output = command.envs(env.iter().copied()).output().unwrap();
        [&output.stdout, &output.stderr].map(|bytes| bytes.contains(&0x1b))
    };
    let forced = [("CLICOLOR_FORCE", "1")];
    let both = [("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")];
    assert_eq!(has_colours(&["runs"], &[]), [false, false]);
    assert_eq!(has_colours(&["runs"], &forced), [true, false]);
    assert_eq!(has_colours(&["runs"], &both), [false, false]);
    assert_eq!(has_colours(&["runs", "--color=always"], &both), [true, false]);
    assert_eq!(has_colours(&["runs", "--color", "never"], &forced), [false, false]);
    assert_eq!(has_colours(&["runs", "rm", "none", "--yes"], &forced), [false, true]);
    assert_eq!(has_colours(&["--color=always", "no-command"], &[]), [false, true]);
    assert_eq!(has_colours(&["--color=never", "no-command"], &forced), [false, false]);
}
