//! A run's directory: a name that no earlier run loses, and the files that record the run.
//!
//! ```text
//! runs/gpt2/                 runs/gpt2-2/ when that exists, then runs/gpt2-3/ ...
//!     run.json               its name, which `--resume auto` goes by, and what it tells of itself
//!     command.txt            the command line of each start, ready for a shell
//!     recipe.rhai            the recipe as it was run last
//!     params.json            its parameters
//!     lock                   held by the process that goes on with the run
//!     metrics.jsonl          one JSON object a step
//!     samples.jsonl          texts of the model on the way
//!     output.log             the lines that the recipe printed
//!     loss.svg
//!     checkpoints/
//! ```
//!
//! The name is kept in `run.json` because `gpt2-2` may be the second run of `gpt2` or the first of
//! a recipe that is called so.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    checkpoint::Store,
    config::suggest::nearest,
    error::{Code, Error, Result},
    fs::{Place, read_to_string, remove_leftovers, write_atomic, write_json},
    run::{interrupt::shell_line, lock::RunLock},
};

const RUN: &str = "run.json";

/// The files that are written to replace others.
const FILES: [&str; 7] = [
    RUN,
    "command.txt",
    "recipe.rhai",
    "params.json",
    "metrics.jsonl",
    "samples.jsonl",
    "loss.svg",
];

/// The directory of one run.
#[derive(Debug, Clone)]
pub struct RunDir {
    place: Place,
    name: String,
}

/// The part of `run.json` that is there from the beginning.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Identity {
    name: String,
    /// How many runs of this name came before it in the same root, plus one.
    number: u64,
    /// Whether the run is only tried, or is a checkpoint to go back to: its directory is nobody's when its
    /// process is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    is_trial: bool,
}

/// The beginning of a run, which a continuation keeps.
#[derive(Deserialize)]
pub(super) struct Beginning {
    #[serde(flatten)]
    pub(super) identity: Identity,
    /// `None` in the directory of a run that begins now, and of one of an earlier version.
    pub(super) started_at: Option<String>,
}

impl RunDir {
    /// Makes the directory of a new run: `root/name`, or with the first free number behind it. Two
    /// processes that do this at once get two directories.
    pub fn create(root: impl Into<Place>, name: &str) -> Result<Self> {
        let (place, number) = new_place(&root.into(), name)?;
        Self::marked(place, name, number, false)
    }

    /// A directory in `root` that goes away with its owner, and its number among those of this name. It is
    /// locked before it is marked so: nobody takes it for one whose owner is gone.
    pub(super) fn create_passing(root: &Place, name: &str) -> Result<(Self, RunLock, u64)> {
        let (place, number) = new_place(root, name)?;
        let lock = RunLock::take(&place)?;
        Ok((Self::marked(place, name, number, true)?, lock, number))
    }

    /// The directories in `root` that go away with their owners.
    pub(super) fn passing(root: &Place) -> Result<Vec<Place>> {
        let mut found = Vec::new();
        for place in directories(root)? {
            if identity(&place).is_ok_and(|run| run.is_some_and(|run| run.is_trial)) {
                found.push(place);
            }
        }
        Ok(found)
    }

    fn marked(place: Place, name: &str, number: u64, is_trial: bool) -> Result<Self> {
        let identity = Identity { name: name.to_owned(), number, is_trial };
        write_json(place.join(RUN), &identity)?;
        Ok(Self { place, name: identity.name })
    }

    /// The run that lies at `path`, to go on with it. Leftovers of killed writers are removed.
    pub fn open(place: impl Into<Place>) -> Result<Self> {
        let place = place.into();
        let Some(identity) = identity(&place)? else {
            return Err(Error::new(
                Code::BadValue,
                format!("{} is not a run's directory: it has no {RUN}", place.display()),
            ));
        };
        remove_leftovers(&place, |name| FILES.contains(&name))?;
        Ok(Self { place, name: identity.name })
    }

    /// The run that lies at `path`, to be read alone or removed; `None` where there is none. A directory with
    /// metrics or checkpoints whose `run.json` is missing or damaged is a run of the directory's name.
    pub(super) fn look_at(place: impl Into<Place>) -> Option<Self> {
        let place = place.into();
        if let Ok(Some(identity)) = identity(&place) {
            return Some(Self { place, name: identity.name });
        }
        let is_run = place.join(RUN).is_file()
            || place.join("metrics.jsonl").is_file()
            || place.join("checkpoints").is_dir();
        let name = place.name().filter(|_| is_run)?.to_owned();
        Some(Self { place, name })
    }

    /// Records what is run: the recipe's source, its parameters and the command line, whose
    /// earlier lines stay.
    pub fn record(&self, recipe: &str, params: &impl Serialize, command: &[String]) -> Result<()> {
        write_atomic(self.place.join("recipe.rhai"), recipe.as_bytes())?;
        write_json(self.place.join("params.json"), params)?;
        let file = self.place.join("command.txt");
        // A link in a run that came from elsewhere is replaced, and what it leads to is not copied.
        let is_there = file.is_file() && !file.is_link()?;
        let mut commands = if is_there { read_to_string(&file)? } else { String::new() };
        commands.push_str(&shell_line(command));
        commands.push('\n');
        write_atomic(&file, commands.as_bytes())
    }

