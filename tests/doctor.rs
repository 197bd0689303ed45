//! `dsr doctor`: one screen of what is there, and what to do about what is not.

use std::path::Path;

use serde_json::Value;

use crate::support::program::{dsr, out, text};

/// What it prints as JSON with these variables, and its exit status.
fn examined(dir: &Path, env: &[(&str, &str)]) -> (Value, Option<i32>) {
    let mut command = dsr(dir, &["doctor", "--json"]);
    command.env("HOME", dir).env_remove("HF_HOME").env_remove("HF_HUB_CACHE");
    let output = command.envs(env.iter().copied()).output().unwrap();
    (serde_json::from_str(&text(&output.stdout)).unwrap(), output.status.code())
}

/// The finding of this name.
fn finding<'a>(examined: &'a Value, name: &str) -> &'a Value {
    let all = examined["findings"].as_array().unwrap();
    all.iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn one_screen_says_what_a_person_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let screen = out(&dsr(dir.path(), &["doctor"]).env("HOME", dir.path()).output().unwrap());
    assert!(screen.lines().count() <= 40, "{screen}");
    for name in [
        "dsr",
        "libtorch",
        "Gloo",
        "Landlock",
        "memory",
        "processor",
        "working directory",
        "Hugging Face hub",
        "hub's cache",
    ] {
        let is_named = |line: &str| line.get(2..).is_some_and(|line| line.starts_with(name));
        assert!(screen.lines().any(is_named), "{name}: {screen}");
    }
    assert!(screen.contains(env!("CARGO_PKG_VERSION")) && screen.contains("OMP_NUM_THREADS"));
}

#[test]
fn programs_get_the_same_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let (found, status) = examined(dir.path(), &[("HF_TOKEN", "hf_secret")]);
    assert_eq!((&found["usable"], status), (&Value::Bool(true), Some(0)), "{found:#}");
    assert_eq!(finding(&found, "Gloo")["state"], "fine");
    let version = finding(&found, "libtorch")["value"].as_str().unwrap();
    assert!(version.starts_with("2."), "{version}");
    let hub = finding(&found, "Hugging Face hub")["value"].as_str().unwrap();
    assert!(hub.contains("with a token"), "{hub}");
    assert!(!found.to_string().contains("hf_secret"));
}

#[test]
fn what_is_wrong_ends_in_failure_and_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let cache = dir.path().join("file/hub").display().to_string();
    let wrong = [
        ("HF_HUB_CACHE", cache.as_str(), "hub's cache"),
        ("HF_ENDPOINT", "nowhere", "Hugging Face hub"),
        ("GLOO_SOCKET_IFNAME", "no-such-interface", "Gloo"),
    ];
    for (variable, value, name) in wrong {
        let (found, status) = examined(dir.path(), &[(variable, value)]);
        assert_eq!((&found["usable"], status), (&Value::Bool(false), Some(1)), "{found:#}");
        let finding = finding(&found, name);
        assert_eq!(finding["state"], "problem", "{finding}");
        assert!(!finding["advice"].as_str().unwrap().is_empty());
    }
}
