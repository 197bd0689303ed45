//! Runs whose files are damaged, or only linked: the others are listed, compared and removed as ever.

use std::{fs, os::unix::fs::symlink, path::PathBuf};

use crate::support::{
    program::{dsr, out, text},
    watched_run::folder,
};

/// A directory with the whole runs `low` and `high` and three damaged ones: `junk` has metrics that are no
/// text, `bare` no `run.json`, `torn` half of one.
struct Runs(tempfile::TempDir);

impl Runs {
    fn new() -> Self {
        let runs = Self(folder());
        for name in ["high", "junk", "bare", "torn"] {
            fs::create_dir(runs.path(name)).unwrap();
        }
        let low = fs::read_to_string(runs.path("low").join("run.json")).unwrap();
        let metrics = fs::read_to_string(runs.path("low").join("metrics.jsonl")).unwrap();
        for name in ["high", "junk"] {
            let told = low.replace("\"low\"", &format!("{name:?}"));
            fs::write(runs.path(name).join("run.json"), told).unwrap();
            fs::write(runs.path(name).join("metrics.jsonl"), &metrics).unwrap();
        }
        let junk = [&metrics.as_bytes()[..4000], b"\xff\xfe\n[1]\n", metrics.as_bytes()].concat();
        fs::write(runs.path("junk/metrics.jsonl"), junk).unwrap();
        fs::write(runs.path("bare/metrics.jsonl"), &metrics).unwrap();
        fs::write(runs.path("torn/run.json"), &low[..40]).unwrap();
        // What is no run is not listed.
        fs::create_dir(runs.path("notes")).unwrap();
        runs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("runs").join(name)
    }

    fn dsr(&self, args: &[&str]) -> String {
        out(&dsr(self.0.path(), args).output().unwrap())
    }

    fn listed(&self) -> Vec<(String, String)> {
        let all: Vec<serde_json::Value> =
            serde_json::from_str(&self.dsr(&["runs", "--json"])).unwrap();
        let text = |run: &serde_json::Value, key: &str| run[key].as_str().unwrap().to_owned();
        all.iter().map(|run| (text(run, "run"), text(run, "status"))).collect()
    }
}

#[test]
fn a_damaged_run_is_listed_as_such_among_the_others() {
    let runs = Runs::new();
    let expected = [
        ("bare", "damaged"),
        ("high", "interrupted"),
        ("junk", "interrupted"),
        ("low", "interrupted"),
        ("torn", "damaged"),
    ];
    assert_eq!(runs.listed(), expected.map(|(run, state)| (run.to_owned(), state.to_owned())));
    let table = runs.dsr(&["runs"]);
    assert!(table.contains("bare: runs/bare/run.json is missing or damaged\n"), "{table}");
    assert!(table.contains("\nbare  damaged      600 "), "{table}");
    let damaged = runs.dsr(&["runs", "--status", "damaged"]);
    assert!(damaged.contains("torn") && !damaged.contains("high"), "{damaged}");
}

#[test]
fn runs_are_compared_as_far_as_they_can_be_read() {
    let runs = Runs::new();
    let whole = runs.dsr(&["runs", "compare", "low", "high"]);
    assert!(!whole.contains("unreadable"), "{whole}");
    let compared = runs.dsr(&["runs", "compare", "low", "junk", "bare"]);
    let row = compared.lines().find(|line| line.starts_with("unreadable metrics")).unwrap();
    let words: Vec<_> = row.split_whitespace().collect();
    assert_eq!(words, ["unreadable", "metrics", "0", "lines", "2", "lines", "0", "lines"]);
    assert!(compared.contains("junk: loss") && compared.contains("bare: loss"), "{compared}");
}

#[test]
fn a_damaged_run_is_watched_and_removed() {
    let runs = Runs::new();
    let screen = runs.dsr(&["watch", "bare"]);
    assert!(screen.contains("damaged") && screen.contains("600"), "{screen}");
    assert!(runs.dsr(&["watch", "torn"]).contains("damaged"));
    let said = runs.dsr(&["runs", "rm", "bare", "torn", "--yes"]);
    assert_eq!(said, "removed runs/bare\nremoved runs/torn\n");
    assert!(!runs.path("bare").exists() && !runs.path("torn").exists());
}

/// Also where a process goes on with the run that the link leads to.
#[test]
fn of_a_run_that_is_linked_the_link_alone_is_removed() {
    let runs = Runs::new();
    let elsewhere = runs.0.path().join("elsewhere");
    fs::rename(runs.path("high"), &elsewhere).unwrap();
    symlink(&elsewhere, runs.path("linked")).unwrap();
    let lock = fs::File::create(elsewhere.join("lock")).unwrap();
    lock.lock().unwrap();
    let output = dsr(runs.0.path(), &["runs", "rm", "linked", "--yes"]).output().unwrap();
    assert_eq!(out(&output), "removed the link runs/linked, whose run stays\n", "{output:?}");
    assert!(runs.path("linked").symlink_metadata().is_err());
    assert!(elsewhere.join("run.json").is_file());
    assert_eq!(text(&output.stderr), "");
}

/// A value of several lines or of wide characters moves no other column.
#[test]
fn a_value_stays_in_its_row_and_its_column() {
    let runs = Runs::new();
    let told = fs::read_to_string(runs.path("low/run.json")).unwrap();
    let mut told: serde_json::Value = serde_json::from_str(&told).unwrap();
    told["params"] = serde_json::json!({ "note": "one\ntwo" });
    told["started_at"] = "2026\nfake  finished".into();
    fs::write(runs.path("low/run.json"), told.to_string()).unwrap();
    fs::rename(runs.path("high"), runs.path("漢字漢字")).unwrap();
    let table = runs.dsr(&["runs", "--status", "interrupted"]);
    assert!(table.contains(r"2026\nfake  finished"), "{table}");
    let column = |line: &str| columns_of(&line[..line.find("interrupted").unwrap()]);
    let columns: Vec<_> = table.lines().skip(1).map(column).collect();
    assert_eq!(columns, [10; 3], "{table}");
    let compared = runs.dsr(&["runs", "compare", "low", "junk"]);
    assert!(compared.contains(r"one\ntwo"), "{compared}");
}

/// The columns that a terminal gives to a text of these tests.
fn columns_of(text: &str) -> usize {
    text.chars().map(|c| if c > '\u{1100}' { 2 } else { 1 }).sum()
}
