//! Datasets of the hub that are fetched while they are read: what is asked for, and what lies on the disk.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
    sync::Arc,
    thread::sleep,
    time::Duration,
};

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use tempfile::TempDir;

use crate::support::{
    hub_server::{HubRepo, HubServer, Mishap},
    program::{dsr, out, text},
    small_hub,
};

/// Rows of a file, in two batches.
const ROWS: usize = 1500;
const FILES: usize = 4;

/// A home with a hub that has `Owner/words` in several large files of a format.
struct Home {
    dir: TempDir,
    hub: HubServer,
}

impl Home {
    fn new(ending: &str, write: impl Fn(&[String]) -> Vec<u8>) -> Self {
        let (dir, hub) = (tempfile::tempdir().unwrap(), HubServer::start());
        let mut repo =
            HubRepo::new([("data/test-00000-of-00001.parquet", &*parquet(&["t".to_owned()]))]);
        if ending != "parquet" {
            repo = HubRepo::new([]);
        }
        for file in 0..FILES {
            let rows: Vec<String> =
                (0..ROWS).map(|row| format!("row {}", file * ROWS + row)).collect();
            let name = format!("data/train-{file:05}-of-{FILES:05}.{ending}");
            repo = repo.large(&name, &write(&rows));
        }
        hub.put("datasets/Owner/words", repo);
        Self { dir, hub }
    }

    fn start(&self, recipe: &str, flags: &[&str]) -> Child {
        fs::write(self.dir.path().join("r.rhai"), recipe).unwrap();
        let args = [&["run", "r.rhai", "--allow-net=127.0.0.1"], flags].concat();
        let mut command = dsr(self.dir.path(), &args);
        small_hub::visible(&self.hub, self.dir.path(), &mut command)
            .env("XDG_CACHE_HOME", self.dir.path().join("caches"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// What a recipe prints.
    fn says(&self, recipe: &str) -> String {
        out(&self.start(recipe, &[]).wait_with_output().unwrap())
    }

    /// The error of a recipe.
    fn error(&self, recipe: &str) -> String {
        let output = self.start(recipe, &[]).wait_with_output().unwrap();
        assert!(!output.status.success());
        text(&output.stderr)
    }

    /// The files that lie on the disk while they are read.
    fn files(&self) -> Vec<PathBuf> {
        let dir = fs::read_dir(self.dir.path().join("caches/dsr/streams"));
        let all = dir.into_iter().flatten().map(|entry| entry.unwrap().path());
        all.filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            !name.ends_with(".lock") && !name.contains(".rows")
        })
        .collect()
    }

    /// The numbers of the files that were asked for whole, since the last call.
    fn fetched(&self) -> Vec<usize> {
        let requests = self.hub.take_storage_requests();
        let whole = requests.iter().filter(|request| !request.headers.contains_key("range"));
        whole
            .map(|request| request.path.split("train-").nth(1).unwrap()[..5].parse().unwrap())
            .collect()
    }
}

fn parquet(rows: &[String]) -> Vec<u8> {
    let column: ArrayRef = Arc::new(StringArray::from_iter_values(rows));
    // More than the end that is asked for first.
    let other: ArrayRef =
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.repeat(20))));
    let batch = RecordBatch::try_from_iter([("text", column), ("other", other)]).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

fn jsonl(rows: &[String]) -> Vec<u8> {
    rows.iter().flat_map(|row| format!("{{\"text\": \"{row}\"}}\n").into_bytes()).collect()
}

