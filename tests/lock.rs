//! `dsr lock`: what it writes, when it is true, and what `--frozen` refuses.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::{Value, json};

use crate::support::{
    hub_server::{HubRepo, HubServer},
    program::{dsr, out, text},
    small_hub,
    user::has,
};

const COMMIT: &str = "c0ffeec0ffeec0ffeec0ffeec0ffeec0ffeec0ff";
const NEXT: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

const RECIPE: &str = "param(\"data\", \"O/d\", \"rows\");\nimport \"parts/show\" as show;\n\
                      let ds = dataset(P::data, #{ sample_by: \"line\" });\nshow::count(ds);\n";
const MODULE: &str = "fn count(ds) { print(ds.count()); }\n";

/// A recipe with an import and a dataset of a hub.
struct Place {
    dir: tempfile::TempDir,
    hub: HubServer,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap(), hub: HubServer::start() };
        place.rows(COMMIT, "one\ntwo\n");
        place.file("r.rhai", RECIPE);
        place.file("parts/show.rhai", MODULE);
        place
    }

    /// The dataset at a commit, which `main` then stands at.
    fn rows(&self, commit: &str, rows: &str) {
        let mut repo = HubRepo::new([("README.md", b"# Rows\n".as_slice())])
            .large("train.txt", rows.as_bytes());
        repo.commit = commit.to_owned();
        self.hub.put("datasets/O/d", repo);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn lock(&self) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path("r.lock")).unwrap()).unwrap()
    }

    fn dsr(&self, args: &[&str]) -> Output {
        let mut command = dsr(self.dir.path(), args);
        command.env("HOME", self.dir.path());
        small_hub::visible(&self.hub, self.dir.path(), &mut command).output().unwrap()
    }

    fn says(&self, args: &[&str]) -> String {
        out(&self.dsr(args))
    }

    fn error(&self, args: &[&str]) -> (String, i32) {
        let output = self.dsr(args);
        assert!(!output.status.success(), "{args:?}: {}", text(&output.stdout));
        (text(&output.stderr), output.status.code().unwrap())
    }

    /// A cache that has nothing.
    fn empty_cache(&self) {
        let _ = fs::remove_dir_all(self.path("hf"));
    }
}

const NET: &str = "--allow-net=127.0.0.1";

#[test]
fn a_lock_has_the_imports_and_the_commits() {
    let place = Place::new();
    let said = place.says(&["lock", "r.rhai", NET]);
    has(&said, &["r.lock: written", &format!("+ dataset O/d@{COMMIT}"), "+ r.rhai "]);
    let sha256 = |text: &str| dsr::hash::sha256(text);
    let expected = json!({
        "dsr": env!("CARGO_PKG_VERSION"),
        "recipes": { "parts/show.rhai": sha256(MODULE), "r.rhai": sha256(RECIPE) },
        "revisions": { "datasets/O/d@main": COMMIT },
        "datasets": { format!("O/d@{COMMIT}"): {
            "README.md": { "sha256": sha256("# Rows\n"), "size": 7 },
            "train.txt": { "sha256": sha256("one\ntwo\n"), "size": 8 },
        } },
    });
    assert_eq!(place.lock(), expected);
    assert!(place.hub.take_storage_requests().is_empty(), "large files are not downloaded for it");
    let before = fs::read(place.path("r.lock")).unwrap();
    has(&place.says(&["lock", "r.rhai", NET]), &["r.lock: as it was"]);
    place.hub.take_requests();
    has(&place.says(&["lock", "--check", "r.rhai"]), &["the lock is true"]);
    assert!(place.hub.take_requests().is_empty());
    assert_eq!(fs::read(place.path("r.lock")).unwrap(), before);
    // Without the network the lock is of what is in the cache, and without that there is none.
    place.empty_cache();
    fs::remove_file(place.path("r.lock")).unwrap();
    let (said, status) = place.error(&["lock", "r.rhai"]);
    assert_eq!(status, 3);
    has(&said, &["E501", NET, "r.rhai:3:10"]);
    assert!(!place.path("r.lock").exists());
}

