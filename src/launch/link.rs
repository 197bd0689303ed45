//! The messages between a run's launchers, over the board that the first one hosts.
//!
//! The first machine's launcher leads: it reads what the others report and gives orders. Both
//! sides speak a few times a second; a side that has not been heard of for long is taken for lost.
//! The thread here has the board to itself, since an operation on it may wait for the network.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::failure::Failure;
use crate::{
    dist::Board,
    error::{Code, Error, Result},
    run::TOLD_DIR,
};

/// How often the launchers speak.
const BEAT: Duration = Duration::from_millis(300);
/// How long the last words of a launcher may take.
const LAST_WORDS: Duration = Duration::from_secs(2);

const ORDER: &str = "launch/order";

/// The report of one machine's launcher.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct NodeReport {
    /// Grows while the launcher lives.
    beat: u64,
    /// Its ranks that failed.
    pub(super) failures: Vec<Failure>,
    /// Whether its user asked to stop.
    pub(super) interrupted: bool,
    /// Whether all its ranks have ended.
    pub(super) ended: bool,
}

/// An order of the leading launcher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Order {
    /// The user asked to stop: the ranks are to save and end.
    Stop,
    /// A rank has failed: all are to end. With the reason, as far as it is known.
    Fail(String),
    /// All are to end at once.
    Kill,
}

/// A report and when it last changed.
#[derive(Debug, Clone)]
pub(super) struct Heard {
    pub(super) report: NodeReport,
    changed: Instant,
}

impl Heard {
    /// How long ago the machine was last heard of.
    pub(super) fn silence(&self) -> Duration {
        self.changed.elapsed()
    }
}

/// This launcher's end of the link.
pub(super) struct Link {
    shared: Arc<Shared>,
    wake: Sender<Sender<()>>,
}

struct Shared {
    node: usize,
    own: Mutex<NodeReport>,
    order: Mutex<Option<Order>>,
    /// The reports that the leading launcher has heard, by machine.
    heard: Mutex<Vec<Option<Heard>>>,
    run_dir: Mutex<Option<String>>,
    /// When the board last answered.
    answered: Mutex<Instant>,
    broken: Mutex<bool>,
}

impl Link {
    /// Starts to speak for machine `node` of `nnodes`.
    pub(super) fn start(board: Board, node: usize, nnodes: usize) -> Self {
        let shared = Arc::new(Shared {
            node,
            own: Mutex::default(),
            order: Mutex::default(),
            heard: Mutex::new(vec![None; nnodes]),
            run_dir: Mutex::default(),
            answered: Mutex::new(Instant::now()),
            broken: Mutex::new(false),
        });
        let (wake, inbox) = mpsc::channel::<Sender<()>>();
        let of_thread = Arc::clone(&shared);
        thread::spawn(move || {
            loop {
                let done = match inbox.recv_timeout(BEAT) {
                    Ok(done) => Some(done),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                if let Err(e) = of_thread.exchange(&board) {
                    tracing::debug!("the board of the run is gone: {e}");
                    *lock(&of_thread.broken) = true;
                    return;
                }
                *lock(&of_thread.answered) = Instant::now();
                if let Some(done) = done {
                    // The caller may have given up.
                    let _ = done.send(());
                }
            }
        });
        Self { shared, wake }
    }

    /// Whether this launcher leads.
    pub(super) fn leads(&self) -> bool {
        self.shared.node == 0
    }

    /// Changes what this machine reports.
    pub(super) fn report(&self, change: impl FnOnce(&mut NodeReport)) {
        change(&mut lock(&self.shared.own));
    }

    /// Orders all machines, as the leading launcher.
    pub(super) fn give(&self, order: Order) {
        *lock(&self.shared.order) = Some(order);
    }

    /// The order.
    pub(super) fn order(&self) -> Option<Order> {
        lock(&self.shared.order).clone()
    }

    /// The report of each machine.
    pub(super) fn heard(&self) -> Vec<Option<Heard>> {
        lock(&self.shared.heard).clone()
    }

    /// The failures of this machine's own ranks.
    pub(super) fn own_failures(&self) -> Vec<Failure> {
        lock(&self.shared.own).failures.clone()
    }

    /// Where the run lies, once rank 0 has said so.
    pub(super) fn run_dir(&self) -> Option<String> {
        lock(&self.shared.run_dir).clone()
    }

    /// How long the board has not answered; for good when it is gone.
    pub(super) fn silence(&self) -> Duration {
        match *lock(&self.shared.broken) {
            true => Duration::MAX,
            false => lock(&self.shared.answered).elapsed(),
        }
    }

    /// Brings both sides up to date now, if the board answers.
    pub(super) fn flush(&self) {
        let (done, answer) = mpsc::channel();
        if self.wake.send(done).is_ok() {
            // Without an answer the others take this side for lost, in time.
            let _ = answer.recv_timeout(LAST_WORDS);
        }
    }
}

impl Shared {
    fn exchange(&self, board: &Board) -> Result<()> {
        self.find_phases(board)?;
        let report = {
            let own = &mut lock(&self.own);
            own.beat += 1;
            own.clone()
        };
        if self.node == 0 {
            if let Some(order) = lock(&self.order).clone() {
                board.set(ORDER, &json(&order))?;
            }
            let nnodes = lock(&self.heard).len();
            for node in 1..nnodes {
                if let Some(report) = read::<NodeReport>(board, &report_key(node))? {
                    self.hear(node, report);
                }
            }
        } else {
            board.set(&report_key(self.node), &json(&report))?;
            if let Some(order) = read(board, ORDER)? {
                *lock(&self.order) = Some(order);
            }
        }
        if let Some(dir) = board.told(TOLD_DIR)? {
            *lock(&self.run_dir) = Some(dir);
        }
        Ok(())
    }