/// Reads all rows and says which came, in order.
const ALL: &str = r#"
let ds = dataset("Owner/words", #{ streaming: true });
let n = 0;
for row in ds {
    if row.text != `row ${n}` { throw `${row.text} at ${n}`; }
    n += 1;
}
print(n);
"#;

#[test]
fn files_are_fetched_one_ahead_and_removed() {
    for (ending, write) in [("parquet", parquet as fn(&[String]) -> Vec<u8>), ("jsonl", jsonl)] {
        let home = Home::new(ending, write);
        let mut run = home.start(ALL, &[]);
        let mut most = 0;
        while run.try_wait().unwrap().is_none() {
            most = most.max(home.files().len());
            sleep(Duration::from_millis(1));
        }
        let output = run.wait_with_output().unwrap();
        assert_eq!(out(&output).trim(), (FILES * ROWS).to_string());
        assert!(most <= 2, "{most} files of {ending} at once");
        assert_eq!(home.files(), Vec::<PathBuf>::new());
        assert_eq!(home.fetched(), [0, 1, 2, 3]);
        let blobs = home.dir.path().join("hf/hub/datasets--Owner--words/blobs");
        assert!(
            fs::read_dir(blobs).map_or(0, Iterator::count) <= 1,
            "nothing of it is in the cache"
        );
    }
}

/// A run that goes on behind the first files asks for their ends alone, or for nothing where an earlier
/// run has counted their rows.
#[test]
fn files_before_the_first_row_are_not_fetched() {
    let later = format!(
        "print(dataset(\"Owner/words\", #{{ streaming: true }}).skip({})[0].text);",
        2 * ROWS + 100
    );
    let home = Home::new("parquet", parquet);
    assert_eq!(home.says(&later).trim(), format!("row {}", 2 * ROWS + 100));
    // The first is looked at for its columns.
    assert_eq!(home.fetched(), [0, 2]);

    let home = Home::new("jsonl", jsonl);
    home.says(ALL);
    home.fetched();
    assert_eq!(home.says(&later).trim(), format!("row {}", 2 * ROWS + 100));
    assert_eq!(home.fetched(), [0, 2]);
}

#[test]
fn a_connection_that_breaks_is_taken_up_again() {
    let home = Home::new("parquet", parquet);
    home.hub.order([Mishap::CutAfter(500), Mishap::CutAfter(10)]);
    assert_eq!(home.says(ALL).trim(), (FILES * ROWS).to_string());
    assert_eq!(home.fetched(), [0, 1, 2, 3], "what was cut is asked for from there on");
}

#[test]
fn the_kernels_sandbox_lets_files_be_fetched() {
    let home = Home::new("parquet", parquet);
    let run = home.start(ALL, &["--sandbox=landlock"]).wait_with_output().unwrap();
    if text(&run.stderr).contains("Landlock") {
        println!("skipped: this kernel has no Landlock");
        return;
    }
    assert_eq!(out(&run).trim(), (FILES * ROWS).to_string());
}

#[test]
fn rows_are_shuffled_in_blocks() {
    let home = Home::new("parquet", parquet);
    let rows = home.says(
        r#"
let ds = dataset("Owner/words", #{ streaming: true }).shuffle(#{ seed: 3, buffer_size: 1000 });
let all = [];
for row in ds { all.push(parse_int(row.text.sub_string(4))); }
for from in [0, 1, 999, 1000, 2345, 5999] {
    if parse_int(ds[from].text.sub_string(4)) != all[from] { throw `row ${from} alone is another`; }
}
for block in 0..6 {
    let rows = all.extract(block * 1000, 1000);
    if rows.extract(0, 5) == [0, 1, 2, 3, 4].map(|i| i + block * 1000) { throw "a block in its old order"; }
    rows.sort();
    for i in 0..1000 { if rows[i] != i + block * 1000 { throw "a block has other rows"; } }
}
print(all.len);
"#,
    );
    assert_eq!(rows.trim(), "6000");
}

#[test]
fn a_copy_of_all_rows_is_refused() {
    let home = Home::new("parquet", parquet);
    for (copy, hint) in
        [("shuffle()", "buffer_size"), ("cache()", "without"), ("sort(\"text\")", "without")]
    {
        let said = home.error(&format!("dataset(\"Owner/words\", #{{ streaming: true }}).{copy};"));
        assert!(said.contains("would copy all rows to the disk") && said.contains(hint), "{said}");
    }
}
