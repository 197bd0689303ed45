//! What a recipe's functions can reach outside of the script.
//!
//! The command line builds one [`Host`] and hands it to a [`Session`](super::Session); every native
//! function gets it back from its call context with [`of`]. Nothing here is global.
//! What lives for the length of a run (the process group, the hub) is a field here, made when it is
//! first asked for.

use std::{
    cell::{Cell, OnceCell, Ref, RefCell},
    path::PathBuf,
    rc::{Rc, Weak},
};

use rhai::NativeCallContext;

use super::{
    Failure,
    bundle::Bundle,
    feed::Feed,
    live::curves::Curves,
    lock::Lock,
    params::{Given, Parameter},
    pinned::{Address, has_files, without_hash},
    planning::{Planning, needs_weights},
    powers::Powers,
    recipe::Recipe,
    sources::Sources,
};
use crate::{
    data::DatasetFiles,
    dist::{ProcessGroup, Rendezvous},
    engine::RecipeRecord,
    error::{Code, Error, Result},
    hub::{Hub, HubSettings, Progress},
    permission::{Access, Grants},
    run::{Interrupt, LineInterval, Start},
    tensor::{Device, DeviceChoice, LocalRank, make_current},
};

/// Where `print` and `debug` go, one line at a time and without the line's end.
pub type Output = Box<dyn FnMut(&str)>;

/// Where dsr's own lines go, one at a time and without the line's end.
pub type Notes = Box<dyn Fn(&str)>;

