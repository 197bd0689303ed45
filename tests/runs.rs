//! What a run says of itself: before its first step, in its directory, and when it has ended.

use std::{fs, path::Path};

use serde_json::Value;

use crate::support::{
    program::{out, text},
    terminal::{ENTER, Terminal},
    tiny_run::{Folder, RECIPE},
    watched_run::folder,
};

#[test]
fn a_run_says_what_trains_on_what() {
    let folder = Folder::new(RECIPE);
    let output = folder.dsr(&["run", "tiny.rhai"]);
    assert_eq!(out(&output), "behind the run\n");
    let shown = text(&output.stderr);
    let expected = [
        "a new run in runs/tiny\n  device      cpu",
        "\n  precision   fp32, AdamW\n  ranks       1\n  parameters  300 trained\n  batch       4 rows \
         a step = micro_batch_size 2 x accumulation 2 x 1 replica\n  steps       1 to 4\nstep 1/4",
    ];
    for part in expected {
        assert!(shown.contains(part), "{shown}");
    }
}

/// Also the lines before the run and behind it, each start anew; samples of steps that are made again are
/// replaced.
#[test]
fn what_is_printed_and_sampled_stays_in_the_run() {
    let folder =
        Folder::new(RECIPE).with("let rows", "print(\"\\x1b[1mbefore\\x1b[0m\");\nlet rows").with(
            "{ run.evaluate(rows); }",
            "{
    let step = engine.global_step;
    print(`step ${step}`);
    run.log_sample(\"a\", `a b\n${P::lr}`);
    if step == 2 { run.save(); }
    if step == 3 && P::lr < 0.1 { throw \"no\"; }
}",
        );
    assert!(!folder.dsr(&["run", "tiny.rhai"]).status.success());
    let read = |name: &str| fs::read_to_string(folder.path("runs/tiny").join(name)).unwrap();
    assert_eq!(read("output.log"), "before\nstep 1\nstep 2\nstep 3\n");
    let output = folder.dsr(&["run", "tiny.rhai", "-p", "lr=0.5", "--resume", "auto"]);
    // The console shows all of it too.
    assert_eq!(out(&output), "\u{1b}[1mbefore\u{1b}[0m\nstep 3\nstep 4\nbehind the run\n");
    let lines = "before\nstep 1\nstep 2\nstep 3\nbefore\nstep 3\nstep 4\nbehind the run\n";
    assert_eq!(read("output.log"), lines);
    let samples: Vec<Value> =
        read("samples.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = [(1, "0.01"), (2, "0.01"), (3, "0.5"), (4, "0.5")].map(|(step, lr)| {
        serde_json::json!({ "step": step, "prompt": "a", "text": format!("a b\n{lr}") })
    });
    assert_eq!(samples, expected);
}

/// Each rank prints, and rank 0's lines are kept, once.
#[test]
fn the_lines_of_the_first_rank_are_kept() {
    let folder = Folder::new(RECIPE).with(
        "{ run.evaluate(rows); }",
        "{ run.log_sample(\"a\", `${engine.rank}`); print(`rank ${engine.rank}`); }",
    );
    out(&folder.dsr(&["launch", "--nproc-per-node=2", "tiny.rhai", "-p", "steps=2"]));
    let read = |name: &str| fs::read_to_string(folder.path("runs/tiny").join(name)).unwrap();
    assert_eq!(read("output.log"), "rank 0\nrank 0\nbehind the run\n");
    assert_eq!(read("samples.jsonl").lines().count(), 2);
}

/// The memory of a run on one process is in its metrics, and that of several ranks in `run.json` too.
#[test]
fn a_run_keeps_its_memory_by_kind_and_its_ranks() {
    let folder = Folder::new(RECIPE).with(
        "print(\"behind the run\")",
        "let used = engine.memory(); print(`${used.parameters} ${used.gradients} ${used.peak}`)",
    );
    for (way, run) in [
        (&["run", "--name", "one"][..], "runs/one"),
        (&["launch", "--nproc-per-node=2", "--name", "two"], "runs/two"),
    ] {
        let printed = out(&folder.dsr(&[way, &["tiny.rhai"]].concat()));
        let metrics = fs::read_to_string(folder.path(run).join("metrics.jsonl")).unwrap();
        let mut memory = metrics
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).unwrap().get("memory").cloned());
        let last = memory.next_back().unwrap();
        let peak: u64 = last.as_object().unwrap().values().map(|kind| kind.as_u64().unwrap()).sum();
        let said = format!("{} {} {peak}", last["parameters"], last["gradients"]);
        assert!(printed.contains(&said), "{printed}{last}");
        let told = folder.told(run);
        if run == "runs/one" {
            assert_eq!(told.get("ranks"), None);
            continue;
        }
        let ranks = told["ranks"].as_array().unwrap();
        assert_eq!(ranks.len(), 2);
        for (i, rank) in ranks.iter().enumerate() {
            assert_eq!(
                (&rank["device"], &rank["dp"], &rank["pp"]),
                (&"cpu".into(), &i.into(), &0.into())
            );
            assert_eq!(rank["memory"]["parameters"], last["parameters"]);
        }
    }
}

