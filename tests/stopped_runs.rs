//! Ctrl-C amid a step that takes for ever: the step is given up, and the run goes on as if nothing had been.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use crate::support::{
    program::{dsr, out, text},
    tiny_run::{Folder, RECIPE},
};

/// A recipe whose loop is `body`, with rows that differ.
fn folder(body: &str) -> Folder {
    let folder =
        Folder::new(RECIPE).with("while run.train_batch() { run.evaluate(rows); }", body).with(
            "param(\"steps\", 4);",
            "param(\"steps\", 4);\nparam(\"hangs\", false);
let hang = || { print(\"ready\"); while true {} };",
        );
    let row = |i| format!("{{\"input_ids\": [1, {}, 3, {}]}}\n", i % 7, i % 5);
    fs::write(folder.path("rows.jsonl"), (0..11).map(row).collect::<String>()).unwrap();
    folder
}

/// Sends a signal to a run once it hangs, and gives what it says at its end.
fn stopped(folder: &Folder, signal: &str) -> String {
    let given = ["run", "tiny.rhai", "-p", "hangs=true", "--name", "stopped"];
    let mut child =
        dsr(folder.0.path(), &given).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut printed = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut printed).unwrap();
    assert_eq!(printed, "ready\n");
    let kill = Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    text(&output.stderr)
}

/// The losses of a run by their steps.
fn losses(folder: &Folder, run: &str) -> Vec<(u64, f64)> {
    let lines = fs::read_to_string(folder.path("runs").join(run).join("metrics.jsonl")).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.map(|line| (line["step"].as_u64().unwrap(), line["loss"].as_f64().unwrap())).collect()
}

fn goes_on_as_if_it_had_not_been_stopped(body: &str, saved: u64) {
    goes_on_as_if_nothing_had_stopped_it("-INT", body, saved);
}

fn goes_on_as_if_nothing_had_stopped_it(signal: &str, body: &str, saved: u64) {
    let folder = folder(body);
    out(&folder.dsr(&["run", "tiny.rhai", "--name", "whole"]));
    let told = stopped(&folder, signal);
    let line = format!("stopped after step {saved}; the checkpoint of step {saved} is saved");
    assert!(told.contains(&line), "{told}");
    assert_eq!(folder.told("runs/stopped")["status"], "interrupted");
    assert_eq!(losses(&folder, "stopped").len() as u64, saved);
    out(&folder.dsr(&["run", "tiny.rhai", "--resume", "runs/stopped"]));
    assert_eq!(losses(&folder, "stopped"), losses(&folder, "whole"));
}

#[test]
fn micro_batches_of_a_step_that_is_given_up_are_trained_again() {
    goes_on_as_if_it_had_not_been_stopped(
        "for batch in run {
    engine.backward(engine.forward(batch));
    if P::hangs && engine.global_step == 2 { hang.call(); }
    if engine.step() { run.after_step(); }
}",
        2,
    );
}

#[test]
fn a_step_that_was_done_is_written_down() {
    goes_on_as_if_it_had_not_been_stopped(
        "for batch in run {
    engine.backward(engine.forward(batch));
    if engine.step() {
        if P::hangs && engine.global_step == 3 { hang.call(); }
        run.after_step();
    }
}",
        3,
    );
}

#[test]
fn steps_that_are_undone_are_given_up() {
    goes_on_as_if_it_had_not_been_stopped(
        "while run.train_batch() {
    if P::hangs && engine.global_step == 2 {
        engine.with_restore(loader, || {
            engine.train_batch(loader);
            print(\"ready\");
            loop { engine.train_batch(loader); }
        });
    }
}",
        2,
    );
}

/// A terminal that goes away, and whoever ends the job, are heard as Ctrl-C is.
#[test]
fn every_signal_that_asks_to_stop_saves() {
    for signal in ["-HUP", "-TERM"] {
        goes_on_as_if_nothing_had_stopped_it(
            signal,
            "while run.train_batch() { if P::hangs && engine.global_step == 2 { hang.call(); } }",
            2,
        );
    }
}