/// A branch that moves does not move a recipe with a lock, until the lock is made anew.
#[test]
fn a_lock_that_is_there_is_used() {
    let place = Place::new();
    place.says(&["lock", "r.rhai", NET]);
    place.empty_cache();
    // The server knows one commit alone, so that asking for the newest would end otherwise.
    assert_eq!(place.says(&["run", "r.rhai", NET, "--frozen"]), "2\n");
    place.rows(NEXT, "one\ntwo\nthree\n");
    for args in [&["run", "r.rhai"][..], &["run", "r.rhai", "--frozen", "--offline"]] {
        assert_eq!(place.says(args), "2\n");
    }
    let said = place.says(&["lock", "r.rhai", NET]);
    has(&said, &[&format!("- dataset O/d@{COMMIT}"), &format!("+ dataset O/d@{NEXT}")]);
    assert_eq!(place.says(&["run", "r.rhai", NET, "--frozen"]), "3\n");
    // Another name of the lock.
    fs::rename(place.path("r.lock"), place.path("other.json")).unwrap();
    assert_eq!(place.says(&["run", "r.rhai", "--lock=other.json", "--frozen"]), "3\n");
    has(&place.says(&["lock", "--check", "r.rhai", "--lock=other.json"]), &["is true"]);
    let (said, status) = place.error(&["run", "r.rhai", "--frozen"]);
    assert_eq!(status, 2);
    has(&said, &["E104", "there is no lock", "dsr lock RECIPE"]);
    assert_eq!(place.error(&["run", "r.rhai", "--lock=none.json"]).1, 4);
}

#[test]
fn frozen_refuses_what_is_not_in_the_lock() {
    let place = Place::new();
    place.says(&["lock", "r.rhai", NET]);
    place.says(&["run", "r.rhai", NET, "--frozen"]);
    // Each change, the commands that see it, and what they say.
    let cases: [(&str, &str, &[&str], &str); 4] = [
        ("r.rhai", "print(1);\n", &[], "r.rhai is not what the lock says"),
        ("parts/show.rhai", "fn count(ds) { }\n", &[], "parts/show.rhai is not what the lock says"),
        (
            "r.rhai",
            RECIPE,
            &["-p", "data=O/other"],
            "`O/other` at revision main is not in the lock",
        ),
        (
            "r.rhai",
            "let ds = dataset(\"O/d\", #{ revision: \"v2\", sample_by: \"line\" });\n",
            &[],
            "the dataset `O/d` at revision v2 is not in the lock",
        ),
    ];
    for (file, changed, more, why) in cases {
        place.file(file, changed);
        for command in [
            &["run", "--frozen", NET, "r.rhai"][..],
            &["check", "--frozen", "r.rhai"],
            &["lock", "--check", "r.rhai"],
        ] {
            let (said, status) = place.error(&[command, more].concat());
            assert_eq!(status, 4, "{command:?}: {said}");
            has(&said, &["error[E803]", why]);
        }
        place.file("r.rhai", RECIPE);
        place.file("parts/show.rhai", MODULE);
    }
    has(&place.error(&["run", "r.rhai", "--frozen", "-p", "data=O/other"]).0, &["r.rhai:3:10"]);
    // Without --frozen the recipe may change.
    place.file("parts/show.rhai", "fn count(ds) { print(\"changed\"); }\n");
    assert_eq!(place.says(&["run", "r.rhai"]), "changed\n");
    let (said, _) = place.error(&["run", "r.rhai", "--frozen"]);
    has(&said, &["r.rhai:2:1"]);
    // An import that is no longer there is told by the check alone.
    place.file("r.rhai", "print(1);\n");
    place.says(&["lock", "r.rhai"]);
    let unused = fs::read_to_string(place.path("r.lock")).unwrap();
    let sha256 = dsr::hash::sha256("");
    let unused =
        unused.replace("\"recipes\": {", &format!("\"recipes\": {{ \"x.rhai\": \"{sha256}\","));
    fs::write(place.path("r.lock"), unused).unwrap();
    has(&place.error(&["lock", "--check", "r.rhai"]).0, &["no use for x.rhai"]);
    assert_eq!(place.says(&["run", "r.rhai", "--frozen"]), "1\n");
}

