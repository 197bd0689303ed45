//! Datasets and models by name: what is asked of the hub, what lands in the cache, what is said.

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    process::Command,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use dsr::{
    error::{Code, Error},
    hub::{DatasetFile, DatasetId, Hub, HubSettings},
    script::Session,
};
use parquet::arrow::ArrowWriter;
use tempfile::TempDir;

use crate::support::{
    hub_server::{HubRepo, HubServer, Mishap},
    recipe::{Recipe, places},
};

const CARD: &[u8] = b"---\nconfigs:\n- config_name: small\n  data_files:\n\
    \x20 - {split: train, path: \"small/train-*\"}\n  - {split: test, path: small/test.parquet}\n\
    - config_name: other\n  data_files: other.parquet\n---\n# A dataset\n";

/// The content of the large file: longer than one read of the downloader.
fn large() -> Vec<u8> {
    (0..1_000_000_u32).flat_map(|i| (i % 65_521).to_le_bytes()).collect()
}

fn dataset() -> HubRepo {
    HubRepo::new([
        ("README.md", CARD),
        ("small/test.parquet", b"test rows".as_slice()),
        ("other.parquet", b"other rows"),
    ])
    .large("small/train-00000-of-00001.parquet", &large())
}

/// A hub that serves `datasets/O/data`, and a client with an empty cache.
struct Fixture {
    server: HubServer,
    cache: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let server = HubServer::start();
        server.put("datasets/O/data", dataset());
        Self { server, cache: tempfile::tempdir().unwrap() }
    }

    fn settings(&self) -> HubSettings {
        HubSettings {
            endpoint: self.server.url.clone(),
            backoff: Duration::ZERO,
            ..HubSettings::new(self.cache.path())
        }
    }

    fn hub(&self) -> Hub {
        Hub::new(self.settings())
    }

    fn offline(&self) -> Hub {
        Hub::new(HubSettings { offline: true, ..self.settings() })
    }

    fn repo_dir(&self) -> PathBuf {
        self.cache.path().join("datasets--O--data")
    }

    fn blobs(&self) -> Vec<String> {
        let blobs = fs::read_dir(self.repo_dir().join("blobs")).into_iter().flatten().flatten();
        blobs.map(|e| e.file_name().into_string().unwrap()).collect()
    }
}

const SMALL: DatasetId<'_> = DatasetId { repo: "O/data", config: Some("small"), revision: None };

/// The files of a dataset by split, each downloaded.
fn files(
    hub: &Hub,
    repo: &str,
    config: Option<&str>,
) -> Result<Vec<(String, Vec<PathBuf>)>, Error> {
    let path = |file| match file {
        DatasetFile::Here(path) => path,
        DatasetFile::Remote(_) => panic!("a file was not downloaded"),
    };
    let dataset = DatasetId { repo, config, revision: None };
    let splits = hub.dataset_splits(dataset)?.into_iter();
    let files = |split: String| {
        let files = hub.dataset_files(dataset, &split, None)?;
        Ok((split, files.into_iter().map(path).collect()))
    };
    splits.map(files).collect()
}

fn train(hub: &Hub) -> Result<Vec<PathBuf>, Error> {
    let (name, files) = files(hub, "O/data", Some("small"))?.swap_remove(0);
    assert_eq!(name, "train");
    Ok(files)
}

/// Fetches all but the large file.
fn list(hub: &Hub) {
    hub.list_dataset(SMALL).unwrap();
}

fn assert_is_large(files: &[PathBuf]) {
    assert_eq!(files.len(), 1);
    assert!(fs::read(&files[0]).unwrap() == large(), "the content differs");
}

/// An error of the hub, with its message and hints as one text.
fn told<T: std::fmt::Debug>(outcome: Result<T, Error>) -> String {
    let e = outcome.unwrap_err();
    assert_eq!(e.code(), Code::Hub);
    format!("{}\n{}", e.message(), e.hints().join("\n"))
}

