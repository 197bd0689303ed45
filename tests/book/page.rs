//! A page of the book in a directory of its own, and its blocks run there in order.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::blocks::{Block, blocks, commands, file_name};
use crate::support::{
    files::repository,
    hub_server::HubServer,
    program::{DEVICE, text},
    small_hub,
};

/// `dsr` for the pages: recipes that train for minutes get a few steps, and a machine with little
/// room or a small `/dev/shm` is shown as one with enough. A problem is still shown.
const PROGRAM: &str = r#"#!/bin/bash
set -o pipefail
case "$*" in
doctor)
    "$DSR" doctor | sed -e '/^! /{s/^!/ /;n;d}' -e 's/^dsr works; .*/dsr works/'
    exit ;;
*--help* | *--explain-permissions*) ;;
"run "*gpt2_wikitext* | "launch "*gpt2_wikitext*)
    set -- "$@" -p steps=2 -p eval_rows=4 -p samples=1 -p seq_len=32 -p micro_batch_size=1 -p gradient_accumulation_steps=1 ;;
"launch "*two_machines/train*)
    set -- "$@" -p steps=15 ;;
esac
exec "$DSR" "$@"
"#;

pub(crate) struct Page {
    file: &'static str,
    /// Home, with the programs in `bin` and the reader's directory in `work`.
    home: TempDir,
    hub: HubServer,
}

impl Page {
    /// The page `file` of the repository, and a place with the repository's recipes and examples.
    pub(crate) fn new(file: &'static str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let (bin, work) = (home.path().join("bin"), home.path().join("work"));
        fs::create_dir(&bin).unwrap();
        fs::create_dir(&work).unwrap();
        fs::write(bin.join("dsr"), PROGRAM).unwrap();
        fs::set_permissions(bin.join("dsr"), fs::Permissions::from_mode(0o755)).unwrap();
        for directory in ["recipes", "examples"] {
            let copied = Command::new("cp")
                .args(["-r", directory])
                .arg(&work)
                .current_dir(repository())
                .status()
                .unwrap();
            assert!(copied.success());
        }
        let hub =
            small_hub::with_models(&["openai-community/gpt2", "openai-community/gpt2-medium"]);
        Self { file, home, hub }
    }

    /// Runs all blocks that can run.
    pub(crate) fn run(&self) {
        let page = fs::read_to_string(repository().join(self.file)).unwrap();
        for block in blocks(&page).iter().filter(|block| !block.is_ignored) {
            match block.language.as_str() {
                "rhai" => self.recipe(block),
                "sh" => {
                    self.bash(block, &block.text);
                }
                "console" => self.console(block),
                _ => {}
            }
        }
    }

    fn recipe(&self, block: &Block) {
        let (name, verb) = match file_name(&block.text) {
            Some(name) => (name, "check"),
            None => ("block.rhai", "run"),
        };
        fs::write(self.work().join(name), &block.text).unwrap();
        self.bash(block, &format!("dsr {verb} {name}"));
    }

    /// A command that is shown to fail may fail: its output says so.
    fn console(&self, block: &Block) {
        for (command, expected) in commands(&block.text) {
            let output = self.command(&format!("{{ {command}\n}} 2>&1")).output().unwrap();
            let printed = text(&output.stdout);
            if expected.is_empty() && !output.status.success() {
                panic!("{}:{}: {command}\n{printed}", self.file, block.line);
            }
            let place = format!("{}:{}", self.file, block.line);
            snapbox::Assert::new().normalize_paths(false).eq(
                format!("{place}: $ {command}\n{printed}"),
                format!("{place}: $ {command}\n{expected}"),
            );
        }
    }

    fn bash(&self, block: &Block, script: &str) {
        let output = self.command(script).output().unwrap();
        assert!(
            output.status.success(),
            "{}:{}: {:?}\n{script}\n{}{}",
            self.file,
            block.line,
            output.status,
            text(&output.stdout),
            text(&output.stderr)
        );
    }

    fn command(&self, script: &str) -> Command {
        let path = std::env::var("PATH").unwrap();
        let mut command = Command::new("bash");
        command
            .args(["-e", "-c", script])
            .current_dir(self.work())
            .env("PATH", format!("{}:{path}", self.home.path().join("bin").display()))
            .env("DSR", env!("CARGO_BIN_EXE_dsr"))
            .env("HOME", self.home.path())
            .env(DEVICE.0, &DEVICE.1)
            .stdin(Stdio::null());
        for name in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"] {
            command.env_remove(name);
        }
        small_hub::visible(&self.hub, self.home.path(), &mut command);
        command
    }

    fn work(&self) -> PathBuf {
        self.home.path().join("work")
    }
}