#[test]
fn a_line_that_cannot_be_kept_ends_the_recipe() {
    let folder = Folder::new(RECIPE)
        .with("{ run.evaluate(rows); }", "{ if P::steps > 4 { print(1); } }")
        .with("print(\"behind the run\");", "");
    out(&folder.dsr(&["run", "tiny.rhai"]));
    let log = folder.path("runs/tiny/output.log");
    assert!(!log.exists() && !folder.path("runs/tiny/samples.jsonl").exists());
    std::os::unix::fs::symlink(folder.path("rows.jsonl"), &log).unwrap();
    let output = folder.dsr(&["run", "tiny.rhai", "-p", "steps=6", "--resume", "auto"]);
    let error = text(&output.stderr);
    assert!(error.contains("output.log"), "{error}");
    let told = folder.told("runs/tiny");
    assert_eq!((&told["status"], &told["step"]), (&"failed".into(), &5.into()));
}

#[test]
fn a_dry_run_makes_one_step_and_leaves_nothing() {
    let folder = Folder::new(RECIPE);
    let output = folder.dsr(&["run", "tiny.rhai", "--dry-run"]);
    // The recipe ends where its run does.
    assert_eq!(out(&output), "");
    let shown = text(&output.stderr);
    assert!(shown.starts_with("a dry run of one step\n  device "), "{shown}");
    let end = "the dry run is done: one step, one evaluation, one checkpoint; nothing is kept\n";
    assert!(shown.ends_with(end), "{shown}");
    assert!(!folder.path("runs").exists());
    // A recipe that ends before its run does has made its step too.
    let unfinished = RECIPE.replace("run.finish();", "");
    std::fs::write(folder.path("unfinished.rhai"), unfinished).unwrap();
    let output = folder.dsr(&["run", "unfinished.rhai", "--dry-run"]);
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stderr).contains("no checkpoint"), "{output:?}");
    assert!(!folder.path("runs").exists());
    // Nor do the logs of ranks stay.
    let output = folder.dsr(&["launch", "--nproc-per-node=2", "tiny.rhai", "--dry-run"]);
    assert!(output.status.success() && text(&output.stderr).contains(end), "{output:?}");
    assert!(!folder.path("runs").exists());
}

