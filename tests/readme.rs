//! The README: every command and every recipe in it runs.

use std::{fs, path::Path, process::Output};

use crate::{
    recipes::{dsr, out, repository, text},
    support::{hub_server::HubServer, small_hub},
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
        Some(hub) => small_hub::visible(hub, dir, &mut command),
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
    assert_eq!(commands.len(), 16, "{commands:?}");
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
    let hub = small_hub::with_model(dir.path(), "openai-community/gpt2-medium");
    let few = ["-p", "steps=1", "-p", "eval_rows=2"];
    let printed = out(&run(dir.path(), &commands()[3], &few, Some(&hub)));
    assert!(printed.contains("after training: validation perplexity"), "{printed}");
    let exported = dir.path().join("exports/gpt2-medium-wikitext");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(exported.join(file).exists(), "{file}");
    }
}

/// The commands that show and copy the recipes of dsr.
#[test]
fn the_commands_for_the_recipes_of_dsr_work() {
    let dir = tempfile::tempdir().unwrap();
    let said: Vec<_> =
        commands()[4..9].iter().map(|command| out(&run(dir.path(), command, &[], None))).collect();
    let [list, shown, copied, checked, ran] = &said[..] else { panic!("{said:?}") };
    assert!(list.contains("gpt2_loop      The explicit loop"), "{list}");
    assert_eq!(*shown, fs::read_to_string(repository().join("recipes/gpt2_loop.rhai")).unwrap());
    assert_eq!(copied, "mine.rhai\n");
    assert_eq!(fs::read_to_string(dir.path().join("mine.rhai")).unwrap(), *shown);
    assert_eq!(checked, "mine.rhai: no mistake found\n");
    assert!(ran.contains("step 5"), "{ran}");
    let again = run(dir.path(), &commands()[6], &[], None);
    assert_eq!(again.status.code(), Some(4));
    assert!(text(&again.stderr).contains("is there already, and is not overwritten"));
}

/// The commands that share a recipe, on a copy of one of dsr.
#[test]
fn the_commands_for_sharing_work() {
    let dir = tempfile::tempdir().unwrap();
    out(&run(dir.path(), &commands()[6], &[], None));
    let said: Vec<_> =
        commands()[9..].iter().map(|command| out(&run(dir.path(), command, &[], None))).collect();
    let [locked, checked, ran, bundled, again, compared, apart] = &said[..] else {
        panic!("{said:?}")
    };
    assert!(locked.starts_with("dsr.lock: written\n  + mine.rhai "), "{locked}");
    assert_eq!(checked, "mine.rhai: the lock is true\n");
    assert_eq!(bundled, "shared.rhai: 0 modules, with its lock\n");
    assert!(ran.contains("step 5") && ran == again, "{ran}{again}");
    assert!(
        compared.contains("\n+//| {\n") && compared.contains("Parameters: the same"),
        "{compared}"
    );
    assert_eq!(apart, "apart/mine.rhai\napart/dsr.lock\n");
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

#[test]
fn the_recipe_with_tensors_runs() {
    let readme = readme();
    let recipe = readme.split("```rhai\n").nth(2).unwrap().split("```").next().unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tensors.rhai"), recipe).unwrap();
    let printed = out(&dsr(dir.path(), &["run", "tensors.rhai"]).output().unwrap());
    assert_eq!(printed.lines().count(), 2, "{printed}");
}
