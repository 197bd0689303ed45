//! The surroundings of a script.
//!
//! The command line builds one [`Host`] and hands it to a [`Session`](super::Session); every native
//! function gets it back from its call context with [`of`]. Nothing here is global. The process group
//! and the hub live as long as the host, and are made when they are first asked for.

use std::{
    cell::{Cell, OnceCell, RefCell},
    path::PathBuf,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rhai::NativeCallContext;

use super::{
    feed::Feed,
    output::Output,
    planning::{Planning, needs_weights},
    program::Program,
    ranks::Ranks,
    row_lengths::RowLengths,
};
use crate::{
    data::DatasetFiles,
    dist::ProcessGroup,
    engine::Engine,
    error::{Code, Error, Result},
    fs::Place,
    hub::{DatasetFile, DatasetId, Hub, HubSettings, StreamAccess},
    recipe::{caches, lock::Lock, workspace::Workspace},
    run::{Interrupt, Keeping, LineInterval, RunEnding},
};

/// Takes an engine before its first step.
pub(crate) type OnEngine = Box<dyn Fn(&mut Engine)>;

/// Ends a run that the user stopped.
pub(crate) type EndOfRun = Box<dyn Fn() -> Result<Error>>;

/// The world of a script.
pub struct Host {
    /// The recipe's rights, its lock, and the texts that it loads.
    pub workspace: Workspace,
    /// The outputs of the recipe.
    pub output: Output,
    /// The process group and the device.
    pub ranks: Ranks,
    /// The user's choices for a run.
    pub run: RunChoices,
    /// A request from outside to stop: the script ends at its next operation, or, while a run is
    /// active, when it has saved the step that is under way. A run of one process ends without that step
    /// where it takes long. What an operation kept that it ended has time to be used.
    pub interrupt: Interrupt,
    /// The recipe that runs.
    pub(crate) program: Program,
    /// Set if the recipe is only planned.
    pub(crate) planning: Option<Planning>,
    /// The lengths of the rows that the recipe makes.
    pub(crate) row_lengths: RowLengths,
    /// The batches under way; set in a live session, where the variables stay.
    pub(crate) feed: Option<Rc<Feed>>,
    /// Called with each engine that the recipe makes, before its first step.
    pub(crate) on_engine: Option<OnEngine>,
    /// Set while a run accompanies the recipe's training loop.
    pub(crate) run_is_active: Arc<AtomicBool>,
    /// Saves the last whole step of the active run and gives the error with which it ends.
    pub(crate) end_of_run: RefCell<Option<EndOfRun>>,
    /// The record of the run that started last, until it is known how it ends.
    pub(crate) run_ending: RefCell<Option<RunEnding>>,
    /// Set when the run was tried to its end, and the recipe ends with it.
    pub(crate) trial_is_over: Cell<bool>,
    hub: OnceCell<Rc<Hub>>,
}

/// The user's choices for a run of a recipe.
pub struct RunChoices {
    /// The name of the run, if the user chose one.
    pub name: Option<String>,
    /// The option or command of the user that names runs.
    pub named_by: &'static str,
    /// The steps that get a line.
    pub lines: LineInterval,
    /// The command line of this process, which a run keeps and shows for its continuation.
    pub command: Vec<String>,
    /// Whether the run is only tried: one step, and nothing of it is kept.
    pub is_trial: bool,
    /// The file for a trace of the first engine's steps, if there is one.
    pub profile: RefCell<Option<PathBuf>>,
}

impl Host {
    /// A host for a recipe in `base_dir` that prints through `sink`. No parameters are given, no
    /// environment is visible, notes and downloads are not shown.
    pub fn new(base_dir: impl Into<PathBuf>, sink: impl FnMut(&str) + 'static) -> Self {
        Self {
            workspace: Workspace::new(base_dir),
            output: Output::new(sink),
            ranks: Ranks::new(),
            run: RunChoices {
                name: None,
                named_by: "--name",
                lines: LineInterval::Paced,
                command: Vec::new(),
                is_trial: false,
                profile: RefCell::default(),
            },
            interrupt: Interrupt::new(),
            program: Program::default(),
            planning: None,
            row_lengths: RowLengths::default(),
            feed: None,
            on_engine: None,
            run_is_active: Arc::default(),
            end_of_run: RefCell::default(),
            run_ending: RefCell::default(),
            trial_is_over: Cell::default(),
            hub: OnceCell::new(),
        }
    }

    /// The hub that the environment names.
    pub fn hub(self: &Rc<Self>) -> Result<Rc<Hub>> {
        if let Some(hub) = self.hub.get() {
            return Ok(Rc::clone(hub));
        }
        let Workspace { rights, lock, frozen, refresh, .. } = &self.workspace;
        let mut settings = HubSettings::from_env(&rights.env)?;
        settings.refresh |= refresh;
        let pins = lock.as_ref().map(Lock::pins).unwrap_or_default();
        let pins = if *frozen { pins.frozen() } else { pins };
        let hub = Hub::new(settings).with_pins(pins);
        // Weak, as this host keeps the hub.
        let host = Rc::downgrade(self);
        let hub = hub.on_host(move |name| match host.upgrade() {
            Some(host) => host.workspace.rights.check_host(name),
            None => Err(Error::new(Code::Internal, "a request after the session ended")),
        });
        let hub = hub.stop_when(Arc::new(self.stopper()));
        let show = Rc::clone(&self.output.show_download);
        let hub = Rc::new(hub.on_progress(move |progress| show(progress)));
        Ok(Rc::clone(self.hub.get_or_init(|| hub)))
    }

    /// The ranks that train together; of a plan this process alone.
    pub fn group(&self) -> Result<Rc<ProcessGroup>> {
        match self.planning {
            Some(_) => self.ranks.planned(),
            None => {
                let interrupt = self.interrupt.clone();
                let stop = Arc::new(move || interrupt.requested());
                self.ranks.connected(&self.workspace.rights.env, stop)
            }
        }
    }

    /// The number of ranks that train together, or would by the plan.
    pub(crate) fn world_size(&self) -> Result<usize> {
        match &self.planning {
            Some(planning) => Ok(planning.world_size()),
            None => Ok(self.group()?.world_size()),
        }
    }

    /// How many ranks there are on this machine.
    pub(crate) fn local_ranks(&self) -> Result<usize> {
        Ranks::on_this_machine(&self.workspace.rights.env)
    }

    /// Refuses the function `name` in a plan, which has no weights.
    pub(crate) fn check_weights(&self, name: &str) -> Result<()> {
        if self.planning.is_some() { Err(needs_weights(name)) } else { Ok(()) }
    }

    /// Refuses to train under `--dry-run` what is no run, as it would be trained to the end, and is not
    /// undone (`is_undone`).
    pub(crate) fn check_tried(&self, is_undone: bool) -> Result<()> {
        if !self.run.is_trial || is_undone || self.run_is_active.load(Ordering::Relaxed) {
            return Ok(());
        }
        let message = "--dry-run tries a run, and the recipe trains without one";
        Err(Error::new(Code::CallOrder, message).hint(
            "make the steps between `start_run(engine, loader, #{ ... })` and `run.finish()`, or leave \
             --dry-run out",
        ))
    }

    /// Whether the user asked to stop.
    pub fn interrupted(&self) -> bool {
        self.interrupt.requested()
    }

    /// Whether the script is to end at once: an active run ends it itself, after saving, unless that
    /// takes too long. Several ranks must end at the same step. In a live session nothing ends, and the
    /// run can go on with the next input.
    pub fn must_stop(&self) -> bool {
        self.interrupted() && self.stopper()()
    }

    /// Whether the script itself is to end: at once, or, where an operation has ended early and kept what
    /// is there, when the script has had time to use it.
    pub(crate) fn must_end_script(&self) -> bool {
        let is_due = !self.interrupt.is_kept() || self.interrupt.is_overdue();
        is_due && self.must_stop()
    }

    fn is_alone(&self) -> bool {
        Ranks::is_alone(&self.workspace.rights.env)
    }

    /// Tells whether an operation whose results are kept must end now. One process ends it at once; several
    /// ranks end it as any other.
    pub(crate) fn must_end_early(&self) -> bool {
        if !self.interrupted() {
            return false;
        }
        if !self.is_alone() {
            return self.must_stop();
        }
        self.interrupt.end_early();
        true
    }

    /// Begins an operation whose results are kept; the script of one process goes on with them.
    ///
    /// # Errors
    /// The interruption, where there is nothing to keep yet.
    pub(crate) fn keep_what_is_there(&self) -> Result<Option<Keeping>> {
        if !self.is_alone() {
            return Ok(None);
        }
        if self.must_stop() {
            return Err(Error::interrupted());
        }
        Ok(Some(self.interrupt.keep()))
    }

    /// Tells whether the operation under way is to end: whenever the script [must
    /// stop](Self::must_stop).
    pub(crate) fn stopper(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let (interrupt, is_live) = (self.interrupt.clone(), self.is_live());
        let run_is_active = Arc::clone(&self.run_is_active);
        let is_alone = self.is_alone();
        move || {
            let waits = !is_live && run_is_active.load(Ordering::Relaxed);
            if waits { is_alone && interrupt.is_overdue() } else { interrupt.requested() }
        }
    }

    /// Whether inputs come one after another, and the variables stay.
    pub(crate) fn is_live(&self) -> bool {
        self.feed.is_some()
    }
}

impl AsRef<Workspace> for Host {
    fn as_ref(&self) -> &Workspace {
        &self.workspace
    }
}

/// A host is the hub of its datasets, so that the settings are read only when a hub is needed.
impl DatasetFiles for Rc<Host> {
    fn dataset_splits(&self, dataset: DatasetId<'_>) -> Result<Vec<String>> {
        self.hub()?.dataset_splits(dataset)
    }

    fn dataset_files(
        &self,
        dataset: DatasetId<'_>,
        split: &str,
        is_streamed: bool,
    ) -> Result<Vec<DatasetFile>> {
        let rights = &self.workspace.rights;
        let access = || -> Result<StreamAccess> {
            let dir = caches::streams(&rights.env).ok_or_else(|| {
                Error::new(Code::Hub, "no place for the files of a dataset that is streamed")
                    .hint("set XDG_CACHE_HOME to a directory")
            })?;
            Ok(StreamAccess { dir, on_host: Arc::new(rights.host_checker()) })
        };
        let access = is_streamed.then(access).transpose()?;
        self.hub()?.dataset_files(dataset, split, access.as_ref())
    }

    fn place(&self, path: PathBuf) -> Place {
        self.workspace.rights.place(path)
    }
}

/// The host of the script that makes this call, which notes the place of the call.
pub fn of(ctx: &NativeCallContext) -> Result<Rc<Host>> {
    let host = ctx.tag().and_then(|tag| tag.clone().try_cast::<Rc<Host>>()).ok_or_else(|| {
        Error::new(Code::Internal, format!("`{}` was called without a host", ctx.fn_name()))
    })?;
    host.workspace.rights.set_call(ctx.call_source(), ctx.call_position());
    Ok(host)
}
