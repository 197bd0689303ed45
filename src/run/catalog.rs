//! The runs of a directory: how each stands, what it was made of, and its last values. No list reads all
//! of a run's metrics.

use std::{path::Path, time::Duration};

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::{
    dir::{self, RunDir},
    last_values::LastValues,
    lock::is_held,
    step_log::step_of,
    tail::{Part, Tail},
};
use crate::{
    error::{Code, Error, Result},
    fs::{Place, remove_dir},
};

/// How a run stands: by its own words, or as it is found where its process could not say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// A process goes on with it.
    Running,
    /// Its last step is done.
    Finished,
    /// The recipe ended it before its last step.
    Stopped,
    /// The user stopped it, or a signal, or its time was up.
    Interrupted,
    /// An error ended it.
    Failed,
    /// Its process is gone and has said nothing.
    Killed,
    /// It is of an earlier dsr, which wrote nothing of it.
    Unknown,
    /// Its `run.json` is missing or cannot be understood.
    Damaged,
}

impl State {
    /// All of them with their names. A run says the first five of itself.
    pub const NAMES: [(Self, &'static str); 8] = [
        (Self::Running, "running"),
        (Self::Finished, "finished"),
        (Self::Stopped, "stopped"),
        (Self::Interrupted, "interrupted"),
        (Self::Failed, "failed"),
        (Self::Killed, "killed"),
        (Self::Unknown, "unknown"),
        (Self::Damaged, "damaged"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].1
    }

    /// How the run of this `run.json`, where there is a whole one, stands, whose lock `is_held` or not; `None`
    /// where there are no locks.
    pub(super) fn of(told: Option<&Map<String, Value>>, is_held: Option<bool>) -> Self {
        match (Self::said(told), is_held) {
            // A process that holds the lock goes on, whatever was said before.
            (_, Some(true)) => Self::Running,
            (Self::Running, Some(false)) => Self::Killed,
            (said, _) => said,
        }
    }

    /// How a run stands by its own words.
    pub(super) fn said(told: Option<&Map<String, Value>>) -> Self {
        let Some(told) = told else { return Self::Damaged };
        let word = told.get("status").and_then(Value::as_str);
        let said = Self::NAMES[..5].iter().find(|(_, name)| word == Some(*name));
        said.map_or(Self::Unknown, |&(state, _)| state)
    }
}

impl Serialize for State {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// A run among others.
#[derive(Debug)]
pub struct RunSummary {
    dir: RunDir,
    /// The name of its directory.
    pub name: String,
    /// How it stands.
    pub state: State,
    /// The content of `run.json`.
    pub told: Map<String, Value>,
    /// Its last step and its best evaluation.
    pub last: LastValues,
    /// The part of it that cannot be read: it stands in the list nevertheless.
    pub damage: Option<String>,
}

/// The losses of a run's steps.
#[derive(Debug, Default, PartialEq)]
pub struct Losses {
    /// Steps and losses.
    pub points: Vec<(u64, f64)>,
    /// How many lines of the metrics cannot be understood.
    pub unreadable: usize,
}

/// The extent of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// The run's directory with all that is in it.
    Run,
    /// A link to a run, which stays.
    Link,
}

impl RunSummary {
    /// The run in `dir`; whatever cannot be read of it is told as its damage.
    fn of(dir: RunDir) -> Self {
        let told = dir.told();
        let state = State::of(told.as_ref(), is_held(dir.place()));
        let mut damage =
            told.is_none().then(|| format!("{} is missing or damaged", dir.told_in().display()));
        let told = told.unwrap_or_default();
        let has_ended =
            matches!(state, State::Finished | State::Stopped | State::Interrupted | State::Failed);
        let last = match LastValues::told(&told).filter(|_| has_ended) {
            Some(last) => last,
            None => LastValues::at_the_end(dir.metrics(), &told).unwrap_or_else(|e| {
                damage.get_or_insert(e.message().to_owned());
                LastValues::default()
            }),
        };
        let name = dir.place().name().unwrap_or_default().to_owned();
        Self { dir, name, state, told, last, damage }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The losses of all its steps, from its metrics, as far as they can be read.
    pub fn losses(&self) -> Result<Losses> {
        let mut losses = Losses::default();
        let mut tail = Tail::of(self.dir.metrics());
        while tail.read(Duration::MAX, &mut |part| match part {
            Part::Anew => losses = Losses::default(),
            Part::Line(line) => losses.add(line),
        })? {}
        losses.points.sort_by_key(|&(step, _)| step);
        Ok(losses)
    }

    /// Whether there is a checkpoint to go on from.
    pub fn has_checkpoint(&self) -> Result<bool> {
        Ok(!self.dir.checkpoints().list()?.is_empty())
    }

    /// A text of what it tells.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.told.get(key)?.as_str()
    }

