//! Places that cannot be written, or are gone.

use std::{
    fs::{self, File},
    path::Path,
    process::Command,
};

use crate::support::{
    program::{command, out, text},
    tiny_run::{Folder, RECIPE},
};

fn folder(recipe: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("r.rhai"), recipe).unwrap();
    folder
}

#[test]
fn a_directory_that_is_gone_and_a_limit_of_file_sizes_are_told_in_words() {
    let folder =
        folder("new_model(\"gpt2\", #{ n_layer: 1, n_head: 2, n_embd: 32 }).export_hf(\"m\");");
    let shell = |script: &str| {
        let output = Command::new("bash")
            .args(["-c", script])
            .env("DSR", env!("CARGO_BIN_EXE_dsr"))
            .current_dir(folder.path())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for command in ["eval 1", "run r.rhai", "doc log", "launch r.rhai", "--version"] {
        let (status, words) =
            shell(&format!("mkdir gone && cd gone && rmdir ../gone && $DSR {command}"));
        assert_eq!(status, Some(4), "{command}: {words}");
        assert!(words.starts_with("error[E802]: the working directory does not exist any more\n"));
    }
    let (status, words) = shell("ulimit -f 100; $DSR run r.rhai");
    assert_eq!(status, Some(5), "{words}");
    assert!(words.starts_with("error[E302]: ") && words.contains("ulimit -f"), "{words}");
    assert!(!folder.path().join("m").exists());
}

/// A run goes on without its output, and a program that made only output did nothing.
#[test]
fn output_that_does_not_fit_on_the_disk_is_an_error_at_the_end() {
    let folder = folder("print(1); save_plot(\"p.svg\", [[1, 2], [2, 3]], #{}); print(2);");
    let commands: [&[&str]; 6] = [
        &["run", "r.rhai"],
        &["doc", "init_engine"],
        &["check", "--json", "r.rhai"],
        &["recipe", "show", "gpt2_wikitext"],
        &["eval", "1 + 1"],
        &["completions", "bash"],
    ];
    for args in commands {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = command().args(args).current_dir(folder.path()).stdout(full).output();
        let output = output.unwrap();
        let words = text(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{args:?}: {words}");
        assert!(words.contains("error[E302]: cannot write to standard output"), "{words}");
    }
    assert!(folder.path().join("p.svg").is_file());
}

/// The records of an event file, each whole; the lengths are the first eight bytes of each.
fn records(path: &Path) -> usize {
    let (bytes, mut at, mut count) = (fs::read(path).unwrap(), 0, 0);
    while at < bytes.len() {
        let len = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        (at, count) = (at + 16 + usize::try_from(len).unwrap(), count + 1);
    }
    assert_eq!(at, bytes.len(), "{}", path.display());
    count
}

/// A disk that is full under the logs of a run ends the run with an error. Whatever is in the logs is whole,
/// and the run goes on when there is room.
#[test]
fn a_run_whose_logs_do_not_fit_on_the_disk_can_go_on() {
    let logs = "init_engine(model, #{ csv_monitor: #{ enabled: true, output_path: \"logs\" }, \
                tensorboard: #{ enabled: true, output_path: \"logs\" },";
    let folder = Folder::new(RECIPE)
        .with("init_engine(model, #{", logs)
        .with("total_steps: P::steps }", "total_steps: P::steps, save_every: 25 }")
        .with("run.evaluate(rows);", "");
    let disk = folder.path("logs");
    fs::create_dir(&disk).unwrap();
    let small = ["-t", "tmpfs", "-o", "size=32k", "tmpfs"];
    let mount = Command::new("mount").args(small).arg(&disk).output();
    if !mount.is_ok_and(|output| output.status.success()) {
        println!("skipped: a small tmpfs cannot be mounted here");
        return;
    }
    let run = ["run", "tiny.rhai", "-p", "steps=400", "--name", "r"];
    let output = folder.dsr(&run);
    let files: Vec<_> = walk(&disk);
    let whole = |path: &Path| match path.extension().is_some_and(|end| end == "csv") {
        true => {
            let rows = fs::read_to_string(path).unwrap();
            assert!(rows.ends_with('\n'), "{}: {rows}", path.display());
            rows.lines().count()
        }
        false => records(path),
    };
    let counts: Vec<_> = files.iter().map(|path| whole(path)).collect();
    Command::new("umount").arg(&disk).status().unwrap();
    let words = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{words}");
    assert!(words.contains("error[E302]: ") && words.contains("logs/"), "{words}");
    assert!(counts.iter().all(|&count| count > 1) && counts.len() >= 5, "{files:?} {counts:?}");
    assert_eq!(folder.told("runs/r")["status"], "failed");
    out(&folder.dsr(&[&run[..], &["--resume", "auto"]].concat()));
    let metrics = fs::read_to_string(folder.path("runs/r/metrics.jsonl")).unwrap();
    let step =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].clone();
    let steps: Vec<_> = metrics.lines().map(|line| step(line).as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=400).collect::<Vec<_>>());
}

/// The files below a directory.
fn walk(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
