//! Places that cannot be written, or are gone.

use std::{fs::File, process::Command};

use crate::support::program::{command, text};

fn folder(recipe: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("r.rhai"), recipe).unwrap();
    folder
}

#[test]
fn a_directory_that_is_gone_and_a_limit_of_file_sizes_are_told_in_words() {
    let folder =
        folder("new_model(\"gpt2\", #{ n_layer: 1, n_head: 2, n_embd: 32 }).export_hf(\"m\");");
    let shell = |script: &str| {
        let output = Command::new("bash")
            .args(["-c", script])
            .env("DSR", env!("CARGO_BIN_EXE_dsr"))
            .current_dir(folder.path())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    for command in ["eval 1", "run r.rhai", "doc log", "launch r.rhai", "--version"] {
        let (status, words) =
            shell(&format!("mkdir gone && cd gone && rmdir ../gone && $DSR {command}"));
        assert_eq!(status, Some(4), "{command}: {words}");
        assert!(words.starts_with("error[E802]: the working directory does not exist any more\n"));
    }
    let (status, words) = shell("ulimit -f 100; $DSR run r.rhai");
    assert_eq!(status, Some(5), "{words}");
    assert!(words.starts_with("error[E302]: ") && words.contains("ulimit -f"), "{words}");
    assert!(!folder.path().join("m").exists());
}

/// A run goes on without its output, and a program that made only output did nothing.
#[test]
fn output_that_does_not_fit_on_the_disk_is_an_error_at_the_end() {
    let folder = folder("print(1); save_plot(\"p.svg\", [[1, 2], [2, 3]], #{}); print(2);");
    let commands: [&[&str]; 6] = [
        &["run", "r.rhai"],
        &["doc", "init_engine"],
        &["check", "--json", "r.rhai"],
        &["recipe", "show", "gpt2_wikitext"],
        &["eval", "1 + 1"],
        &["completions", "bash"],
    ];
    for args in commands {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = command().args(args).current_dir(folder.path()).stdout(full).output();
        let output = output.unwrap();
        let words = text(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{args:?}: {words}");
        assert!(words.contains("error[E302]: cannot write to standard output"), "{words}");
    }
    assert!(folder.path().join("p.svg").is_file());
}