    /// All of it for other programs, without the curves.
    pub fn as_json(&self) -> Value {
        let mut all = self.told.clone();
        all.insert("run".to_owned(), self.name.clone().into());
        all.insert("path".to_owned(), self.path().display().to_string().into());
        all.insert("status".to_owned(), self.state.name().into());
        if let Some(damage) = &self.damage {
            all.insert("damage".to_owned(), damage.clone().into());
        }
        if let Ok(Value::Object(last)) = serde_json::to_value(self.last) {
            all.extend(last);
        }
        all.into()
    }

    /// The extent of its removal.
    ///
    /// # Errors
    /// A process goes on with the run, which would lose its directory.
    pub fn removal(&self) -> Result<Removal> {
        if self.dir.place().is_link()? {
            return Ok(Removal::Link);
        }
        if self.state == State::Running {
            let message =
                format!("{} goes on: stop it before you remove it", self.path().display());
            return Err(Error::new(Code::Usage, message));
        }
        Ok(Removal::Run)
    }

    /// Removes the run's directory, or a link that stands in its place and nothing else.
    ///
    /// # Errors
    /// As [`RunSummary::removal`].
    pub fn remove(self) -> Result<Removal> {
        let removal = self.removal()?;
        match removal {
            Removal::Run => remove_dir(self.dir.place())?,
            Removal::Link => self.dir.place().remove_file()?,
        }
        Ok(removal)
    }
}

impl Losses {
    fn add(&mut self, line: &[u8]) {
        match serde_json::from_slice::<Value>(line).ok().filter(Value::is_object) {
            Some(line) => {
                let loss = line.get("loss").and_then(Value::as_f64);
                self.points.extend(step_of(&line).zip(loss));
            }
            None => self.unreadable += 1,
        }
    }
}

/// The evaluation with the lowest loss, of steps and losses.
pub fn lowest(evaluations: &[(u64, f64)]) -> Option<(u64, f64)> {
    evaluations.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1))
}

/// The runs in `root` by name and number; none where it does not exist.
pub fn list(root: impl Into<Place>) -> Result<Vec<RunSummary>> {
    Ok(dir::runs(&root.into())?.into_iter().map(RunSummary::of).collect())
}

/// A row for each parameter and setting that is not the same in all runs: its name, and its value in
/// each.
pub fn differences(runs: &[RunSummary]) -> Vec<(String, Vec<String>)> {
    const SETTINGS: [&str; 12] = [
        "recipe_sha256",
        "data",
        "precision",
        "optimizer",
        "micro_batch_size",
        "gradient_accumulation_steps",
        "train_batch_size",
        "world_size",
        "parameters",
        "trained_parameters",
        "device_name",
        "dsr",
    ];
    let params = |run: &RunSummary| match run.told.get("params") {
        Some(Value::Object(params)) => params.clone(),
        _ => Map::new(),
    };
    let all: Vec<_> = runs.iter().map(params).collect();
    let mut names: Vec<&String> = Vec::new();
    all.iter().flat_map(Map::keys).for_each(|name| {
        if !names.contains(&name) {
            names.push(name);
        }
    });
    let of_params = names.into_iter().map(|name| {
        (name.clone(), all.iter().map(|params| shown(params.get(name))).collect::<Vec<_>>())
    });
    let of_settings = SETTINGS.into_iter().map(|name| {
        let values = runs.iter().map(|run| shown(run.told.get(name))).collect();
        (name.to_owned(), values)
    });
    let differs = |(_, values): &(String, Vec<String>)| values.iter().any(|v| *v != values[0]);
    of_params.chain(of_settings).filter(differs).collect()
}

/// A value in a table: a hash by its beginning.
fn shown(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) if crate::hash::is_sha256(text) => text[..12].to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    }
}
