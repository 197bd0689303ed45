//! The best checkpoint of a run: it stays, whatever ends a process, and goes along where a run branches off.

use std::fs;

use serde_json::Value;

use crate::support::{
    program::{out, text},
    tiny_run::{Folder, RECIPE},
};

/// A run that keeps one checkpoint and the best, which is that of step 2.
fn with_the_best() -> Folder {
    let recipe = r#"let at = engine.global_step;
    run.evaluate(if at == 2 { rows } else { dataset("other.jsonl") });"#;
    let folder = Folder::new(RECIPE)
        .with("{ run.evaluate(rows); }", &format!("{{ {recipe} }}"))
        .with(
            "total_steps: P::steps",
            "total_steps: P::steps, keep: 1, save_every: 1, keep_best: \"eval_loss\"",
        )
        .with("print(\"behind the run\")", "print(`${run.best.step} ${run.evaluations.len}`)");
    fs::write(folder.path("other.jsonl"), "{\"input_ids\": [7, 5, 7, 6]}\n").unwrap();
    let given = ["run", "tiny.rhai", "--name", "a", "-p", "steps=5", "-p", "lr=0.05"];
    assert_eq!(out(&folder.dsr(&given)), "2 5\n");
    folder
}

/// The steps whose checkpoints a run has, and the one that is marked as the best.
fn checkpoints(folder: &Folder, run: &str) -> (Vec<u64>, String) {
    let dir = folder.path("runs").join(run).join("checkpoints");
    let best = fs::read_to_string(dir.join("best")).unwrap();
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut steps: Vec<u64> =
        names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect();
    steps.sort_unstable();
    (steps, best.trim().to_owned())
}

#[test]
fn the_best_checkpoint_stays() {
    let folder = with_the_best();
    assert_eq!(checkpoints(&folder, "a"), (vec![2, 5], "step-00000002".to_owned()));
}

/// The new run has the name of the one that it goes on with, its lines up to there and its best checkpoint.
#[test]
fn a_run_that_branches_off_knows_what_was_known_at_its_step() {
    let folder = with_the_best();
    let from = "runs/a/checkpoints/best";
    let given = ["run", "tiny.rhai", "-p", "lr=0.05", "--resume", from];
    let output = folder.dsr(&given);
    assert!(text(&output.stderr).contains("going on after step 2"), "{output:?}");
    assert_eq!(out(&output), "2 4\n");
    let metrics = fs::read_to_string(folder.path("runs/a-2/metrics.jsonl")).unwrap();
    let steps: Vec<Value> = metrics
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].clone())
        .collect();
    assert_eq!(steps, [1, 1, 2, 2, 3, 3, 4, 4]);
    assert_eq!(checkpoints(&folder, "a-2"), (vec![2, 4], "step-00000002".to_owned()));
    assert_eq!(checkpoints(&folder, "a"), (vec![2, 5], "step-00000002".to_owned()));
    let best = &folder.told("runs/a-2")["best_evaluation"];
    assert_eq!((&best["step"], best), (&2.into(), &folder.told("runs/a")["best_evaluation"]));
    // A name that is given is the new run's.
    out(&folder.dsr(&[&given[..], &["--name", "b"]].concat()));
    assert_eq!(checkpoints(&folder, "b"), (vec![2, 4], "step-00000002".to_owned()));
    // The newest run of the name is the new one.
    let again = ["run", "tiny.rhai", "-p", "steps=6", "--name", "a", "--resume", "auto"];
    assert_eq!(out(&folder.dsr(&again)), "2 6\n");
    assert!(folder.path("runs/a-2/checkpoints/step-00000006").is_dir());
}

/// A process that is killed between a checkpoint and its mark leaves the mark of an earlier one.
#[test]
fn a_mark_of_the_best_that_is_not_the_best_is_set_right() {
    let folder = with_the_best();
    fs::write(folder.path("runs/a/checkpoints/best"), "step-00000005\n").unwrap();
    let given = ["run", "tiny.rhai", "-p", "steps=7", "--name", "a", "--resume", "auto"];
    assert_eq!(out(&folder.dsr(&given)), "2 7\n");
    assert_eq!(checkpoints(&folder, "a"), (vec![2, 7], "step-00000002".to_owned()));
}

/// The best evaluation may be that of averages: its checkpoint is the usual one, with which the run can
/// go on.
#[test]
fn the_best_checkpoint_may_be_that_of_averages() {
    let folder = Folder::new(RECIPE)
        .with("optimizer: #{ lr: P::lr },", "optimizer: #{ lr: P::lr }, ema: #{ decay: 0.5 },")
        .with("{ run.evaluate(rows); }", "{ engine.with_ema(|| run.evaluate(rows)); }")
        .with("total_steps: P::steps", "total_steps: P::steps, keep_best: \"eval_loss\"")
        .with(
            "print(\"behind the run\")",
            "let last = engine.evaluate(rows).loss;
engine.load_checkpoint(`${run.dir}/checkpoints/best`);
print(run.best.step == P::steps && engine.evaluate(rows).loss == last);
print(engine.with_ema(|| engine.evaluate(rows).loss) == run.best.loss)",
        );
    assert_eq!(out(&folder.dsr(&["run", "tiny.rhai"])), "true\ntrue\n");
}

/// A start that is refused leaves the run that it would have branched off from, and no directory.
#[test]
fn a_run_that_does_not_begin_leaves_nothing() {
    let folder = with_the_best();
    let metrics = folder.path("runs/a/metrics.jsonl");
    let text_of = fs::read_to_string(&metrics).unwrap();
    fs::write(&metrics, format!("[]\n{text_of}")).unwrap();
    let from = "runs/a/checkpoints/best";
    let output = folder.dsr(&["run", "tiny.rhai", "--resume", from]);
    assert!(
        text(&output.stderr).contains("metrics.jsonl line 1 is not a JSON object"),
        "{output:?}"
    );
    assert!(!folder.path("runs/a-2").exists());
    assert_eq!(folder.told("runs/a")["status"], "finished");
}

/// A model is loaded from the files that `--resume` takes: the marks of a store, and a run.
#[test]
fn a_model_is_loaded_from_a_run_and_its_marks() {
    let folder = with_the_best();
    let load = "
let of = |path| load_model(path).logits(tensor([[1, 2, 3]])).sum().item();
let best = of.call(\"runs/a/checkpoints/step-00000002\");
let last = of.call(\"runs/a/checkpoints/step-00000005\");
print([best == last, of.call(\"runs/a/checkpoints/best\") == best, of.call(\"runs/a\") == last,
       of.call(\"runs/a/checkpoints/latest\") == last]);";
    assert_eq!(out(&folder.dsr(&["eval", load])), "[false, true, true, true]\n");
}

/// A run whose `run.json` is damaged cannot go on; its checkpoint can, and this is told.
#[test]
fn a_run_that_cannot_be_read_goes_on_as_another_which_is_told() {
    let folder = with_the_best();
    fs::write(folder.path("runs/a/run.json"), "half").unwrap();
    let output = folder.dsr(&["run", "tiny.rhai", "-p", "steps=6", "--resume", "runs/a"]);
    assert_eq!(out(&output), "2 6\n");
    let told = text(&output.stderr);
    let line = "a new run begins, as that of the checkpoint cannot go on: runs/a/run.json cannot be \
                understood";
    assert!(told.contains(line), "{told}");
    assert!(folder.path("runs/a-2/checkpoints/step-00000006").is_dir());
}
