//! A user of the program, with a home of its own.

use std::{fs, path::Path, process::Output};

use super::{
    program::{dsr, out, text},
    web_server::WebServer,
};

/// A user with a home, a working directory in it, and a server that the settings name.
pub(crate) struct User {
    pub(crate) home: tempfile::TempDir,
    pub(crate) web: WebServer,
}

impl User {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("work")).unwrap();
        Self { home, web: WebServer::start() }
    }

    pub(crate) fn work(&self) -> std::path::PathBuf {
        self.home.path().join("work")
    }

    pub(crate) fn file(&self, name: &str, text: &str) {
        let path = self.work().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.work().join(name)).unwrap()
    }

    pub(crate) fn dsr(&self, args: &[&str]) -> Output {
        self.dsr_in(&self.work(), args)
    }

    pub(crate) fn dsr_in(&self, dir: &Path, args: &[&str]) -> Output {
        let mut command = dsr(dir, args);
        for name in ["HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        for name in ["XDG_CONFIG_HOME", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(name);
        }
        command.env("HOME", self.home.path()).env("HF_ENDPOINT", &self.web.url).output().unwrap()
    }

    /// What a command prints that ends well.
    pub(crate) fn says(&self, args: &[&str]) -> String {
        out(&self.dsr(args))
    }

    /// The error of a command and its status.
    pub(crate) fn error(&self, args: &[&str]) -> (String, i32) {
        let output = self.dsr(args);
        assert!(!output.status.success(), "{args:?}: {}", text(&output.stdout));
        let said = text(&output.stderr);
        assert!(!said.contains("panicked"), "{said}");
        (said, output.status.code().unwrap())
    }
}

/// Asserts that a text has all of these parts.
#[track_caller]
pub(crate) fn has(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "no {part:?} in:\n{said}");
    }
}