/// Shows how far a download is.
pub type ShowDownload = Rc<dyn Fn(&Progress<'_>)>;

/// Shows how far a run is.
pub type ShowProgress = Box<dyn Fn(u64, u64, &str)>;

/// Asks the user for an access; true gives it to the session.
pub type Ask = Box<dyn Fn(&Access<'_>) -> bool>;

/// Looks an environment variable up.
pub type Lookup = Box<dyn Fn(&str) -> Option<String>>;

/// The world of a script.
pub struct Host {
    /// The recipe's directory, which imports are confined to; of several that a session loads, that
    /// of the last.
    pub(crate) base_dir: RefCell<PathBuf>,
    /// What all other relative paths of a recipe start from, as those of any program do: the
    /// process's working directory, where this is empty.
    pub work_dir: PathBuf,
    /// Values for the recipe's parameters, in the order given; a later one wins.
    pub params: Vec<Given>,
    /// The name of the run, where the user chose one.
    pub run_name: Option<String>,
    /// What a run of the recipe starts from.
    pub start: Start,
    /// The device that it computes on.
    pub device: DeviceChoice,
    /// Which steps of a run get a line.
    pub lines: LineInterval,
    /// The command line of this process, for what a run keeps and for how to go on with it.
    pub command: Vec<String>,
    /// Where a trace of the first engine's steps goes, if anywhere.
    pub profile: RefCell<Option<PathBuf>>,
    /// A request from outside to stop: the script ends at its next operation, or, while a run is
    /// active, when it has saved the step that is under way.
    pub interrupt: Interrupt,
    /// What the user gave the recipe beside what every recipe may do.
    pub grants: Grants,
    /// Asks the user, while the script runs, for what it was not given.
    pub ask: Option<Ask>,
    /// Bytes that the recipe may print; it then ends.
    pub max_output: u64,
    /// Where each access of the recipe is written down, if anywhere.
    pub audit: Option<PathBuf>,
    /// What of the hub and of the imports is settled.
    pub lock: Option<Lock>,
    /// Whether the lock is all that the recipe may load.
    pub frozen: bool,
    /// Whether the hub is asked what its branches stand at, although the cache has an answer.
    pub refresh: bool,
    /// The environment, as far as the user lets dsr see it. Scripts have no access to it.
    pub env: Lookup,
    /// Where [`note`](Self::note) puts its lines.
    pub notes: Notes,
    /// Called with each step of a download from the hub.
    pub show_download: ShowDownload,
    /// Called with each step of a run: steps done, all steps, and the progress line.
    pub show_progress: ShowProgress,
    /// Set where the recipe is only to be planned.
    pub(crate) planning: Option<Planning>,
    /// The batches under way; set where inputs come one after another, and the variables stay.
    pub(crate) feed: Option<Rc<Feed>>,
    /// What its engines did.
    pub(crate) curves: Curves,
    /// Bytes that were printed, by the input that runs where there are several.
    pub(crate) printed: Cell<u64>,
    /// Set while a run accompanies the recipe's training loop.
    pub(crate) run_is_active: Cell<bool>,
    pub(super) powers: Powers,
    /// What the recipe that runs brings along.
    bundle: RefCell<Option<Bundle>>,
    /// What the recipe is called, also where it is none.
    opened: RefCell<String>,
    hub: OnceCell<Rc<Hub>>,
    group: OnceCell<Rc<ProcessGroup>>,
    pub(crate) output: RefCell<Output>,
    pub(crate) sources: Sources,
    /// The name of the recipe that runs, as in [`sources`](Self::sources).
    pub(crate) main: RefCell<String>,
    /// The values of its parameters.
    pub(crate) values: RefCell<serde_json::Map<String, serde_json::Value>>,
    /// What the recipe that runs declares.
    pub(crate) parameters: RefCell<Vec<Parameter>>,
    /// Set while a script runs; weak because the engine owns this host.
    pub(crate) engine: RefCell<Weak<rhai::Engine>>,
}

impl Host {
    /// A host for a recipe in `base_dir` that prints through `output`. No parameters are given, no
    /// environment is visible, notes and downloads are not shown.
    pub fn new(base_dir: impl Into<PathBuf>, output: impl FnMut(&str) + 'static) -> Self {
        Self {
            base_dir: RefCell::new(base_dir.into()),
            work_dir: PathBuf::new(),
            params: Vec::new(),
            run_name: None,
            start: Start::Afresh,
            device: DeviceChoice::Best,
            lines: LineInterval::Paced,
            command: Vec::new(),
            profile: RefCell::default(),
            interrupt: Interrupt::new(),
            grants: Grants::default(),
            ask: None,
            max_output: u64::MAX,
            audit: None,
            lock: None,
            frozen: false,
            refresh: false,
            env: Box::new(|_| None),
            notes: Box::new(|_| ()),
            show_download: Rc::new(|_| ()),
            show_progress: Box::new(|_, _, _| ()),
            planning: None,
            feed: None,
            curves: Curves::default(),
            printed: Cell::new(0),
            run_is_active: Cell::new(false),
            powers: Powers::default(),
            bundle: RefCell::default(),
            opened: RefCell::default(),
            hub: OnceCell::new(),
            group: OnceCell::new(),
            output: RefCell::new(Box::new(output)),
            sources: Sources::default(),
            main: RefCell::default(),
            values: RefCell::default(),
            parameters: RefCell::default(),
            engine: RefCell::default(),
        }
    }

    /// Prints one line (or several, separated by line ends).
    pub fn print(&self, line: &str) {
        self.printed.update(|bytes| bytes.saturating_add(line.len() as u64 + 1));
        if self.has_printed_too_much() {
            return;
        }
        // A sink that prints through the host again would only lose its own line.
        if let Ok(mut output) = self.output.try_borrow_mut() {
            output(line);
        }
    }

    /// Whether the recipe has printed more than it may, and is to end.
    pub(crate) fn has_printed_too_much(&self) -> bool {
        self.printed.get() > self.max_output
    }

    /// Tells the user one line that is no output of the recipe.
    pub fn note(&self, line: &str) {
        (self.notes)(line);
    }

    /// The hub that the environment names.
    pub fn hub(self: &Rc<Self>) -> Result<Rc<Hub>> {
        once(&self.hub, || {
            let show = Rc::clone(&self.show_download);
            let mut settings = HubSettings::from_env(&self.env)?;
            settings.refresh |= self.refresh;
            let pins = self.lock.as_ref().map(Lock::pins).unwrap_or_default();
            let pins = if self.frozen { pins.frozen() } else { pins };
            let hub = Hub::new(settings).with_pins(pins);
            // Weak, as this host keeps the hub.
            let host = Rc::downgrade(self);
            let hub = hub.on_host(move |name| match host.upgrade() {
                Some(host) => host.check_host(name),
                None => Err(Error::new(Code::Internal, "a request after the session ended")),
            });
            let hub = match self.stopper() {
                Some(stop) => hub.stop_when(Rc::new(stop)),
                None => hub,
            };
            Ok(hub.on_progress(move |progress| show(progress)))
        })
    }

    /// The ranks that train together, connected at the first call, which all ranks must make: those
    /// that torchrun's variables name, or this process alone. This thread then works on the
    /// process's device.
    ///
    /// # Errors
    /// As [`Rendezvous::from_env`], [`DeviceChoice::resolve`] and [`ProcessGroup::connect`].
    pub fn group(&self) -> Result<Rc<ProcessGroup>> {
        once(&self.group, || {
            if self.planning.is_some() {
                return ProcessGroup::single(Device::Cpu);
            }
            let rendezvous = Rendezvous::from_env(&self.env)?;
            let device = self.device.resolve(local_rank(rendezvous.as_ref()))?;
            make_current(device)?;
            match rendezvous {
                Some(rendezvous) => ProcessGroup::connect(&rendezvous, device),
                None => ProcessGroup::single(device),
            }
        })
    }

    /// Refuses a device that is not there, before anything is loaded.
    ///
    /// # Errors
    /// As [`Rendezvous::from_env`] and [`DeviceChoice::resolve`].
    pub fn check_device(&self) -> Result<()> {
        // The default is what there is, and CUDA takes time to start.
        if self.device != DeviceChoice::Best {
            let rendezvous = Rendezvous::from_env(&self.env)?;
            self.device.resolve(local_rank(rendezvous.as_ref()))?;
        }
        Ok(())
    }

    /// How many ranks train together, or would by the plan.
    pub(crate) fn world_size(&self) -> Result<usize> {
        match &self.planning {
            Some(planning) => Ok(planning.world_size()),
            None => Ok(self.group()?.world_size()),
        }
    }

    /// The parameters that the recipe declares.
    pub(crate) fn parameters(&self) -> Ref<'_, Vec<Parameter>> {
        self.parameters.borrow()
    }

    /// Notes which recipe is read or run, and what it brings along, where it is a bundle.
    pub(super) fn open_bundle(&self, recipe: &Recipe) -> Result<(), Failure> {
        self.bundle.replace(Bundle::open(recipe)?);
        self.opened.replace(recipe.name.clone());
        Ok(())
    }

    /// The module of the bundle that `path` means when it is imported from `importer`.
    pub(super) fn bundled(&self, importer: Option<&str>, path: &str) -> Option<(String, String)> {
        let is_main = importer.is_some_and(|name| name == *self.opened.borrow());
        match importer {
            // Code of another place reaches none of the recipe's files here either.
            Some(name) if !is_main && !has_files(name) => None,
            _ => self.bundle.borrow().as_ref()?.module(importer, path),
        }
    }

    /// Whether the recipe is a file, and may have others beside it.
    pub(super) fn has_files(&self) -> bool {
        has_files(&self.opened.borrow())
    }

    /// The text at an address, where the bundle has it.
    pub(super) fn bundled_address(&self, address: &Address) -> Result<Option<String>> {
        self.bundle.borrow().as_ref().map_or(Ok(None), |bundle| bundle.at_address(address))
    }

    /// Whether the bundle has what is at an address.
    pub(super) fn is_bundled(&self, address: &Address) -> bool {
        !matches!(self.bundled_address(address), Ok(None))
    }

    /// Refuses a text that is not in the lock, where the lock is all there is.
    pub(super) fn check_locked(&self, name: &str, text: &str) -> Result<()> {
        match (&self.lock, self.frozen) {
            (_, false) => Ok(()),
            (Some(lock), true) => lock.check_text(without_hash(name), text),
            (None, true) => Err(super::lock::missing()),
        }
    }

    /// Shows how far a run is: `done` of `total` steps, and the line for it.
    pub fn progress(&self, done: u64, total: u64, line: &str) {
        (self.show_progress)(done, total, line);
    }

    /// Refuses the function `what` where there are no weights.
    pub(crate) fn check_weights(&self, what: &str) -> Result<()> {
        if self.planning.is_some() { Err(needs_weights(what)) } else { Ok(()) }
    }

    /// Whether the user asked to stop.
    pub fn interrupted(&self) -> bool {
        self.interrupt.requested()
    }

    /// Whether the script is to end at once: an active run ends it itself, after saving. In a live
    /// session nothing ends, and the run can go on with the next input.
    pub fn must_stop(&self) -> bool {
        self.interrupted() && (self.is_live() || !self.run_is_active.get())
    }

    /// Says whether the user wants what is under way to end, where that does not end the session.
    pub(crate) fn stopper(&self) -> Option<impl Fn() -> bool + Send + Sync + use<>> {
        let interrupt = self.interrupt.clone();
        self.is_live().then_some(move || interrupt.requested())
    }

    /// Whether inputs come one after another, and the variables stay.
    pub(crate) fn is_live(&self) -> bool {
        self.feed.is_some()
    }

    /// The recipe's name: that of its file.
    pub(crate) fn recipe_name(&self) -> String {
        Recipe::stem(&self.main.borrow())
    }

    /// The recipe as it runs, for what keeps it.
    pub(crate) fn recipe_record(&self) -> RecipeRecord {
        RecipeRecord {
            source: self.sources.text(&self.main.borrow()).unwrap_or_default(),
            params: self.values.borrow().clone(),
        }
    }
}

/// A host is the hub of its datasets, so that the settings are read only when a hub is needed.
impl DatasetFiles for Rc<Host> {
    fn dataset_files(
        &self,
        repo: &str,
        config: Option<&str>,
        revision: Option<&str>,
    ) -> Result<Vec<(String, Vec<PathBuf>)>> {
        self.hub()?.dataset_files(repo, config, revision)
    }
}

/// Which of the run's processes on this machine this one is.
fn local_rank(rendezvous: Option<&Rendezvous>) -> LocalRank {
    rendezvous
        .map_or(LocalRank::ALONE, |r| LocalRank { rank: r.local_rank, count: r.local_world_size })
}

/// What `cell` holds, made now if it holds nothing yet.
fn once<T>(cell: &OnceCell<Rc<T>>, make: impl FnOnce() -> Result<T>) -> Result<Rc<T>> {
    if let Some(made) = cell.get() {
        return Ok(Rc::clone(made));
    }
    let made = Rc::new(make()?);
    Ok(Rc::clone(cell.get_or_init(|| made)))
}

/// The error that stops a script when the user asked to.
pub(crate) fn interruption() -> Error {
    Error::new(Code::Interrupted, "interrupted")
}

/// The host of the script that makes this call, which notes the place of the call.
pub fn of(ctx: &NativeCallContext) -> Result<Rc<Host>> {
    let host = ctx.tag().and_then(|tag| tag.clone().try_cast::<Rc<Host>>()).ok_or_else(|| {
        Error::new(Code::Internal, format!("`{}` was called without a host", ctx.fn_name()))
    })?;
    host.set_place(ctx.call_source(), ctx.call_position());
    Ok(host)
}