/// Whatever run starts next removes what killed dry runs left. One that goes on stays, and none is listed.
#[test]
fn what_killed_dry_runs_left_is_removed() {
    let folder = Folder::new(RECIPE);
    let [killed, goes_on] = ["tiny.dry-run", "other.dry-run"].map(|name| {
        let dir = folder.path("runs").join(name);
        fs::create_dir_all(dir.join("checkpoints")).unwrap();
        fs::write(dir.join("run.json"), r#"{"name": "tiny", "number": 1, "is_trial": true}"#)
            .unwrap();
        dir
    });
    let lock = fs::File::create(goes_on.join("lock")).unwrap();
    lock.lock().unwrap();
    fs::create_dir(folder.path("runs/mine")).unwrap();
    assert_eq!(text(&folder.dsr(&["runs"]).stderr), "no runs in runs\n");
    out(&folder.dsr(&["run", "tiny.rhai", "--dry-run"]));
    assert!(!killed.exists() && goes_on.exists() && folder.path("runs/mine").exists());
    drop(lock);
    out(&folder.dsr(&["run", "tiny.rhai"]));
    assert!(!goes_on.exists() && folder.path("runs/mine").exists());
}

#[test]
fn a_run_is_removed_after_a_question() {
    let dir = folder();
    let run = dir.path().join("runs/low");
    for (answer, said, stays) in [
        ("n", "nothing is removed", true),
        ("", "nothing is removed", true),
        ("y", "removed runs/low", false),
    ] {
        let mut terminal = Terminal::start(dir.path(), &["runs", "rm", "low"]);
        terminal.wait_for("Remove runs/low with all checkpoints?  [y] yes   [n] no");
        assert!(run.exists());
        terminal.send(&format!("{answer}{ENTER}"));
        terminal.wait_for(said);
        assert!(terminal.end().success());
        assert_eq!(run.exists(), stays, "{answer:?}");
    }
}

#[test]
fn a_dry_run_that_fails_leaves_nothing_either() {
    let folder = Folder::new(RECIPE).with("run.finish();", "throw \"no\";");
    let output = folder.dsr(&["run", "tiny.rhai", "--dry-run"]);
    assert!(!output.status.success());
    assert!(!folder.path("runs").exists(), "{}", text(&output.stderr));
}

#[test]
fn a_dry_run_of_a_recipe_without_a_run_is_refused() {
    let folder = Folder::new(RECIPE);
    for recipe in ["print(1);", "import \"dsr:schedule\" as schedule;\nprint(1);"] {
        fs::write(folder.path("tiny.rhai"), recipe).unwrap();
        let output = folder.dsr(&["run", "tiny.rhai", "--dry-run"]);
        let error = text(&output.stderr);
        let expected = "error[E105]: --dry-run has no meaning for this recipe";
        assert!(error.starts_with(expected), "{recipe}: {error}");
    }
}

#[test]
fn a_run_keeps_what_it_was_made_of_and_how_it_ended() {
    let folder = Folder::new(RECIPE);
    out(&folder.dsr(&["run", "tiny.rhai", "-p", "lr=0.5"]));
    let told = folder.told("runs/tiny");
    assert_eq!((&told["status"], &told["step"]), (&"finished".into(), &4.into()));
    assert_eq!(told["params"], serde_json::json!({ "steps": 4, "lr": 0.5 }));
    assert_eq!((&told["device"], &told["precision"]), (&"cpu".into(), &"fp32".into()));
    assert_eq!(told["dsr"], env!("CARGO_PKG_VERSION"));
    assert!(told["libtorch"].as_str().unwrap().starts_with("2."));
    for hash in ["recipe_sha256", "data"] {
        assert_eq!(told[hash].as_str().unwrap().len(), 64, "{hash}");
    }
    assert!(told["started_at"].as_str() <= told["ended_at"].as_str(), "{told}");
    assert_eq!(told.get("error"), None);
}

/// What a recipe throws is written down, and the curve is drawn up to there.
#[test]
fn a_run_that_fails_keeps_its_error_and_goes_on_as_running() {
    let folder = Folder::new(RECIPE).with(
        "{ run.evaluate(rows); }",
        "{ run.save(); if engine.global_step == 2 && P::lr < 0.1 { throw \"too low\"; } }",
    );
    assert!(!folder.dsr(&["run", "tiny.rhai"]).status.success());
    let told = folder.told("runs/tiny");
    assert_eq!((&told["status"], &told["step"]), (&"failed".into(), &2.into()));
    assert!(told["error"].as_str().unwrap().contains("too low"), "{told}");
    assert!(folder.path("runs/tiny/loss.svg").is_file());
    out(&folder.dsr(&["run", "tiny.rhai", "-p", "lr=0.2", "--resume", "auto"]));
    let ended = folder.told("runs/tiny");
    assert_eq!((&ended["status"], ended.get("error")), (&"finished".into(), None));
    assert_eq!(ended["started_at"], told["started_at"]);
    assert!(ended["resumed_at"].is_string());
}

#[test]
fn a_checkpoint_has_the_tokenizer_of_its_rows() {
    let folder = Folder::new(RECIPE)
        .with(
            "dataset(\"rows.jsonl\")",
            "dataset(\"rows.txt\").tokenize(tokenizer(\"dsr:gpt2\")).pack(4)",
        )
        .with("vocab_size: 8", "vocab_size: 50257");
    fs::write(folder.path("rows.txt"), "one two three four five six seven eight ".repeat(4))
        .unwrap();
    out(&folder.dsr(&["run", "tiny.rhai"]));
    let written = out(&folder.dsr(&["generate", "runs/tiny", "one", "--max-new-tokens", "2"]));
    assert!(written.contains("one"), "{written}");
    assert!(folder.path("runs/tiny/checkpoints/step-00000004/tokenizer_config.json").is_file());
}

#[test]
fn a_recipe_can_go_by_the_speed() {
    let folder = Folder::new(RECIPE)
        .with(
            "let loader",
            "print(engine.tokens_per_second == () && engine.mfu == ());\nlet loader",
        )
        .with(
            "print(\"behind the run\")",
            "print(engine.tokens_per_second > 0.0 && engine.mfu == ())",
        );
    assert_eq!(out(&folder.dsr(&["run", "tiny.rhai"])), "true\ntrue\n");
}

/// Of 130 steps the 129th has ten times the loss of the others. Two ranks decide alike.
#[test]
fn an_outlier_is_told_on_the_screen_and_in_the_metrics() {
    let folder = Folder::new(RECIPE)
        .with(
            "micro_batch_size: 2, grad",
            "skip_update_lossz: 6, loss: loss, micro_batch_size: 2, grad",
        )
        .with(
            "let engine",
            "let factor = 1.0;
let loss = |logits, targets| nn::cross_entropy(logits.flatten(0, 1), targets.flatten()) * factor;
let engine",
        )
        .with(
            "{ run.evaluate(rows); }",
            "{ factor = if engine.global_step == 128 { 10.0 } else { 1.0 }; }",
        );
    let given = ["tiny.rhai", "-p", "steps=130", "-p", "lr=0.0001"];
    let ways = [&["run", "--name", "one"][..], &["launch", "--nproc-per-node=2", "--name", "two"]];
    for (way, run) in ways.into_iter().zip(["runs/one", "runs/two"]) {
        let output = folder.dsr(&[way, &given[..]].concat());
        out(&output);
        check_outlier(&text(&output.stderr), &folder.path(run));
    }
}

fn check_outlier(error: &str, run: &Path) {
    let line = error.lines().find(|line| line.contains("skipped")).expect(error);
    assert!(line.contains("step 129/130 "), "{line}");
    assert!(line.contains("  skipped: the loss has the z-score 11."), "{line}");
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let records: Vec<Value> =
        metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let skipped: Vec<_> = records.iter().filter(|record| record["skipped"] == true).collect();
    assert_eq!(skipped.len(), 1, "{skipped:?}");
    assert_eq!(skipped[0]["step"], 129);
    assert!(skipped[0]["loss_zscore"].as_f64().unwrap() > 11.0, "{skipped:?}");
}

#[test]
fn runs_are_listed_compared_and_removed() {
    let folder = Folder::new(RECIPE);
    assert_eq!(text(&folder.dsr(&["runs"]).stderr), "no runs in runs\n");
    out(&folder.dsr(&["run", "tiny.rhai", "--name", "low"]));
    out(&folder.dsr(&["run", "tiny.rhai", "--name", "high", "-p", "lr=0.2"]));
    // A process that was killed leaves what it wrote at its start.
    let mut killed = folder.told("runs/low");
    killed["status"] = "running".into();
    (killed["step"], killed["loss"]) = (0.into(), Value::Null);
    fs::write(folder.path("runs/low/run.json"), killed.to_string()).unwrap();
    // A run that has ended tells its last values itself.
    fs::rename(folder.path("runs/high/metrics.jsonl"), folder.path("metrics.jsonl")).unwrap();

    let listed = out(&folder.dsr(&["runs"]));
    let lines: Vec<Vec<&str>> =
        listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0][..4], ["RUN", "STATUS", "STEP", "LOSS"]);
    assert_eq!(lines[1][..3], ["high", "finished", "4/4"]);
    assert_eq!(lines[2][..3], ["low", "killed", "4/4"]);
    fs::rename(folder.path("metrics.jsonl"), folder.path("runs/high/metrics.jsonl")).unwrap();
    let told = folder.told("runs/high");
    assert_eq!(lines[1][3], format!("{:.3}", told["loss"].as_f64().unwrap()));
    let best = &told["best_evaluation"];
    assert_eq!(
        lines[1][4..7],
        [&format!("{:.3}", best["loss"].as_f64().unwrap()), "at", &best["step"].to_string(),]
    );
    assert!(lines[2][3].parse::<f64>().is_ok(), "{listed}");
    let names = |args: &[&str]| {
        let json = out(&folder.dsr(&[&["runs", "--json"], args].concat()));
        let all: Vec<Value> = serde_json::from_str(&json).unwrap();
        all.iter().map(|run| run["run"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&["--filter", "0.2"]), ["high"]);
    assert_eq!(names(&["--status", "killed"]), ["low"]);

    let compared = out(&folder.dsr(&["runs", "compare", "low", "high", "--svg", "both.svg"]));
    let lr = compared.lines().find(|line| line.starts_with("lr ")).unwrap();
    assert_eq!(lr.split_whitespace().collect::<Vec<_>>(), ["lr", "0.01", "0.2"]);
    assert!(!compared.contains("precision"), "what is equal is left out: {compared}");
    assert!(compared.contains("high: loss, 4 points"), "{compared}");
    let svg = fs::read_to_string(folder.path("both.svg")).unwrap();
    assert!(svg.contains("low") && svg.contains("high"), "{svg}");

    let asked = folder.dsr(&["runs", "rm", "low"]);
    assert_eq!(asked.status.code(), Some(2), "without a terminal nobody can be asked");
    assert!(folder.path("runs/low").exists());
    assert_eq!(out(&folder.dsr(&["runs", "rm", "low", "--yes"])), "removed runs/low\n");
    assert!(!folder.path("runs/low").exists());
    let error = text(&folder.dsr(&["runs", "rm", "hihg", "--yes"]).stderr);
    assert!(error.contains("did you mean \"high\"?"), "{error}");
}