#[test]
fn a_dataset_is_downloaded_split_by_split() {
    let f = Fixture::new();
    list(&f.hub());
    let splits = f.hub().dataset_splits(SMALL).unwrap();
    assert_eq!(splits, ["train", "test"]);
    assert!(f.server.take_storage_requests().is_empty(), "a list needs no large data");
    f.hub().dataset_files(SMALL, "test", None).unwrap();
    assert!(f.server.take_storage_requests().is_empty(), "the large file is of the other split");
    assert_is_large(&train(&f.hub()).unwrap());

    let all = files(&f.hub(), "O/data", Some("small")).unwrap();
    assert_eq!(all.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["train", "test"]);
    assert_eq!(fs::read(&all[1].1[0]).unwrap(), b"test rows");
}

#[test]
fn what_is_in_the_cache_needs_no_request_and_no_network() {
    let f = Fixture::new();
    train(&f.hub()).unwrap();
    assert!(!f.server.take_requests().is_empty());

    assert_is_large(&train(&f.hub()).unwrap());
    assert_is_large(&train(&f.offline()).unwrap());
    assert_eq!(f.server.take_requests().len(), 0);

    let text = told(files(&f.offline(), "O/data", Some("other")));
    assert!(text.contains("other.parquet") && text.contains("HF_HUB_OFFLINE"), "{text}");
    let text = told(files(&f.offline(), "O/never", None));
    assert!(text.contains("dataset `O/never` is not in the cache"), "{text}");
}

#[test]
fn a_branch_that_moved_is_seen_by_a_refresh_only() {
    let f = Fixture::new();
    files(&f.hub(), "O/data", Some("other")).unwrap();
    let mut moved = HubRepo::new([("other.parquet", b"new rows".as_slice())]);
    moved.commit = "b".repeat(40);
    f.server.put("datasets/O/data", moved);

    let other = |hub: Hub, config| {
        let all = files(&hub, "O/data", config).unwrap();
        fs::read(&all[0].1[0]).unwrap()
    };
    assert_eq!(other(f.hub(), Some("other")), b"other rows");
    let refresh = Hub::new(HubSettings { refresh: true, ..f.settings() });
    assert_eq!(other(refresh, None), b"new rows");
    assert_eq!(other(f.hub(), None), b"new rows");
}

#[test]
fn the_layout_is_that_of_huggingface_hub() {
    let f = Fixture::new();
    let files = train(&f.hub()).unwrap();
    let (dir, commit) = (f.repo_dir(), dataset().commit);

    assert_eq!(fs::read_to_string(dir.join("refs/main")).unwrap(), commit);
    let name = "small/train-00000-of-00001.parquet";
    assert_eq!(files[0], dir.join("snapshots").join(&commit).join(name));
    let link = fs::read_link(&files[0]).unwrap();
    let blob = link.file_name().unwrap().to_str().unwrap().to_owned();
    assert_eq!(link, Path::new("../../../blobs").join(&blob));
    assert_eq!(blob.len(), 64, "large files are named by their SHA-256");
    let card = fs::read_link(dir.join("snapshots").join(&commit).join("README.md")).unwrap();
    assert_eq!(card.file_name().unwrap().len(), 40, "small ones by git's SHA-1");

    let tree = fs::read_to_string(dir.join(format!("trees/{commit}.json"))).unwrap();
    let tree: serde_json::Value = serde_json::from_str(&tree).unwrap();
    assert_eq!(tree["format_version"], 1);
    assert_eq!(tree["files"][name]["lfs_sha256"], blob);
    assert!(f.blobs().iter().all(|b| !b.ends_with(".incomplete")));
    assert!(f.cache.path().join(".locks/datasets--O--data").join(blob + ".lock").exists());
}

