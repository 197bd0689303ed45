//! An installed dsr: it needs nothing of the directory that it was built in.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{
    files::repository,
    program::{dsr, out, text},
};

/// The program that `scripts/install.sh` puts below `prefix`.
fn install(prefix: &Path) -> PathBuf {
    let libtorch = env::var("LIBTORCH").unwrap_or_else(|_| "libtorch".to_owned());
    let mut script = Command::new(repository().join("scripts/install.sh"));
    script.arg(prefix).arg(libtorch).arg(env!("CARGO_BIN_EXE_dsr")).current_dir(repository());
    assert_eq!(out(&script.output().unwrap()), format!("installed {}/bin/dsr\n", prefix.display()));
    prefix.join("bin/dsr")
}

/// An empty environment, another directory: all libraries that are not the system's are the installed
/// ones, and two ranks of the installed program train.
#[test]
fn an_installed_program_stands_alone() {
    let prefix = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let prefix = prefix.path().canonicalize().unwrap();
    let program = install(&prefix);
    let alone = |words: &[&str]| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(dir.path()).env_clear();
        command.env("HOME", dir.path()).env("OMP_NUM_THREADS", "1").env("DSR_DEVICE", "cpu");
        out(&command.output().unwrap())
    };
    let path = program.to_str().unwrap();
    let libraries = alone(&["/usr/bin/ldd", path]);
    let torch: Vec<&str> = libraries.lines().filter(|line| line.contains("torch")).collect();
    let own = prefix.join("bin/../lib/dsr").display().to_string();
    assert!(!torch.is_empty() && torch.iter().all(|line| line.contains(&own)), "{libraries}");
    assert_eq!(alone(&[path, "eval", "ones([2]).sum().item()"]), "2.0\n");
    let words = ["launch", "--nproc-per-node", "2", "gpt2_loop", "-p", "steps=2"];
    let printed = alone(&[&[path], &words[..]].concat());
    assert!(printed.contains("step 2"), "{printed}");
    let megabytes = fs::metadata(&program).unwrap().len() / 1_000_000;
    assert!(megabytes <= 60, "{megabytes} MB without libtorch");
    for file in [
        "share/man/man1/dsr.1",
        "share/man/man1/dsr-run.1",
        "share/bash-completion/completions/dsr",
        "share/zsh/site-functions/_dsr",
        "share/fish/vendor_completions.d/dsr.fish",
        "share/doc/dsr/NOTICE",
    ] {
        assert!(prefix.join(file).exists(), "{file}");
    }
}

#[test]
fn what_is_not_built_is_not_installed() {
    let dir = tempfile::tempdir().unwrap();
    let mut script = Command::new(repository().join("scripts/install.sh"));
    script.args(["prefix", "libtorch", "none"].map(|name| dir.path().join(name)));
    let output = script.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("none is missing: run cargo build --release"));
    assert!(!dir.path().join("prefix").exists());
}

#[test]
fn shells_complete_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = out(&dsr(dir.path(), &["completions", shell]).output().unwrap());
        assert!(script.contains("nproc-per-node"), "{shell}: {script}");
    }
    fs::write(
        dir.path().join("dsr.bash"),
        out(&dsr(dir.path(), &["completions", "bash"]).output().unwrap()),
    )
    .unwrap();
    let line =
        "source dsr.bash; COMP_WORDS=(dsr pl); COMP_CWORD=1; _dsr dsr pl dsr; echo ${COMPREPLY[@]}";
    let bash = Command::new("bash").args(["-c", line]).current_dir(dir.path()).output().unwrap();
    assert_eq!(out(&bash), "plan\n");
    let unknown = dsr(dir.path(), &["completions", "tcsh"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    assert!(text(&unknown.stderr).contains("possible values: bash, zsh, fish"), "{unknown:?}");
}