/// Nothing of a run may tell of steps that are undone.
#[test]
fn steps_that_are_undone_are_written_into_no_run() {
    let folder = Folder::new(RECIPE).with(
        "{ run.evaluate(rows); }",
        "{ run.evaluate(rows); run.log_sample(\"a\", \"b\"); }
let calls = [
    || run.train_batch(), || run.after_step(), || run.evaluate(rows), || run.log_sample(\"a\", \"c\"),
    || run.save(), || run.finish(), || { for batch in run { engine.forward(batch); } },
    || start_run(engine, loader, #{ name: \"inner\", total_steps: 9 }),
];
for way in calls {
    try { engine.with_restore(loader, || { engine.train_batch(loader); way.call(); }); }
    catch (e) { print(e.message); }
}",
    );
    let output = folder.dsr(&["run", "tiny.rhai"]);
    let refused = [
        "run.train_batch",
        "run.after_step",
        "run.evaluate",
        "run.log_sample",
        "run.save",
        "run.finish",
        "a loop over the batches of a run",
        "start_run",
    ];
    let why = "is not possible within `with_restore`, which undoes its steps\n";
    let expected = refused.map(|call| format!("{call} {why}")).concat();
    assert_eq!(out(&output), expected + "behind the run\n");
    let read = |name: &str| fs::read_to_string(folder.path("runs/tiny").join(name)).unwrap();
    assert_eq!(read("metrics.jsonl").lines().count(), 2 * 4);
    assert_eq!(read("samples.jsonl").lines().count(), 4);
    assert_eq!(read("checkpoints/latest"), "step-00000004\n");
    assert!(!folder.path("runs/inner").exists());
}

/// What the finder tries goes to no log, and no directory of it stays. Two ranks find the same.
#[test]
fn a_learning_rate_is_found_before_a_run() {
    let finds = r#"let found = lr_finder::find(engine, loader, #{
    num_training: 20, plot: "runs/lr_finder.svg",
});
print(found.points.len);
let run"#;
    let folder = Folder::new(RECIPE)
        .with("param(\"steps\"", "import \"dsr:lr_finder\" as lr_finder;\nparam(\"steps\"")
        .with("let run", finds)
        .with(
            "optimizer: #{ lr: P::lr },",
            "optimizer: #{ lr: P::lr }, csv_monitor: #{ enabled: true, output_path: \"csv\" },",
        );
    for (way, run) in [
        (&["run", "--name", "one"][..], "runs/one"),
        (&["launch", "--nproc-per-node=2", "--name", "two"], "runs/two"),
    ] {
        let output = folder.dsr(&[way, &["tiny.rhai"]].concat());
        assert!(out(&output).contains("20\n"), "{}", text(&output.stderr));
        let svg = fs::read_to_string(folder.path("runs/lr_finder.svg")).unwrap();
        assert!(svg.contains("learning rate") && svg.contains("smoothed loss"), "{svg}");
        let metrics = fs::read_to_string(folder.path(run).join("metrics.jsonl")).unwrap();
        let first: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
        assert_eq!((&first["step"], &first["lr"]), (&1.into(), &0.01.into()));
        let left = fs::read_dir(folder.path("runs")).unwrap();
        let left = left.filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().contains("restore")
        });
        assert_eq!(left.count(), 0);
    }
    let mut logged = Vec::new();
    for entry in walk(&folder.path("csv")) {
        logged.push(fs::read_to_string(&entry).unwrap().lines().count());
    }
    assert!(!logged.is_empty() && logged.iter().all(|&lines| lines <= 2 * (1 + 4)), "{logged:?}");
}

/// The files of a directory and of those in it.
fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
