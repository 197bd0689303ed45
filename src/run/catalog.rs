//! The runs of a directory: how each stands, what it was made of, and its last values. No list reads all
//! of a run's metrics.

use std::path::Path;

use serde_json::{Map, Value};

use super::{
    dir::{self, RunDir},
    last_values::LastValues,
    lock::is_held,
    metrics::curves,
};
use crate::{
    error::{Code, Error, Result},
    fs::{Place, remove_dir},
};

/// How a run stands, also one whose process could not say so any more.
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
}

impl State {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Running,
        Self::Finished,
        Self::Stopped,
        Self::Interrupted,
        Self::Failed,
        Self::Killed,
        Self::Unknown,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Stopped => "stopped",
            Self::Interrupted => "interrupted",
            Self::Failed => "failed",
            Self::Killed => "killed",
            Self::Unknown => "unknown",
        }
    }

    /// How the run of this `run.json` stands, whose lock `is_held` or not; `None` where there are no locks.
    pub(super) fn of(told: &Map<String, Value>, is_held: Option<bool>) -> Self {
        match (Self::said(told), is_held) {
            // A process that holds the lock goes on, whatever was said before.
            (_, Some(true)) => Self::Running,
            (Self::Running, Some(false)) => Self::Killed,
            (said, _) => said,
        }
    }

    /// How a run stands by its own words.
    pub(super) fn said(told: &Map<String, Value>) -> Self {
        match told.get("status").and_then(Value::as_str) {
            Some("running") => Self::Running,
            Some("finished") => Self::Finished,
            Some("stopped") => Self::Stopped,
            Some("interrupted") => Self::Interrupted,
            Some("failed") => Self::Failed,
            _ => Self::Unknown,
        }
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
}

impl RunSummary {
    fn of(dir: RunDir) -> Result<Self> {
        let told = dir.told()?;
        let state = State::of(&told, is_held(dir.place()));
        let has_ended = !matches!(state, State::Running | State::Killed | State::Unknown);
        let last = match LastValues::told(&told).filter(|_| has_ended) {
            Some(last) => last,
            None => LastValues::at_the_end(dir.metrics(), &told)?,
        };
        let name = dir.place().name().unwrap_or_default().to_owned();
        Ok(Self { dir, name, state, told, last })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The losses of all its steps, from its metrics.
    pub fn losses(&self) -> Result<Vec<(u64, f64)>> {
        let metrics = self.dir.metrics();
        if metrics.is_file() { Ok(curves(&metrics)?.train) } else { Ok(Vec::new()) }
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
        if let Ok(Value::Object(last)) = serde_json::to_value(self.last) {
            all.extend(last);
        }
        all.into()
    }

    /// Refuses to remove a run that a process goes on with.
    pub fn check_removable(&self) -> Result<()> {
        if self.state == State::Running {
            let message =
                format!("{} goes on: stop it before you remove it", self.path().display());
            return Err(Error::new(Code::Usage, message));
        }
        Ok(())
    }

    /// Removes the run's directory.
    ///
    /// # Errors
    /// A process goes on with it.
    pub fn remove(self) -> Result<()> {
        self.check_removable()?;
        remove_dir(self.dir.place())
    }
}

/// The evaluation with the lowest loss, of steps and losses.
pub fn lowest(evaluations: &[(u64, f64)]) -> Option<(u64, f64)> {
    evaluations.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1))
}

/// The runs in `root` by name and number; none where it does not exist.
pub fn list(root: impl Into<Place>) -> Result<Vec<RunSummary>> {
    dir::runs(&root.into())?.into_iter().map(RunSummary::of).collect()
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