#[test]
fn files_that_another_tool_downloaded_are_found() {
    let f = Fixture::new();
    // As Python leaves them: no list of files, only the ref and the snapshot.
    let (commit, name) = ("a".repeat(40), "data/train-00000-of-00002.parquet");
    let file = f.repo_dir().join("snapshots").join(&commit).join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "rows").unwrap();
    fs::create_dir_all(f.repo_dir().join("refs")).unwrap();
    fs::write(f.repo_dir().join("refs/main"), &commit).unwrap();

    let text = told(files(&f.offline(), "O/data", None));
    assert!(text.contains("1 of the 2 files"), "{text}");
    fs::write(file.with_file_name("train-00001-of-00002.parquet"), "rows").unwrap();
    let all = files(&f.offline(), "O/data", None).unwrap();
    assert_eq!((all[0].0.as_str(), all[0].1.len()), ("train", 2));
}

#[test]
fn a_cut_connection_leaves_no_broken_file_and_is_taken_up_again() {
    let f = Fixture::new();
    let once = Hub::new(HubSettings { attempts: 1, ..f.settings() });
    list(&once);
    f.server.order([Mishap::CutAfter(600_000)]);
    let text = told(train(&once));
    assert!(text.contains("stopped after 600000 of 4000000 bytes"), "{text}");
    assert_eq!(f.blobs().iter().filter(|b| b.ends_with(".incomplete")).count(), 1);
    assert_eq!(f.blobs().iter().filter(|b| b.len() == 64).count(), 0, "not under its own name");
    f.server.take_storage_requests();

    assert_is_large(&train(&once).unwrap());
    assert_eq!(f.server.take_storage_requests()[0].headers["range"], "bytes=600000-");
}

#[test]
fn passing_trouble_is_waited_out() {
    let f = Fixture::new();
    list(&f.hub());
    f.server.order([Mishap::Busy, Mishap::CutAfter(5), Mishap::Damage]);
    assert_is_large(&train(&f.hub()).unwrap());
}

#[test]
fn a_download_may_be_cut_often_as_long_as_it_gets_on() {
    let f = Fixture::new();
    list(&f.hub());
    f.server.order([Mishap::CutAfter(100_000); 10]);
    assert_is_large(&train(&f.hub()).unwrap());

    f.server.put("datasets/O/data2", dataset());
    f.hub().list_dataset(DatasetId { repo: "O/data2", ..SMALL }).unwrap();
    f.server.order([Mishap::CutAfter(0); 10]);
    let text = told(files(&f.hub(), "O/data2", Some("small")));
    assert!(text.contains("no answer from 127.0.0.1"), "{text}");
}

#[test]
fn damage_is_found_by_the_hash() {
    let f = Fixture::new();
    list(&f.hub());
    f.server.order([Mishap::Damage; 4]);
    let text = told(train(&f.hub()));
    assert!(text.contains("arrived damaged"), "{text}");
    assert_eq!(f.blobs().iter().filter(|b| b.len() == 64).count(), 0);
    assert_is_large(&train(&f.hub()).unwrap());
}

#[test]
fn a_gated_dataset_says_how_to_get_in() {
    let f = Fixture::new();
    f.server.put("datasets/O/gated", HubRepo { gated: true, ..dataset() });
    f.server.accept_token("hf_right");
    let get = |token: Option<&str>| {
        let token = token.map(str::to_owned);
        let hub = Hub::new(HubSettings { token, ..f.settings() });
        files(&hub, "O/gated", Some("other"))
    };

    let text = told(get(None));
    assert!(text.contains("HF_TOKEN") && text.contains("/datasets/O/gated"), "{text}");
    let text = told(get(Some("hf_wrong")));
    assert!(text.contains("has no access yet") && !text.contains("hf_wrong"), "{text}");
    assert_eq!(get(Some("hf_right")).unwrap().len(), 1);
}

