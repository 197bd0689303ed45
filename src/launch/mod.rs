//! Starting the ranks of a run, on one machine or several, and ending them together.
//!
//! [`LaunchPlan`] says what is started where, from options named as torchrun's and DeepSpeed's and from a
//! hostfile. Each machine has one launcher, which starts its ranks with torchrun's environment,
//! keeps what they write ([`Screen`] and `rank-<n>.log`) and watches them. The first machine's
//! launcher hosts the store where the ranks meet; over it the launchers speak to each other, so
//! that all ranks end when one has failed, wherever it is. [`run`] returns how the run ended, with
//! the lines that name the rank, the machine and the cause.
//!
//! Nothing here knows what the ranks run: they are the program that is given, with its arguments.

mod cause;
mod environment;
mod failure;
mod hostfile;
mod link;
mod logs;
mod nodes;
mod plan;
mod process;
mod remote;
mod supervise;

use std::{
    path::PathBuf,
    process::ExitStatus,
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
};

pub use self::{
    cause::{ERROR_FILE, Report},
    hostfile::Host,
    logs::Screen,
    plan::{LaunchOptions, LaunchPlan},
    supervise::run,
};

use crate::fs::Place;

/// The variable in which a rank finds the command line that launched it, as a JSON list.
pub const COMMAND: &str = "DSR_LAUNCH_COMMAND";

/// The variable in which a rank finds the number of its launcher's process, with which it ends
/// (`bridge/native/early.cpp`).
const LAUNCHER: &str = "DSR_LAUNCHER_PID";

/// A run that is to be launched.
pub struct Launch {
    /// The plan of the ranks.
    pub plan: LaunchPlan,
    /// This program.
    pub program: PathBuf,
    /// The arguments of `dsr run` for each rank: the recipe and what belongs to it.
    pub run_args: Vec<String>,
    /// The working directory.
    pub work_dir: PathBuf,
    /// The directory of all runs.
    pub root: Place,
    /// The name of the logs until the run's own directory is known.
    pub name: String,
    /// Whether the run is only tried: where that succeeds, no log is kept.
    pub is_trial: bool,
    /// The command line that was typed.
    pub command: Vec<String>,
    /// The environment of this process, which the ranks inherit.
    pub environment: Vec<(String, String)>,
    /// The command that leads to another machine: `ssh` and its options.
    pub ssh: Vec<String>,
    /// Where the output of rank 0 and what went wrong is shown.
    pub screen: Arc<dyn Screen>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// The exit status of the launcher: that of the rank that failed first.
    pub status: u8,
    /// The last lines for the screen; none where the ranks have said all.
    pub text: String,
}

/// Something that the supervisor must see to.
enum Event {
    /// A rank of this machine has ended.
    Rank(usize, ExitStatus),
    /// The way to another machine has ended.
    RemoteAgent(usize, ExitStatus),
    /// The user asks to stop, for the first time or again.
    Stop,
}

/// How a signal asks the ranks to stop. Clones share it.
#[derive(Clone)]
pub struct Stopper(Sender<Event>);

impl Stopper {
    /// Asks the ranks to save and end; the second time, ends them at once.
    pub fn stop(&self) {
        // A launcher that has ended needs no request.
        let _ = self.0.send(Event::Stop);
    }
}

/// An event for the supervisor.
pub struct Events(Receiver<Event>, Sender<Event>);

/// The two ends of what a launcher is told.
pub fn events() -> (Stopper, Events) {
    let (sender, receiver) = mpsc::channel();
    (Stopper(sender.clone()), Events(receiver, sender))
}
