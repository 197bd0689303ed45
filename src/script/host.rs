//! What a recipe's functions can reach outside of the script.
//!
//! The command line builds one [`Host`] and hands it to a [`Session`](super::Session); every native
//! function gets it back from its call context with [`of`]. Nothing here is global.
//! What the layers below need to live for the length of a run (the run directory, the process
//! group, the hub) becomes a field here.

use std::{
    cell::{Ref, RefCell},
    path::PathBuf,
    rc::{Rc, Weak},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rhai::NativeCallContext;

use super::{
    params::{Given, Parameter},
    sources::Sources,
};
use crate::error::{Code, Error, Result};

/// Where `print` and `debug` go, one line at a time and without the line's end.
pub type Output = Box<dyn FnMut(&str)>;

/// Looks an environment variable up.
pub type Lookup = Box<dyn Fn(&str) -> Option<String>>;

/// What to start a run from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The latest checkpoint of the run, if there is one.
    Auto,
    /// This checkpoint.
    From(PathBuf),
}

/// The world of a script.
pub struct Host {
    /// The recipe's directory: what relative paths start from, and what imports are confined to.
    pub base_dir: PathBuf,
    /// Values for the recipe's parameters, in the order given; a later one wins.
    pub params: Vec<Given>,
    /// The name of the run, where the user chose one.
    pub run_name: Option<String>,
    /// The checkpoint to go on from.
    pub resume: Option<Resume>,
    /// Set from outside to stop the script at its next operation.
    pub interrupt: Arc<AtomicBool>,
    /// The environment, as far as the user lets dsr see it. Scripts have no access to it.
    pub env: Lookup,
    pub(crate) output: RefCell<Output>,
    pub(crate) sources: Sources,
    /// What the recipe that runs declares.
    pub(crate) parameters: RefCell<Vec<Parameter>>,
    /// Set while a script runs; weak because the engine owns this host.
    pub(crate) engine: RefCell<Weak<rhai::Engine>>,
}

impl Host {
    /// A host for a recipe in `base_dir` that prints through `output`; no parameters are given, no
    /// environment is visible.
    pub fn new(base_dir: impl Into<PathBuf>, output: impl FnMut(&str) + 'static) -> Self {
        Self {
            base_dir: base_dir.into(),
            params: Vec::new(),
            run_name: None,
            resume: None,
            interrupt: Arc::default(),
            env: Box::new(|_| None),
            output: RefCell::new(Box::new(output)),
            sources: Sources::default(),
            parameters: RefCell::default(),
            engine: RefCell::default(),
        }
    }

    /// Prints one line (or several, separated by line ends).
    pub fn print(&self, line: &str) {
        // A sink that prints through the host again would only lose its own line.
        if let Ok(mut output) = self.output.try_borrow_mut() {
            output(line);
        }
    }

    /// The parameters that the recipe declares.
    pub(crate) fn parameters(&self) -> Ref<'_, Vec<Parameter>> {
        self.parameters.borrow()
    }

    /// Whether the user asked to stop.
    pub fn interrupted(&self) -> bool {
        self.interrupt.load(Ordering::Relaxed)
    }
}

/// The error that stops a script when the user asked to.
pub(crate) fn interruption() -> Error {
    Error::new(Code::Interrupted, "interrupted")
}

/// The host of the script that makes this call.
pub fn of(ctx: &NativeCallContext) -> Result<Rc<Host>> {
    ctx.tag().and_then(|tag| tag.clone().try_cast::<Rc<Host>>()).ok_or_else(|| {
        Error::new(Code::Internal, format!("`{}` was called without a host", ctx.fn_name()))
    })
}