/// What is put together while the recipe runs is refused when it is asked for, before it is fetched.
#[test]
fn frozen_holds_for_names_that_no_text_has() {
    let place = Place::new();
    place.file(
        "r.rhai",
        "let name = \"O\";\nprint(dataset(name + \"/d\", #{ sample_by: \"line\" }).count());\n",
    );
    place.says(&["lock", "r.rhai", NET]);
    let (said, status) = place.error(&["run", "r.rhai", "--frozen", NET]);
    assert_eq!(status, 4);
    has(&said, &["E803", "dataset `O/d` at revision main is not in the lock", "r.rhai:2:"]);
    assert!(
        place.hub.take_requests().is_empty()
            && !place.path("hf/hub").join("datasets--O--d").exists()
    );
    place.file("dynamic.rhai", "print(1);");
    place.file("r.rhai", "let name = \"dynamic\";\nimport name as d;\n");
    place.says(&["lock", "r.rhai"]);
    let (said, _) = place.error(&["run", "r.rhai", "--frozen"]);
    has(&said, &["dynamic.rhai is not in the lock", "r.rhai:2:8"]);
}

/// A file of the cache that was changed since it was locked.
#[test]
fn a_damaged_cache_is_noticed() {
    let place = Place::new();
    place.says(&["lock", "r.rhai", NET]);
    place.says(&["run", "r.rhai", NET]);
    let file = place.path("hf/hub/datasets--O--d/snapshots").join(COMMIT).join("train.txt");
    let blob = fs::canonicalize(&file).unwrap();
    fs::write(blob, "one\ntwO\n").unwrap();
    for args in [&["run", "r.rhai", "--frozen"][..], &["lock", "--check", "r.rhai"]] {
        let (said, status) = place.error(args);
        assert_eq!(status, 4);
        has(
            &said,
            &[
                "E803",
                "train.txt of",
                "is not what the lock says",
                &dsr::hash::sha256("one\ntwo\n"),
            ],
        );
    }
}

#[test]
fn models_and_tokenizers_are_locked() {
    let place = Place::new();
    let hub = small_hub::with_model("O/m");
    let place = Place { hub, ..place };
    place.file(
        "r.rhai",
        "let tok = tokenizer(\"O/m\");\nlet model = load_model(\"O/m\");\nprint(tok.vocab_size);\n",
    );
    place.says(&["lock", "r.rhai", NET]);
    let lock = place.lock();
    let names = |section: &str| -> Vec<String> {
        lock[section][format!("O/m@{COMMIT}")].as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(names("models"), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(names("tokenizers"), ["tokenizer.json"]);
    assert_eq!(lock["revisions"], json!({ "models/O/m@main": COMMIT }));
    assert_eq!(place.says(&["run", "r.rhai", NET, "--frozen"]), "50257\n");
    assert_eq!(place.says(&["run", "r.rhai", "--frozen", "--offline"]), "50257\n");
    has(&place.says(&["lock", "--check", "r.rhai"]), &["is true"]);
}

#[test]
fn a_recipe_that_is_no_file_needs_a_name_for_its_lock() {
    let place = Place::new();
    let (said, status) = place.error(&["lock", "gpt2_loop"]);
    assert_eq!(status, 2);
    has(&said, &["E105", "--lock=gpt2_loop.lock"]);
    place.says(&["lock", "gpt2_loop", "--lock=loop.lock"]);
    has(&place.says(&["check", "gpt2_loop", "--frozen", "--lock=loop.lock"]), &["no mistake"]);
    assert!(Path::new(&place.path("loop.lock")).exists());
}
