//! A hub with a small GPT-2 and a few rows, under the names of what recipes ask for.

use std::{fs, path::Path, process::Command, sync::OnceLock};

use super::{
    files::repository,
    hub_server::{HubRepo, HubServer},
    program::{dsr, out},
};

const CARD: &str = "---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n\
                    \x20 - {split: train, path: \"wikitext-2-raw-v1/train-*\"}\n\
                    \x20 - {split: validation, path: \"wikitext-2-raw-v1/validation-*\"}\n---\n";

/// Files of a model.
struct Made {
    config: Vec<u8>,
    tokenizer: Vec<u8>,
    weights: Vec<u8>,
}

/// The small model, made once for all hubs of this process.
fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let make = r#"
            let sizes = #{ n_layer: 1, n_head: 2, n_embd: 16, n_positions: 1024 };
            new_model("gpt2", sizes).export_hf("made", #{ tokenizer: tokenizer("dsr:gpt2") });
        "#;
        fs::write(dir.path().join("make.rhai"), make).unwrap();
        out(&dsr(dir.path(), &["run", "make.rhai"]).output().unwrap());
        let file = |name: &str| fs::read(dir.path().join("made").join(name)).unwrap();
        Made {
            config: file("config.json"),
            tokenizer: file("tokenizer.json"),
            weights: file("model.safetensors"),
        }
    })
}

/// A hub that has this model and WikiText-2.
pub(crate) fn with_model(id: &str) -> HubServer {
    with_models(&[id])
}

/// A hub that has the same small model under these names, and WikiText-2.
pub(crate) fn with_models(ids: &[&str]) -> HubServer {
    let model = made();
    let rows = |split: &str| {
        fs::read(repository().join("recipes/data/austen").join(format!("{split}.parquet"))).unwrap()
    };
    let hub = HubServer::start();
    for id in ids {
        let repo = HubRepo::new([
            ("config.json", model.config.as_slice()),
            ("tokenizer.json", model.tokenizer.as_slice()),
        ]);
        let repo = repo.large("model.safetensors", &model.weights);
        hub.put(&format!("models/{id}"), repo);
    }
    let repo = HubRepo::new([("README.md", CARD.as_bytes())])
        .large("wikitext-2-raw-v1/train-00000-of-00001.parquet", &rows("validation"))
        .large("wikitext-2-raw-v1/validation-00000-of-00001.parquet", &rows("test"));
    hub.put("datasets/Salesforce/wikitext", repo);
    hub
}

/// Lets a program in `dir` see the hub alone.
pub(crate) fn visible<'a>(
    hub: &HubServer,
    dir: &Path,
    command: &'a mut Command,
) -> &'a mut Command {
    command
        .env("HF_ENDPOINT", &hub.url)
        .env("HF_HOME", dir.join("hf"))
        .env_remove("HF_HUB_OFFLINE")
        .env_remove("http_proxy")
        .env_remove("HTTP_PROXY")
}
