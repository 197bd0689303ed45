//! `dsr sweep`: a recipe with each combination of parameter values.

use std::{
    fs,
    process::{Output, Stdio},
};

use serde_json::Value;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    files::names,
    program::{dsr, out, text, wait_for},
    tiny_run::Folder,
};

/// A recipe of a tiny model that trains in no time.
const RECIPE: &str = r#"param("steps", 3);
param("lr", 0.01, "learning rate", #{ min: 0 });
param("seed", 1);
let rows = dataset("rows.jsonl");
manual_seed(P::seed);
let model = new_model("gpt2", #{ vocab_size: 8, n_positions: 4, n_embd: 4, n_layer: 1, n_head: 1 });
let engine = init_engine(model, #{ micro_batch_size: 2, optimizer: #{ lr: P::lr } });
let loader = rows.loader(#{ micro_batch_size: 2, endless: true });
let run = start_run(engine, loader, #{ total_steps: P::steps, save_every: 20 });
if P::lr > 1.0 { throw "too high"; }
while run.train_batch() {}
run.evaluate(rows);
run.finish();
"#;

fn sweep(folder: &Folder, args: &[&str]) -> Output {
    folder.dsr(&[&["sweep", "tiny.rhai"], args].concat())
}

/// The words of each line of a table.
fn cells(table: &str) -> Vec<Vec<&str>> {
    table.lines().map(|line| line.split_whitespace().collect()).collect()
}

fn runs(folder: &Folder) -> Vec<String> {
    names(&folder.path("runs"))
}

#[test]
fn each_combination_is_a_run_and_the_best_is_marked() {
    let folder = Folder::new(RECIPE);
    let args = ["-p", "lr=0.001,0.1", "-p", "seed=1..2"];
    let table = out(&sweep(&folder, &args));
    let names = [
        "tiny-lr=0.001-seed=1",
        "tiny-lr=0.001-seed=2",
        "tiny-lr=0.1-seed=1",
        "tiny-lr=0.1-seed=2",
    ];
    assert_eq!(runs(&folder), names);
    assert_eq!(folder.told(&format!("runs/{}", names[2]))["params"]["lr"], 0.1);
    let lines = cells(&table);
    assert_eq!(lines[0], ["lr", "seed", "STATUS", "STEP", "LOSS", "BEST", "EVAL", "TOK/S"]);
    assert_eq!(lines[2][..4], ["0.001", "2", "finished", "3"]);
    let losses: Vec<f64> = lines[1..5].iter().map(|line| line[5].parse().unwrap()).collect();
    let lowest = losses.iter().copied().fold(f64::INFINITY, f64::min);
    let best = losses.iter().position(|loss| *loss == lowest).unwrap();
    let marked = lines[1..5].iter().position(|line| line.contains(&"best"));
    assert_eq!(marked, Some(best), "{table}");
    assert_eq!(table.lines().last().unwrap(), format!("the best run: runs/{}", names[best]));

    let told = out(&sweep(&folder, &[&args[..], &["--json"]].concat()));
    let told: Vec<Value> = serde_json::from_str(&told).unwrap();
    assert_eq!(told[1]["varied"], serde_json::json!({ "lr": 0.001, "seed": 2 }));
    assert_eq!((&told[1]["status"], &told[1]["step"]), (&"finished".into(), &3.into()));
    let bests: Vec<_> = told.iter().map(|run| run["is_best"] == true).collect();
    assert_eq!(bests.iter().position(|is_best| *is_best), Some(best));
    let loss = told[best]["best_evaluation"]["loss"].as_f64().unwrap();
    assert_eq!(format!("{loss:.3}"), format!("{lowest:.3}"));

    // The same command finds nothing left to do.
    let again = sweep(&folder, &args);
    assert_eq!(out(&again), table);
    assert_eq!(text(&again.stderr).matches(" is finished\n").count(), 4, "{again:?}");
    assert_eq!(runs(&folder), names);
}

#[test]
fn mistakes_are_told_before_the_first_run() {
    let folder = Folder::new(RECIPE);
    for (args, message) in [
        (["-p", "lr=0.1,-1"], "parameter `lr` must be"),
        (["-p", "seed=1,x"], "parameter `seed` must be a whole number, found `x`"),
        (["-p", "sede=1,2"], "did you mean `seed`?"),
        (["--name", "a/b"], "it has a slash"),
    ] {
        let output = sweep(&folder, &args);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(text(&output.stderr).contains(message), "{output:?}");
    }
    fs::write(folder.path("tiny.rhai"), "param(\"seed\", 1);\nprint(P::seed);\n").unwrap();
    let output = sweep(&folder, &["-p", "seed=1,2"]);
    assert!(text(&output.stderr).contains("it does not call `start_run`"), "{output:?}");
    assert!(!folder.path("runs").exists());
}

#[test]
fn a_dry_run_lists_and_makes_nothing() {
    let folder = Folder::new(RECIPE);
    out(&sweep(&folder, &["-p", "seed=1,2"]));
    let table = out(&sweep(&folder, &["-p", "seed=1..3", "--dry-run"]));
    let lines = cells(&table);
    assert_eq!(lines[0], ["seed", "TO", "DO", "RUN"]);
    assert_eq!(lines[1], ["1", "nothing:", "finished", "tiny-seed=1"]);
    assert_eq!(lines[3], ["3", "run", "tiny-seed=3"]);
    assert_eq!(runs(&folder).len(), 2);
    let told = out(&sweep(&folder, &["-p", "seed=2..3", "--dry-run", "--json"]));
    let expected = serde_json::json!([
        { "varied": { "seed": 2 }, "name": "tiny-seed=2", "to_do": "nothing" },
        { "varied": { "seed": 3 }, "name": "tiny-seed=3", "to_do": "run" },
    ]);
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap(), expected);
}

/// What a run prints does not get among it.
#[test]
fn json_is_all_of_standard_output() {
    let folder = Folder::new(RECIPE).with("run.finish();", "run.finish(); print(\"printed\");");
    let output = sweep(&folder, &["-p", "seed=1,2", "--json"]);
    let told: Vec<Value> = serde_json::from_str(&out(&output)).unwrap();
    assert_eq!(told.len(), 2);
    assert_eq!(text(&output.stderr).matches("printed\n").count(), 2, "{output:?}");
}

/// One run that fails does not end the sweep, and is tried again by the same command.
#[test]
fn the_other_runs_go_on_where_one_fails() {
    let folder = Folder::new(RECIPE);
    let args = ["-p", "lr=2,0.1"];
    for tried in 1..=2 {
        let output = sweep(&folder, &args);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let (table, error) = (text(&output.stdout), text(&output.stderr));
        let lines = cells(&table);
        assert_eq!(lines[1][..2], ["2", "failed"], "{table}");
        assert_eq!(lines[2][..2], ["0.1", "finished"], "{table}");
        assert!(error.contains("1 of 2 runs are not complete"), "{error}");
        assert!(error.contains("they are: tiny-lr=2"), "{error}");
        assert_eq!(runs(&folder).len(), 1 + tried, "a failed run stays, and is made anew");
    }
}

/// The results of a sweep are those of one recipe.
#[test]
fn a_run_of_another_recipe_is_not_taken_for_one_of_the_sweep() {
    let folder = Folder::new(RECIPE);
    let args = ["-p", "seed=1,2"];
    out(&sweep(&folder, &args));
    let output = sweep(&folder, &[&args[..], &["-p", "steps=4"]].concat());
    assert!(text(&output.stderr).contains("has other parameters"), "{output:?}");
    fs::write(folder.path("tiny.rhai"), format!("{RECIPE}print(1);\n")).unwrap();
    let output = sweep(&folder, &args);
    assert!(text(&output.stderr).contains("has another text of the recipe"), "{output:?}");
    assert!(text(&output.stderr).contains("--name NAME begins another sweep"), "{output:?}");
    out(&sweep(&folder, &[&args[..], &["--name", "second"]].concat()));
    assert_eq!(runs(&folder), ["second-seed=1", "second-seed=2", "tiny-seed=1", "tiny-seed=2"]);
}

/// A sweep that is stopped ends its run with a checkpoint, and the same command goes on from there.
#[test]
fn a_stopped_sweep_goes_on_where_it_was() {
    let folder = Folder::new(RECIPE);
    let args = ["sweep", "tiny.rhai", "-p", "steps=3,400"];
    let mut command = dsr(folder.0.path(), &args);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let checkpoint = folder.path("runs/tiny-steps=400/checkpoints/latest");
    wait_for("a checkpoint", || checkpoint.exists().then_some(()));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let error = text(&output.stderr);
    assert!(error.contains("the sweep is stopped in run 2 of 2"), "{error}");
    assert!(error.contains("sweep tiny.rhai -p steps=3,400"), "{error}");
    assert_eq!(cells(&text(&output.stdout))[2][..2], ["400", "interrupted"]);
    let told = folder.told("runs/tiny-steps=400");
    assert_eq!(told["status"], "interrupted");

    let again = dsr(folder.0.path(), &args).output().unwrap();
    let table = out(&again);
    assert_eq!(cells(&table)[2][..3], ["400", "finished", "400"], "{table}");
    let step = told["step"].as_u64().unwrap();
    assert!(text(&again.stderr).contains(&format!("going on after step {step}")), "{again:?}");
    assert_eq!(runs(&folder), ["tiny-steps=3", "tiny-steps=400"]);
}

#[test]
fn each_run_may_have_several_ranks() {
    let folder = Folder::new(RECIPE);
    out(&sweep(&folder, &["-p", "seed=1,2", "--nproc-per-node", "2"]));
    for run in ["runs/tiny-seed=1", "runs/tiny-seed=2"] {
        assert_eq!(folder.told(run)["world_size"], 2);
    }
}
