//! The README: every command and every recipe in it runs.

use std::{fs, path::Path, process::Output};

use crate::{
    recipes::{dsr, out, repository, text},
    support::hub_server::{HubRepo, HubServer},
};

fn readme() -> String {
    fs::read_to_string(repository().join("README.md")).unwrap()
}

/// The indented command lines that begin with `dsr run`, continuations joined, comments cut off, as
/// words after `dsr`.
fn commands() -> Vec<Vec<String>> {
    let joined = readme().replace("\\\n", " ");
    let lines = joined.lines().filter_map(|line| line.strip_prefix("    dsr "));
    let words = |line: &str| {
        let line = line.split('#').next().unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect()
    };
    lines.map(words).collect()
}

/// Runs a command of the README in `dir`, in which `recipes` is that of the repository, with a few
/// more words.
fn run(dir: &Path, command: &[String], more: &[&str], hub: Option<&HubServer>) -> Output {
    let words: Vec<&str> = command.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let mut command = dsr(dir, &words);
    match hub {
        Some(hub) => command
            .arg("--allow-net=127.0.0.1")
            .env("HF_ENDPOINT", &hub.url)
            .env("HF_HOME", dir.join("hf"))
            .env_remove("HF_HUB_OFFLINE")
            .env_remove("http_proxy")
            .env_remove("HTTP_PROXY"),
        None => command.env("HF_HUB_OFFLINE", "1"),
    };
    command.output().unwrap()
}

fn workplace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(repository().join("recipes"), dir.path().join("recipes")).unwrap();
    dir
}

/// The commands of "A first run", with fewer steps.
#[test]
fn the_commands_of_a_first_run_work() {
    let commands = commands();
    assert_eq!(commands.len(), 4, "{commands:?}");
    let dir = workplace();
    let help = out(&run(dir.path(), &commands[0], &[], None));
    assert!(help.contains("Parameters:") && help.contains("peak learning rate"), "{help}");
    let few = ["-p", "steps=2", "-p", "eval_rows=8"];
    let printed = out(&run(dir.path(), &commands[1], &few, None));
    assert!(printed.contains("after training: validation perplexity"), "{printed}");
    let more = ["-p", "steps=3", "-p", "eval_rows=8"];
    let resumed = run(dir.path(), &commands[2], &more, None);
    out(&resumed);
    assert!(text(&resumed.stderr).contains("going on after step 2"), "{resumed:?}");
}

/// The command for GPT-2 medium and WikiText-2, from a hub that has a small model under that name
/// and a few rows.
#[test]
fn the_command_for_wikitext_works_with_parameters_alone() {
    let dir = workplace();
    let make = r#"
        let sizes = #{ n_layer: 1, n_head: 2, n_embd: 16, n_positions: 1024 };
        new_model("gpt2", sizes).export_hf("made", #{ tokenizer: tokenizer("dsr:gpt2") });
    "#;
    fs::write(dir.path().join("make.rhai"), make).unwrap();
    out(&dsr(dir.path(), &["run", "make.rhai"]).output().unwrap());
    let model = |name: &str| fs::read(dir.path().join("made").join(name)).unwrap();
    let rows = |split: &str| {
        fs::read(repository().join("recipes/data/austen").join(format!("{split}.parquet"))).unwrap()
    };

    let hub = HubServer::start();
    let repo = HubRepo::new([
        ("config.json", model("config.json").as_slice()),
        ("tokenizer.json", model("tokenizer.json").as_slice()),
    ]);
    let repo = repo.large("model.safetensors", &model("model.safetensors"));
    hub.put("models/openai-community/gpt2-medium", repo);
    let card = "---\nconfigs:\n- config_name: wikitext-2-raw-v1\n  data_files:\n\
                \x20 - {split: train, path: \"wikitext-2-raw-v1/train-*\"}\n\
                \x20 - {split: validation, path: \"wikitext-2-raw-v1/validation-*\"}\n---\n";
    let repo = HubRepo::new([("README.md", card.as_bytes())])
        .large("wikitext-2-raw-v1/train-00000-of-00001.parquet", &rows("validation"))
        .large("wikitext-2-raw-v1/validation-00000-of-00001.parquet", &rows("test"));
    hub.put("datasets/Salesforce/wikitext", repo);

    let few = ["-p", "steps=1", "-p", "eval_rows=2"];
    let printed = out(&run(dir.path(), &commands()[3], &few, Some(&hub)));
    assert!(printed.contains("after training: validation perplexity"), "{printed}");
    let exported = dir.path().join("exports/gpt2-medium-wikitext");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(exported.join(file).exists(), "{file}");
    }
}

#[test]
fn the_recipe_in_it_runs() {
    let readme = readme();
    let recipe = readme.split("```rhai\n").nth(1).unwrap().split("```").next().unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("readme.rhai"), recipe).unwrap();
    let args = ["run", "readme.rhai", "-p", "steps=3"];
    let printed = out(&dsr(dir.path(), &args).output().unwrap());
    assert_eq!(printed.lines().count(), 3, "{printed}");
    assert!(printed.starts_with("step 1: loss 10."), "{printed}");
}