    /// The parameters of its last start, where they can be read.
    pub(super) fn params(&self) -> Option<Map<String, Value>> {
        parsed(&self.place.join("params.json")).ok()
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// The directory as what may be written.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The run's name, without a number.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path to go on with the run by, where it is another one's than `name`'s, which `--resume auto` looks
    /// for.
    pub(super) fn path_of_other(&self, name: &str) -> Option<&Path> {
        (self.name != name).then(|| self.path())
    }

    /// Where the run tells of itself.
    pub(super) fn told_in(&self) -> Place {
        self.place.join(RUN)
    }

    /// What the run tells of itself; runs of earlier versions have their name alone. `None` where it is
    /// missing or damaged.
    pub(super) fn told(&self) -> Option<Map<String, Value>> {
        let told: Map<String, Value> = parsed(&self.told_in()).ok()?;
        Identity::deserialize(&told).is_ok().then_some(told)
    }

    /// Its name and number, and when it began.
    pub(super) fn beginning(&self) -> Result<Beginning> {
        parsed(&self.told_in())
    }

    /// The run's checkpoints.
    pub fn checkpoints(&self) -> Store {
        Self::checkpoints_in(&self.place)
    }

    /// The checkpoints of the run in this directory.
    pub(super) fn checkpoints_in(place: &Place) -> Store {
        Store::open(place.join("checkpoints"))
    }

    /// Where the metrics are.
    pub fn metrics(&self) -> Place {
        self.place.join("metrics.jsonl")
    }

    /// Where the samples are.
    pub fn samples(&self) -> Place {
        self.place.join("samples.jsonl")
    }

    /// Where the lines are that the recipe printed.
    pub fn output_log(&self) -> Place {
        self.place.join("output.log")
    }

    /// Where the loss curve is.
    pub fn loss_svg(&self) -> Place {
        self.place.join("loss.svg")
    }
}

/// Makes the directory `root/name`, or with the first free number behind it; returns the number too.
fn new_place(root: &Place, name: &str) -> Result<(Place, u64)> {
    check_name(name)?;
    root.create_dir_all()?;
    for number in 1.. {
        let place = numbered(root, name, number);
        if place.create_dir()? {
            return Ok((place, number));
        }
    }
    unreachable!("some number up to 2^64 is free")
}

/// The directory of the run of `name` with this number.
pub(super) fn numbered(root: &Place, name: &str, number: u64) -> Place {
    match number {
        1 => root.join(name),
        _ => root.join(format!("{name}-{number}")),
    }
}

/// The newest run of `name` in `root` that has a checkpoint: what `--resume auto` means.
pub fn find_latest(root: impl Into<Place>, name: &str) -> Result<RunDir> {
    let root = root.into();
    let mut runs = Vec::new();
    let mut names = Vec::new();
    for place in directories(&root)? {
        let Some(found) = identity(&place)?.filter(|found| !found.is_trial) else { continue };
        if found.name == name {
            runs.push((found.number, place.path().to_owned()));
        } else {
            names.push(found.name);
        }
    }
    runs.sort();
    let newest = runs.iter().rev().map(|(_, path)| path);
    for path in newest {
        let run = root.beside(path);
        if !Store::open(run.join("checkpoints")).list()?.is_empty() {
            return RunDir::open(run);
        }
    }
    let place = root.display();
    let e = |message| Error::new(Code::Checkpoint, message);
    if !runs.is_empty() {
        let paths: Vec<_> = runs.iter().map(|(_, path)| path.display().to_string()).collect();
        return Err(e(format!("no run of {name:?} has a checkpoint yet: {}", paths.join(", ")))
            .hint("start afresh by leaving out --resume"));
    }
    names.sort();
    names.dedup();
    let e = e(format!("no run of {name:?} in {place}"));
    Err(match nearest(name, names.iter().map(String::as_str)) {
        Some(near) => e.hint(format!("did you mean {near:?}?")),
        None if names.is_empty() => e.hint("start afresh by leaving out --resume"),
        None => e.hint(format!("{place} has runs of: {}", names.join(", "))),
    })
}

/// Refuses a name that cannot be the one of a run.
pub fn check_name(name: &str) -> Result<()> {
    let bad = |what: &str| {
        Err(Error::new(Code::BadValue, format!("{name:?} cannot be the name of a run: {what}"))
            .hint("a name such as gpt2-small becomes a directory"))
    };
    match name {
        "" => bad("it is empty"),
        _ if name.contains(['/', '\\']) => bad("it has a slash"),
        _ if name.starts_with('.') => bad("it begins with a dot"),
        _ if name.contains(char::is_control) => bad("it has a control character"),
        _ => Ok(()),
    }
}

/// The content of `run.json` in `path`; `None` where there is none.
fn identity(dir: &Place) -> Result<Option<Identity>> {
    let file = dir.join(RUN);
    if !file.exists() {
        return Ok(None);
    }
    parsed(&file).map(Some)
}

fn parsed<T: serde::de::DeserializeOwned>(file: &Place) -> Result<T> {
    serde_json::from_str(&read_to_string(file)?).map_err(|e| {
        Error::new(Code::Io, format!("{} cannot be understood", file.display())).caused_by(e)
    })
}

/// The runs in `root`, by name and number; damaged ones by the name of their directory.
pub(super) fn runs(root: &Place) -> Result<Vec<RunDir>> {
    let mut found = Vec::new();
    for place in directories(root)? {
        let told = identity(&place).ok().flatten();
        if told.as_ref().is_some_and(|run| run.is_trial) {
            continue;
        }
        if let Some(run) = RunDir::look_at(place) {
            found.push((run.name.clone(), told.map(|run| run.number), run));
        }
    }
    found.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    Ok(found.into_iter().map(|(_, _, run)| run).collect())
}

/// The directories in `root`; none when it does not exist.
fn directories(root: &Place) -> Result<Vec<Place>> {
    if !root.exists() {
        return Ok(Vec::new());
    }
    let entries = root.list()?.into_iter().map(|name| root.join(name));
    Ok(entries.filter(Place::is_dir).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn with_checkpoint(run: &RunDir) {
        run.checkpoints().save(1, None, |_| Ok(())).unwrap();
    }

    #[test]
    fn an_earlier_run_is_never_overwritten() {
        let root = tempfile::tempdir().unwrap();
        let runs = root.path().join("runs");
        for expected in ["gpt2", "gpt2-2", "gpt2-3"] {
            let run = RunDir::create(&runs, "gpt2").unwrap();
            assert_eq!(run.path(), runs.join(expected));
            assert_eq!(run.name(), "gpt2");
        }
    }

    #[test]
    fn resume_takes_the_newest_run_of_the_name_with_a_checkpoint() {
        let root = tempfile::tempdir().unwrap();
        let first = RunDir::create(root.path(), "gpt2").unwrap();
        let second = RunDir::create(root.path(), "gpt2").unwrap();
        RunDir::create(root.path(), "gpt2").unwrap();
        // Another recipe whose name looks like a number of this one.
        let other = RunDir::create(root.path(), "gpt2-9").unwrap();
        with_checkpoint(&other);
        with_checkpoint(&first);
        assert_eq!(find_latest(root.path(), "gpt2").unwrap().path(), first.path());
        with_checkpoint(&second);
        assert_eq!(find_latest(root.path(), "gpt2").unwrap().path(), second.path());
    }

    #[test]
    fn the_tenth_run_is_newer_than_the_ninth() {
        let root = tempfile::tempdir().unwrap();
        for _ in 0..10 {
            with_checkpoint(&RunDir::create(root.path(), "a").unwrap());
        }
        assert!(find_latest(root.path(), "a").unwrap().path().ends_with("a-10"));
    }

    #[test]
    fn nothing_to_resume_is_an_error_that_says_what_was_looked_for() {
        let root = tempfile::tempdir().unwrap();
        let message = |name: &str| {
            let e = find_latest(root.path(), name).unwrap_err();
            assert_eq!(e.code(), Code::Checkpoint);
            format!("{e:?}")
        };
        assert!(message("gpt2").contains("no run of \"gpt2\" in"));
        RunDir::create(root.path(), "gpt2").unwrap();
        assert!(message("gpt2").contains("has a checkpoint yet"));
        assert!(message("gtp2").contains("did you mean \"gpt2\"?"));
        assert!(message("llama").contains("has runs of: gpt2"));
        assert!(find_latest(root.path().join("none"), "gpt2").is_err());
    }

    #[test]
    fn what_is_run_is_recorded_and_earlier_commands_stay() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDir::create(root.path(), "a").unwrap();
        let params = serde_json::json!({"lr": 0.001});
        let command = |words: &[&str]| words.iter().map(|w| w.to_string()).collect::<Vec<_>>();
        run.record("train();", &params, &command(&["dsr", "run", "my recipe.rhai"])).unwrap();
        let run = RunDir::open(run.path()).unwrap();
        run.record("train(2);", &params, &command(&["dsr", "run", "--resume", "auto"])).unwrap();
        let text = |name: &str| fs::read_to_string(run.path().join(name)).unwrap();
        assert_eq!(text("recipe.rhai"), "train(2);");
        assert_eq!(text("params.json"), "{\n  \"lr\": 0.001\n}\n");
        assert_eq!(text("command.txt"), "dsr run 'my recipe.rhai'\ndsr run --resume auto\n");
    }

    #[test]
    fn a_name_must_be_able_to_be_a_directory() {
        let root = tempfile::tempdir().unwrap();
        for name in ["", "a/b", "..", ".hidden", "a\nb"] {
            assert_eq!(RunDir::create(root.path(), name).unwrap_err().code(), Code::BadValue);
        }
        assert_eq!(RunDir::open(root.path()).unwrap_err().code(), Code::BadValue);
    }
}