#[test]
fn the_token_is_shown_to_the_hub_alone() {
    let f = Fixture::new();
    f.server.put("datasets/O/data", HubRepo { private: true, ..dataset() });
    f.server.accept_token("hf_secret");
    assert!(told(train(&f.hub())).contains("HF_TOKEN"));
    f.server.take_requests();

    let token = Some("hf_secret".to_owned());
    assert_is_large(&train(&Hub::new(HubSettings { token, ..f.settings() })).unwrap());
    let (hub, storage) = (f.server.take_requests(), f.server.take_storage_requests());
    assert!(hub.iter().all(|r| r.headers["authorization"] == "Bearer hf_secret"));
    assert_eq!(storage.len(), 1);
    assert!(!format!("{storage:?}").contains("hf_secret"));
}

#[test]
fn what_does_not_exist_is_named_with_what_does() {
    let f = Fixture::new();
    let hub = f.hub();
    let text = told(files(&hub, "O/data", Some("smal")));
    assert!(text.contains("it has `small`, `other`"), "{text}");
    assert!(text.contains("did you mean `O/data:small`?"), "{text}");
    let text = told(files(&hub, "O/nothing", None));
    assert!(text.contains("no dataset `O/nothing`"), "{text}");
    let text = told(hub.list_dataset(DatasetId { config: None, revision: Some("v9"), ..SMALL }));
    assert!(text.contains("no revision `v9`"), "{text}");
    assert!(told(files(&hub, "../data", None)).contains("`Owner/name`"));
}

#[test]
fn no_network_is_said_as_such() {
    let cache = tempfile::tempdir().unwrap();
    // The port was free a moment ago: nobody answers there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let hub = Hub::new(HubSettings {
        endpoint: format!("http://{port}"),
        backoff: Duration::ZERO,
        ..HubSettings::new(cache.path())
    });
    let text = told(files(&hub, "O/data", None));
    assert!(text.contains("no answer from 127.0.0.1") && text.contains("HTTPS_PROXY"), "{text}");
}

#[test]
fn a_long_list_of_files_comes_in_pages() {
    let f = Fixture::new();
    f.server.page_size(1);
    let all = files(&f.hub(), "O/data", Some("small")).unwrap();
    assert_eq!(all.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["train", "test"]);
    let pages = f.server.take_requests().iter().filter(|r| r.path.contains("/tree/")).count();
    assert_eq!(pages, 4);
}

#[test]
fn a_models_files_are_chosen_by_name_and_pattern() {
    let f = Fixture::new();
    let files = [("config.json", b"{}".as_slice()), ("onnx/x.safetensors", b"x"), ("a.bin", b"b")];
    f.server.put("models/O/m", HubRepo::new(files).large("model.safetensors", b"weights"));
    let wanted = ["config.json", "*.safetensors", "tokenizer.json"];
    let dir = f.hub().model_files("O/m", None, &wanted).unwrap();
    assert!(dir.ends_with(Path::new("models--O--m/snapshots").join(dataset().commit)));
    let mut names: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors"]);

    let text = told(f.hub().model_files("O/m", None, &["*.gguf"]));
    assert!(text.contains("it has a.bin, config.json"), "{text}");
}

#[test]
fn progress_goes_from_nothing_to_everything() {
    let f = Fixture::new();
    let seen = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let log = seen.clone();
    let hub = f.hub().on_progress(move |p| {
        if p.file.ends_with("00001.parquet") {
            log.borrow_mut().push((p.done, p.total));
        }
    });
    train(&hub).unwrap();
    let seen = seen.borrow();
    assert_eq!((seen.first(), seen.last()), (Some(&(0, 4_000_000)), Some(&(4_000_000, 4_000_000))));
    assert!(seen.is_sorted());
}

/// Runs `code` with the Python named by `DSR_TEST_PYTHON`, if it has huggingface_hub.
fn python(f: &Fixture, code: &str) -> Option<String> {
    let Some(python) = std::env::var_os("DSR_TEST_PYTHON") else {
        println!("skipped: DSR_TEST_PYTHON names no Python with huggingface_hub");
        return None;
    };
    let out = Command::new(python)
        .args(["-c", code])
        .env("HF_ENDPOINT", &f.server.url)
        .env("HF_HUB_CACHE", f.cache.path())
        .env("HF_HUB_DISABLE_XET", "1")
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(String::from_utf8(out.stdout).unwrap().trim().to_owned())
}

