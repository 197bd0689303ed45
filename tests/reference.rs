//! `dsr doc`: the reference of what recipes can call, whose examples all run.

use std::fs;

use dsr::{
    permission::Scope,
    script::{Session, reference},
};

use crate::support::{
    files::repository,
    hub_server::HubServer,
    program::{dsr, out, text},
    recipe::Recipe,
    small_hub,
};

/// What an example may use without making it: a name, and the line that makes it. A line may use
/// what stands above it.
const WORLD: [(&str, &str); 9] = [
    ("tok", r#"let tok = tokenizer("dsr:gpt2");"#),
    (
        "preferences",
        r#"let preferences = dataset("dsr:austen").take(4).map(|row| #{ prompt: "Say", chosen: " yes", rejected: " no" });"#,
    ),
    (
        "validation",
        r#"let validation = dataset("dsr:austen", #{ split: "validation" }).tokenize(tok).pack(16).take(4);"#,
    ),
    (
        "model",
        r#"let model = new_model("gpt2", #{ n_layer: 1, n_head: 1, n_embd: 8, n_positions: 64 });"#,
    ),
    ("engine", "let engine = init_engine(model, #{ micro_batch_size: 1 });"),
    (
        "loader",
        r#"let loader = dataset("dsr:austen").tokenize(tok).pack(16).take(300).loader(#{ micro_batch_size: 1 });"#,
    ),
    ("run", "let run = start_run(engine, loader, #{ total_steps: 300 });"),
    (
        "batch",
        "let batch = (); for first in dataset(\"dsr:austen\").tokenize(tok).pack(16)\
         .loader(#{ micro_batch_size: 1 }) { batch = first; break; }",
    ),
    ("loss", "let loss = engine.forward(batch);"),
];

/// Calls that need another before them.
const BEFORE: [(&str, &str); 2] = [
    ("if engine.step()", "engine.backward(engine.forward(batch));"),
    ("load_checkpoint", r#"engine.save_checkpoint("checkpoints", #{ loader: loader });"#),
];

/// The example with what it does not make itself.
fn whole(example: &str) -> String {
    let before: String = match example.contains("forward") {
        true => String::new(),
        false => {
            let needed = BEFORE.iter().filter(|(call, _)| example.contains(call));
            needed.map(|(_, line)| format!("{line}\n")).collect()
        }
    };
    let mut text = before + example;
    for (name, line) in WORLD.iter().rev() {
        let is_used = text.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|w| w == *name);
        if is_used && !text.starts_with(&format!("let {name} =")) {
            text = format!("{line}\n{text}");
        }
    }
    text
}

/// Files that examples name, and a hub with what they ask for.
fn workplace() -> (Recipe, HubServer) {
    let place = Recipe::new("");
    let rows = repository().join("recipes/data/austen/test.parquet");
    fs::create_dir(place.directory().join("corpus")).unwrap();
    fs::copy(rows, place.directory().join("corpus/a.parquet")).unwrap();
    let config = r#"{ "gradient_clipping": 0.5, "optimizer": { "type": "AdamW" } }"#;
    place.file("ds_config.json", config);
    place.file("vocab.json", r#"{ "a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3 }"#);
    place.file("novel.txt", "One paragraph.\n\nAnother one.\n");
    place.file(
        "rows.jsonl",
        "{ \"id\": 1, \"url\": \"u\", \"m\": { \"x\": 1 }, \"text\": \"t\" }\n",
    );
    place.file("merges.txt", "#version: 0.2\na b\n");
    let hub = small_hub::with_model("openai-community/gpt2");
    (place, hub)
}

fn runs(place: &Recipe, hub: &HubServer, example: &str) -> Result<(), String> {
    let recipe = whole(example);
    place.file("recipe.rhai", &recipe);
    for made in ["runs", "checkpoints", "exports"] {
        let _ = fs::remove_dir_all(place.directory().join(made));
    }
    let (_, result) = place.run(|mut host| {
        let cache = place.directory().join("hf").display().to_string();
        let endpoint = hub.url.clone();
        host.workspace.rights.env = Box::new(move |name| match name {
            "HF_HOME" => Some(cache.clone()),
            "HF_ENDPOINT" => Some(endpoint.clone()),
            _ => None,
        });
        host.workspace.rights.grants.net = Scope::All;
        Session::new(host)
    });
    result.map_err(|failure| format!("{recipe}\n{:?}", failure.faults))
}

/// In this process, as a start of the program for each of more than a hundred takes most of the time.
#[test]
fn every_example_runs() {
    let (place, hub) = workplace();
    let mut failed = Vec::new();
    let mut count = 0;
    for entry in reference::entries() {
        for example in entry.examples() {
            count += 1;
            if let Err(e) = runs(&place, &hub, example) {
                failed.push(format!("{}:\n{e}", entry.signature));
            }
        }
    }
    assert!(count > 50, "{count} examples");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_name_is_looked_up_by_itself_its_owner_or_its_concept() {
    let dir = tempfile::tempdir().unwrap();
    let doc = |name: &str| out(&dsr(dir.path(), &["doc", name]).output().unwrap());
    assert!(doc("forward").starts_with("### `engine.forward(batch: Batch) -> Tensor`\n\n"));
    assert!(doc("engine.loss").starts_with("### `engine.loss -> any`\n\n"));
    assert!(doc("Dataset").starts_with("### `type Dataset`\n\n"));
    assert_eq!(doc("tokenizer").matches("### `tokenizer(").count(), 3);
    let missed = dsr(dir.path(), &["doc", "forwrd"]).output().unwrap();
    assert_eq!(missed.status.code(), Some(2));
    let said = text(&missed.stderr);
    assert!(said.contains("nothing is called `forwrd`") && said.contains("`forward`?"), "{said}");
}

#[test]
fn the_whole_reference_is_printed_for_readers_and_for_programs() {
    let dir = tempfile::tempdir().unwrap();
    let doc = |args: &[&str]| out(&dsr(dir.path(), args).output().unwrap());
    let entries = reference::entries();
    assert_eq!(doc(&["doc", "--all"]).matches("### `").count(), entries.len());
    let json: serde_json::Value = serde_json::from_str(&doc(&["doc", "--json"])).unwrap();
    assert_eq!(json.as_array().unwrap().len(), entries.len());
    let (topics, list) = (doc(&["doc"]), doc(&["doc", "--list"]));
    assert!(topics.lines().count() < 120, "a screen or three:\n{topics}");
    for entry in &entries {
        assert!(!entry.doc.is_empty(), "{} has no documentation", entry.signature);
        assert!(list.contains(&entry.signature), "{}", entry.signature);
        assert!(topics.contains(&entry.name), "{}", entry.name);
    }
}