    /// Adds to failures that are about other ranks what their rank last said of itself.
    fn find_phases(&self, board: &Board) -> Result<()> {
        let missing: Vec<usize> =
            lock(&self.own).failures.iter().filter_map(Failure::lacks_phase).collect();
        for rank in missing {
            let state = board.rank_state(rank)?;
            let mut own = lock(&self.own);
            let failure = own.failures.iter_mut().find(|failure| failure.rank == Some(rank));
            if let (Some(failure), Some(state)) = (failure, state) {
                failure.phase = Some(state.phase);
            }
        }
        Ok(())
    }

    fn hear(&self, node: usize, report: NodeReport) {
        let heard = &mut lock(&self.heard)[node];
        let same = heard.as_ref().filter(|heard| heard.report.beat == report.beat);
        let changed = same.map_or_else(Instant::now, |heard| heard.changed);
        *heard = Some(Heard { report, changed });
    }
}

/// Agrees with the launchers of all machines on how many ranks each has; `own` is this one's
/// number and `known` all numbers, where this launcher knows them. `stop` is asked in between.
pub(super) fn sizes(
    board: &Board,
    (node, nnodes, own): (usize, usize, usize),
    known: Option<Vec<usize>>,
    timeout: Duration,
    mut stop: impl FnMut() -> bool,
) -> Result<Vec<usize>> {
    const ALL: &str = "launch/sizes";
    let key = |node: usize| format!("launch/size/{node}");
    let end = Instant::now() + timeout;
    board.set(&key(node), &json(&own))?;
    if let Some(sizes) = known {
        board.set(ALL, &json(&sizes))?;
        return Ok(sizes);
    }
    loop {
        if let Some(sizes) = read(board, ALL)? {
            return Ok(sizes);
        }
        let mut found = Vec::new();
        for node in (0..nnodes).take_while(|_| node == 0) {
            found.push(read(board, &key(node))?);
        }
        if let (0, Some(sizes)) = (node, found.iter().copied().collect::<Option<Vec<usize>>>()) {
            board.set(ALL, &json(&sizes))?;
            return Ok(sizes);
        }
        if stop() {
            return Err(Error::interrupted());
        }
        if Instant::now() >= end {
            let missing = (0..nnodes).filter(|&node| found.get(node).is_some_and(Option::is_none));
            let missing: Vec<_> = missing.map(|node| node.to_string()).collect();
            let seconds = timeout.as_secs();
            match missing.as_slice() {
                [] => {
                    bail!(Code::Dist, "the first machine has not found all {nnodes} in {seconds} s")
                }
                missing => bail!(
                    Code::Dist,
                    "of {nnodes} machines, no launcher came within {seconds} s with --node-rank {}",
                    missing.join(", ")
                ),
            }
        }
        thread::sleep(BEAT);
    }
}

fn report_key(node: usize) -> String {
    format!("launch/node/{node}")
}

fn read<T: DeserializeOwned>(board: &Board, key: &str) -> Result<Option<T>> {
    Ok(board.get(key)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

/// Plain data always has a JSON form.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
