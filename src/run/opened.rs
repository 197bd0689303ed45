//! Where a run begins: the checkpoint that it goes on from, its directory with its lock and log, and what
//! all ranks must know of them.

use serde_json::{Map, Value};

use super::{
    RunDir, RunLog, Start, TrainingOptions, best, branch::Branch, find_latest, lock::RunLock,
};
use crate::{
    checkpoint::Store,
    engine::Engine,
    error::Result,
    fs::{Place, remove_dir},
};

/// The checkpoint that the run goes on from, and on the first rank the lock of the run that it is the
/// latest of: whoever else goes on with that run is met here, before anything is read.
pub(super) fn resumed(
    options: &TrainingOptions,
    is_first: bool,
) -> Result<(Option<Place>, Option<RunLock>)> {
    match &options.start {
        Start::Afresh => Ok((None, None)),
        Start::Latest => {
            let dir = find_latest(&options.root, &options.name)?;
            let lock = is_first.then(|| RunLock::take(dir.place())).transpose()?;
            // Its former owner may have saved once more.
            Ok((Some(dir.checkpoints().latest()?), lock))
        }
        Start::From(path) => {
            let checkpoint = Store::resolve(options.root.beside(path))?;
            let own = own_dir(&checkpoint).filter(|_| is_first);
            let lock = own.map(|dir| RunLock::take(dir.place())).transpose()?;
            Ok((Some(checkpoint), lock))
        }
    }
}

/// The run that a checkpoint is the latest of.
fn own_dir(checkpoint: &Place) -> Option<RunDir> {
    let dir = RunDir::open(checkpoint.parent()?.parent()?).ok()?;
    (*checkpoint == dir.checkpoints().latest().ok()?).then_some(dir)
}

/// Why a checkpoint's own run does not go on: it cannot be read.
fn unreadable_run(checkpoint: &Place) -> Option<String> {
    let dir = checkpoint.parent()?.parent()?;
    let run = RunDir::look_at(&dir)?;
    let is_its_own = checkpoint.parent()?.path() == run.checkpoints().root();
    let unreadable = RunDir::open(dir).err().filter(|_| is_its_own)?;
    Some(format!(
        "a new run begins, as that of the checkpoint cannot go on: {}",
        unreadable.message()
    ))
}

/// The files of a run on rank 0.
pub(super) struct Opened {
    pub(super) dir: RunDir,
    pub(super) log: RunLog,
    pub(super) lock: RunLock,
    /// The directory of a run that is new.
    pub(super) unbegun: Option<Unbegun>,
    /// The loss of its best checkpoint.
    best: Option<f64>,
    /// A fact that is not as the user may believe, as a line to show.
    pub(super) warning: Option<String>,
}

impl Opened {
    /// The files of the run, as it stands at `step`. A run goes on in its own directory only from its latest
    /// checkpoint; from an earlier one it branches off into a new directory, and begins there with what
    /// was known at this step.
    pub(super) fn at(
        options: &TrainingOptions,
        resumed: Option<&Place>,
        step: u64,
        lock: Option<RunLock>,
    ) -> Result<Self> {
        let own = resumed.and_then(own_dir).zip(lock);
        let goes_on = own.is_some();
        let branch = resumed.filter(|_| !goes_on).and_then(|at| Branch::at(at, step));
        let (dir, lock) = match own {
            Some(own) => own,
            None => new_dir(options, branch.as_ref())?,
        };
        let unbegun = (!goes_on).then(|| Unbegun(Some(dir.place().clone())));
        let before = if goes_on { dir.params() } else { None };
        let warning = match (before, resumed.filter(|_| !goes_on)) {
            (Some(before), _) => changed(&before, &options.recipe.params),
            (None, Some(checkpoint)) => unreadable_run(checkpoint),
            (None, None) => None,
        };
        dir.record(&options.recipe.source, &options.recipe.params, &options.command)?;
        if let Some(branch) = &branch {
            branch.copy_logs(&dir)?;
        }
        let log = RunLog::open(&dir, goes_on.then_some(step), options.lines)?;
        if let Some(branch) = branch.filter(|_| options.keeps_best) {
            branch.copy_best(&dir, &log.evaluations()?)?;
        }
        // A mark that an earlier start has made is heeded by whatever removes checkpoints.
        let best = match options.keeps_best || dir.checkpoints().best()?.is_some() {
            true => best::settle(&dir, &log)?,
            false => None,
        };
        Ok(Self { dir, log, lock, unbegun, best, warning })
    }
}

/// The parameters that a run goes on with and that were others before: those of the command line, and
/// the recipe's defaults where the command line that began it gave them.
fn changed(before: &Map<String, Value>, now: &Map<String, Value>) -> Option<String> {
    let others = now.iter().filter_map(|(name, value)| {
        let before = before.get(name).filter(|before| *before != value)?;
        Some(format!("{name} {before} -> {value}"))
    });
    let others = others.collect::<Vec<_>>();
    (!others.is_empty()).then(|| format!("parameters are not as before: {}", others.join(", ")))
}

/// The directory of a run that has not begun. It goes away where the run never does.
pub(super) struct Unbegun(Option<Place>);

impl Unbegun {
    /// The run has begun: its directory stays.
    pub(super) fn begins(mut self) {
        self.0 = None;
    }
}

impl Drop for Unbegun {
    fn drop(&mut self) {
        // The error that ends the start is the one to tell.
        let _ = self.0.as_ref().map(remove_dir);
    }
}

fn new_dir(options: &TrainingOptions, branch: Option<&Branch>) -> Result<(RunDir, RunLock)> {
    let name = match branch {
        Some(branch) if !options.is_named => branch.name(),
        _ => &options.name,
    };
    if options.is_trial {
        let (dir, lock, _) = RunDir::create_passing(&options.root, &format!("{name}.dry-run"))?;
        return Ok((dir, lock));
    }
    let dir = RunDir::create(&options.root, name)?;
    let lock = RunLock::take(dir.place())?;
    Ok((dir, lock))
}

/// Facts that rank 0 finds in the files, and by which all ranks go.
pub(super) struct Told {
    /// Whether the run was there before.
    pub(super) goes_on: bool,
    /// The loss of the best checkpoint.
    pub(super) best: Option<f64>,
}

impl Told {
    /// Every rank must call it.
    pub(super) fn to_all(engine: &Engine, opened: Option<&Opened>) -> Result<Self> {
        let own = opened.into_iter().flat_map(|opened| {
            std::iter::once(f64::from(u8::from(opened.unbegun.is_none()))).chain(opened.best)
        });
        let told = engine.group().told(own.collect())?;
        Ok(Self { goes_on: told.first() == Some(&1.0), best: told.get(1).copied() })
    }
}
