//! A recipe in a directory of its own, run as `dsr run` would.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    rc::Rc,
};

use dsr::{
    error::Code,
    recipe::{self, Failure, diagnostics::Fault},
    script::{Host, Session},
    tensor::DeviceChoice,
};

/// The directory, with the recipe in `recipe.rhai`; it is the working directory too.
pub(crate) struct Recipe {
    directory: tempfile::TempDir,
}

impl Recipe {
    pub(crate) fn new(text: &str) -> Self {
        let recipe = Self { directory: tempfile::tempdir().unwrap() };
        recipe.file("recipe.rhai", text);
        recipe
    }

    /// Adds or replaces a file.
    pub(crate) fn file(&self, name: &str, text: &str) -> &Self {
        let path = self.directory().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    fn path(&self) -> PathBuf {
        self.directory().join("recipe.rhai")
    }

    /// Runs the recipe in a session that `prepare` has added to; gives the lines that it printed.
    pub(crate) fn run(
        &self,
        prepare: impl FnOnce(Host) -> Session,
    ) -> (Vec<String>, Result<(), Failure>) {
        let recipe = recipe::Recipe::open(&self.path()).unwrap();
        with_host(self.directory(), |host| prepare(host).run(&recipe))
    }

    /// What the recipe prints; it must end well.
    pub(crate) fn prints(&self) -> Vec<String> {
        let (lines, result) = self.run(Session::new);
        result.unwrap_or_else(|f| panic!("{:?}", f.faults));
        lines
    }

    /// What the recipe prints, and what dsr notes meanwhile; it must end well.
    pub(crate) fn prints_and_notes(&self) -> (Vec<String>, Vec<String>) {
        let notes = Rc::new(RefCell::new(Vec::new()));
        let sink = Rc::clone(&notes);
        let (printed, result) = self.run(|mut host| {
            host.output.notes = Box::new(move |line| sink.borrow_mut().push(line.to_owned()));
            Session::new(host)
        });
        result.unwrap_or_else(|f| panic!("{:?}", f.faults));
        (printed, notes.take())
    }

    /// How the recipe fails.
    pub(crate) fn fails(&self) -> Failure {
        self.run(Session::new).1.expect_err("the recipe should fail")
    }
}

/// Gives a host in `directory`, which is the working directory too; what was printed, and how it
/// ended.
pub(crate) fn with_host(
    directory: &Path,
    work: impl FnOnce(Host) -> Result<(), Failure>,
) -> (Vec<String>, Result<(), Failure>) {
    let _alone = super::alone();
    let lines = Rc::new(RefCell::new(Vec::new()));
    let sink = Rc::clone(&lines);
    let mut host = Host::new(directory, move |line: &str| sink.borrow_mut().push(line.to_owned()));
    host.workspace.rights.work_dir = directory.to_owned();
    host.ranks.device = DeviceChoice::Cpu;
    let result = work(host);
    (lines.take(), result)
}

/// Code and place of every fault.
pub(crate) fn places(failure: &Failure) -> Vec<(Code, String)> {
    let place = |fault: &Fault| match &fault.place {
        Some(p) => {
            let file = p.source.name.rsplit('/').next().unwrap_or_default();
            format!("{file}:{}:{}", p.line, p.column)
        }
        None => "nowhere".to_owned(),
    };
    failure.faults.iter().map(|f| (f.error.code(), place(f))).collect()
}