#[test]
fn python_finds_what_dsr_downloaded() {
    let f = Fixture::new();
    let files = files(&f.hub(), "O/data", Some("small")).unwrap();
    let code = "from huggingface_hub import snapshot_download as s\n\
        print(s('O/data', repo_type='dataset', local_files_only=True, allow_patterns='small/*'))";
    let Some(dir) = python(&f, code) else { return };
    assert_eq!(Path::new(&dir).join("small/test.parquet"), files[1].1[0]);
}

#[test]
fn dsr_finds_what_python_downloaded() {
    let f = Fixture::new();
    let code = "from huggingface_hub import snapshot_download as s\n\
        print(s('O/data', repo_type='dataset'))";
    let Some(dir) = python(&f, code) else { return };
    let files = train(&f.offline()).unwrap();
    assert!(files[0].starts_with(dir));
    assert_is_large(&files);
}

/// The bytes of a Parquet file with one column, `text`.
fn parquet(rows: &[&str]) -> Vec<u8> {
    let column: ArrayRef = Arc::new(StringArray::from_iter_values(rows));
    let batch = RecordBatch::try_from_iter([("text", column)]).unwrap();
    let mut bytes = Vec::new();
    let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn the_hub_gives_datasets_and_tokenizers_and_their_downloads_are_shown() {
    let server = HubServer::start();
    let tokenizer = std::fs::read("recipes/data/gpt2/tokenizer.json").unwrap();
    server.put(
        "datasets/Owner/words",
        HubRepo::new([("data/test-00000-of-00001.parquet", parquet(&["t"]).as_slice())])
            .large("data/train-00000-of-00001.parquet", &parquet(&["a", "b", "c"])),
    );
    server.put("models/Owner/model", HubRepo::new([("tokenizer.json", tokenizer.as_slice())]));
    let recipe = Recipe::new(
        r#"print(dataset("Owner/words").count());
        print(dataset("Owner/words", #{ split: "test", revision: "main" })[0].text);
        print(tokenizer("Owner/model").encode("Hello"));
        print(tokenizer("Owner/model", #{ revision: "main" }).eos_id);
        print(dataset("rows.txt", #{ sample_by: "line" }).count());
        dataset("Owner/other");"#,
    );
    recipe.file("rows.txt", &"row\n".repeat(10));
    let shown = Rc::new(RefCell::new(Vec::new()));
    let sink = Rc::clone(&shown);
    let (lines, result) = recipe.run(|mut host| {
        let cache = host.workspace.rights.work_dir.join("cache").display().to_string();
        let endpoint = server.url.clone();
        host.workspace.rights.env = Box::new(move |name| match name {
            "HF_HOME" => Some(cache.clone()),
            "HF_ENDPOINT" => Some(endpoint.clone()),
            _ => None,
        });
        host.workspace.rights.grants.net = dsr::permission::Scope::All;
        host.output.show_download = Rc::new(move |p| {
            if p.done == p.total {
                sink.borrow_mut().push(format!("{} {}", p.repo, p.file));
            }
        });
        Session::new(host)
    });
    assert_eq!(lines, ["3", "t", "[15496]", "50256", "10"], "{result:?}");
    let failure = result.unwrap_err();
    assert_eq!(places(&failure), [(Code::Hub, "recipe.rhai:6:9".to_owned())]);
    let mut shown = shown.borrow().clone();
    shown.sort();
    shown.dedup();
    assert_eq!(
        shown,
        [
            "Owner/model tokenizer.json",
            "Owner/words data/test-00000-of-00001.parquet",
            "Owner/words data/train-00000-of-00001.parquet"
        ]
    );
}
