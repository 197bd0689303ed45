//! Supervises the ranks, from their start to the end of the last.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{
    Event, Events, Launch, Outcome, Report,
    cause::MemoryKills,
    environment::{self, RankPlace},
    failure::Failure,
    link::{Link, Order, sizes},
    logs::{Logs, Stream},
    process::Process,
};
use crate::{
    dist::Board,
    error::{Code, IoContext, Result},
};

/// The time between SIGTERM and SIGKILL once a rank has failed.
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// How often the supervisor looks around.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// Launches the ranks of this machine, and of those that it starts, and waits for their end.
///
/// # Errors
/// Nothing could be started: the place where the ranks meet cannot be opened or reached, the logs
/// cannot be written, or the machines do not come together. A failure of ranks that were
/// started is no error but an [`Outcome`].
pub fn run(launch: &Launch, Events(inbox, events): Events) -> Result<Outcome> {
    let scratch = tempfile::tempdir().at("make a directory in", &std::env::temp_dir())?;
    let plan = &launch.plan;
    let master = plan.master.0.as_str();
    let (board, port) = match plan.node_rank {
        0 => Board::host((master, plan.master.1), plan.timeout)?,
        _ => {
            let stop = || matches!(inbox.try_recv(), Ok(Event::Stop));
            (Board::join((master, plan.master.1), plan.timeout, stop)?, plan.master.1)
        }
    };
    let logs = Arc::new(Logs::create(&launch.root, &launch.name)?);
    let mut supervisor = Supervisor {
        launch,
        logs,
        scratch: scratch.path().to_owned(),
        events,
        port,
        kills: MemoryKills::now(),
        ranks: BTreeMap::new(),
        ways: BTreeMap::new(),
        stopping: None,
        node_failures: Vec::new(),
    };
    supervisor.start_ways()?;
    let sizes = supervisor.agree(&board, &inbox).inspect_err(|_| supervisor.logs.discard())?;
    let link = Link::start(board, plan.node_rank, plan.nnodes);
    if let Err(e) = supervisor.start_ranks(&sizes) {
        supervisor.signal_all(Signal::KILL);
        link.give(Order::Kill);
        link.flush();
        return Err(e);
    }
    supervisor.watch(&link, &inbox);
    let outcome = supervisor.outcome(&link);
    if launch.is_trial && outcome.status == 0 {
        supervisor.logs.remove();
    }
    Ok(outcome)
}

/// A launcher at work.
pub(super) struct Supervisor<'a> {
    pub(super) launch: &'a Launch,
    pub(super) logs: Arc<Logs>,
    /// Where the ranks leave their errors.
    scratch: PathBuf,
    pub(super) events: Sender<Event>,
    pub(super) port: u16,
    kills: MemoryKills,
    /// The ranks of this machine.
    ranks: BTreeMap<usize, Process>,
    /// The ways to other machines, by their number.
    pub(super) ways: BTreeMap<usize, RemoteAgent>,
    pub(super) stopping: Option<Stopping>,
    /// The failures of whole machines, as the leading launcher sees them.
    pub(super) node_failures: Vec<(usize, Failure)>,
}

/// The process that runs the launcher of another machine, such as an ssh.
pub(super) struct RemoteAgent {
    pub(super) process: Process,
    /// Its last lines.
    pub(super) tail: Arc<Mutex<Vec<String>>>,
    pub(super) ended_at: Option<Instant>,
}

/// Why and since when the ranks are being ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopping {
    /// The user asked for it; they take the time they need to save.
    Requested,
    /// A rank has failed, here or elsewhere.
    Failed { since: Instant, killed: bool },
    /// They are being killed, on the user's second request.
    Killed { since: Instant },
}

impl Supervisor<'_> {
    /// How many ranks each machine has.
    fn agree(&mut self, board: &Board, inbox: &Receiver<Event>) -> Result<Vec<usize>> {
        let plan = &self.launch.plan;
        let own = plan.here.slots.len();
        let knows = plan.nnodes == plan.others.len() + 1;
        let known = knows.then(|| {
            let others = plan.others.iter().map(|host| host.slots.len());
            std::iter::once(own).chain(others).collect()
        });
        let node = (plan.node_rank, plan.nnodes, own);
        sizes(board, node, known, plan.timeout, || matches!(inbox.try_recv(), Ok(Event::Stop)))
    }

    fn start_ranks(&mut self, sizes: &[usize]) -> Result<()> {
        let plan = &self.launch.plan;
        let first: usize = sizes[..plan.node_rank].iter().sum();
        let world_size: usize = sizes.iter().sum();
        for local_rank in 0..plan.here.slots.len() {
            let rank = first + local_rank;
            let mut command = Command::new(&self.launch.program);
            command.arg("run").args(&self.launch.run_args).current_dir(&self.launch.work_dir);
            let place = RankPlace { rank, local_rank, world_size, port: self.port };
            let error_file = self.error_file(rank).display().to_string();
            command.envs(environment::of_rank(self.launch, place, error_file));
            let id = self.logs.open(format!("rank-{rank}.log"))?;
            let (logs, prefix) = (Arc::clone(&self.logs), format!("[rank {rank}] "));
            let screen = (rank == 0).then(|| Arc::clone(&self.launch.screen));
            let line = move |stream, bytes: &[u8]| {
                match (&screen, stream) {
                    (Some(screen), Stream::Out) => screen.out(bytes),
                    (Some(screen), Stream::Err) => screen.err(bytes),
                    (None, _) => {}
                }
                logs.line(id, &prefix, bytes);
            };
            let ended = move |status| Event::Rank(rank, status);
            self.ranks.insert(rank, Process::start(command, &self.events, line, ended)?);
        }
        Ok(())
    }

    fn error_file(&self, rank: usize) -> PathBuf {
        self.scratch.join(format!("rank-{rank}.json"))
    }

    /// Until all ranks have ended, here and elsewhere.
    fn watch(&mut self, link: &Link, inbox: &Receiver<Event>) {
        loop {
            match inbox.recv_timeout(TICK) {
                Ok(Event::Rank(rank, status)) => self.rank_ended(link, rank, status),
                Ok(Event::RemoteAgent(node, status)) => {
                    if let Some(way) = self.ways.get_mut(&node) {
                        way.process.ended = Some(status);
                        way.ended_at = Some(Instant::now());
                    }
                }
                Ok(Event::Stop) => self.requested(link),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            self.settle_logs(link);
            if link.leads() {
                self.look_at_nodes(link);
                self.tell_cause(link);
            } else {
                self.follow(link);
            }
            self.kill_when_due();
            let ended_here = self.ranks.values().all(|rank| !rank.runs());
            if ended_here && (!link.leads() || self.nodes_ended(link)) {
                break;
            }
        }
        self.ranks.values().for_each(Process::drain);
        link.report(|own| own.ended = true);
        link.flush();
        // Ranks may have ended before their run's directory was heard of.
        self.settle_logs(link);
        self.end_ways();
    }

    /// Moves the logs into the run's directory when it is known.
    fn settle_logs(&self, link: &Link) {
        if let Some(dir) = link.run_dir().filter(|_| !self.launch.is_trial)
            && let Err(e) = self.logs.settle(&self.launch.work_dir.join(dir))
        {
            tracing::warn!("the logs stay in {}: {e}", self.logs.dir().display());
        }
    }

    fn rank_ended(&mut self, link: &Link, rank: usize, status: std::process::ExitStatus) {
        if let Some(process) = self.ranks.get_mut(&rank) {
            process.ended = Some(status);
        }
        if status.success() {
            return;
        }
        let report = Report::read(&self.error_file(rank));
        let host = self.launch.plan.here.name.as_str();
        let failure = Failure::of_rank((rank, host), status, report, self.kills);
        if self.is_expected(&failure) {
            return;
        }
        let sentence = failure.sentence();
        link.report(|own| own.failures.push(failure));
        self.fail(link, sentence);
    }

    /// Whether a rank has ended as it was asked to.
    fn is_expected(&self, failure: &Failure) -> bool {
        const TERMINATED: u8 = 128 + 15;
        const KILLED: u8 = 128 + 9;
        let interrupted = failure.status == Code::Interrupted.exit_status();
        match self.stopping {
            // A signal that came to a rank and not through here: all ranks agree on it.
            None => interrupted,
            // Without a run to save, ranks end where they are, others in the middle of a collective.
            Some(Stopping::Requested) => {
                interrupted || failure.status == TERMINATED || failure.is_about_others()
            }
            Some(Stopping::Failed { killed, .. }) => {
                interrupted || failure.status == TERMINATED || (killed && failure.status == KILLED)
            }
            Some(Stopping::Killed { .. }) => true,
        }
    }

    /// The user asks to stop, for the first time or again.
    fn requested(&mut self, link: &Link) {
        if self.stopping.is_some() {
            self.kill(link);
            return;
        }
        self.stop_requested(link);
        link.report(|own| own.interrupted = true);
    }

    pub(super) fn stop_requested(&mut self, link: &Link) {
        self.stopping = Some(Stopping::Requested);
        self.signal_all(Signal::TERM);
        if link.leads() {
            link.give(Order::Stop);
        }
    }

    /// Ends all ranks because one has failed.
    pub(super) fn fail(&mut self, link: &Link, sentence: String) {
        if matches!(self.stopping, Some(Stopping::Failed { .. } | Stopping::Killed { .. })) {
            return;
        }
        self.stopping = Some(Stopping::Failed { since: Instant::now(), killed: false });
        self.signal_all(Signal::TERM);
        if link.leads() {
            link.give(Order::Fail(sentence));
        }
    }

    pub(super) fn kill(&mut self, link: &Link) {
        self.stopping = Some(Stopping::Killed { since: Instant::now() });
        self.signal_all(Signal::KILL);
        if link.leads() {
            link.give(Order::Kill);
        }
    }

    fn signal_all(&self, signal: Signal) {
        self.ranks.values().for_each(|rank| rank.signal(signal));
    }

    fn kill_when_due(&mut self) {
        if let Some(Stopping::Failed { since, killed }) = &mut self.stopping
            && !*killed
            && since.elapsed() >= GRACE
        {
            *killed = true;
            self.signal_all(Signal::KILL);
        }
    }

    /// All known failures: here, on machines that this launcher leads, and of machines.
    pub(super) fn failures(&self, link: &Link) -> Vec<Failure> {
        let mut failures = link.own_failures();
        for (node, heard) in link.heard().iter().enumerate() {
            let reported = heard.iter().flat_map(|heard| &heard.report.failures);
            failures.extend(reported.map(|failure| self.named(node, failure)));
        }
        failures.extend(self.node_failures.iter().map(|(_, failure)| failure.clone()));
        failures
    }

    fn outcome(&self, link: &Link) -> Outcome {
        let failures = self.failures(link);
        let cause = Failure::cause(&failures);
        // A consequence of a failure elsewhere is not reported again.
        let told = match link.order() {
            Some(Order::Fail(sentence)) if !link.leads() => Some(sentence),
            _ => None,
        };
        let failed = matches!(self.stopping, Some(Stopping::Failed { .. }));
        match (cause, told) {
            (Some(cause), told) if told.is_none() || !cause.is_about_others() => {
                Outcome { status: cause.status, text: self.with_logs(&cause.text()) }
            }
            (_, Some(sentence)) if failed => {
                let text = self.with_logs(&format!("stopped, since {sentence}\n"));
                Outcome { status: Code::Dist.exit_status(), text }
            }
            _ => self.interrupted_or_done(),
        }
    }

    /// How a run ended in which nothing failed.
    fn interrupted_or_done(&self) -> Outcome {
        let interrupted = Code::Interrupted.exit_status();
        if matches!(self.stopping, Some(Stopping::Killed { .. })) {
            return Outcome { status: interrupted, text: "killed\n".to_owned() };
        }
        let codes = self.ranks.values().filter_map(|rank| rank.ended?.code());
        let stopped = codes.into_iter().any(|code| code == i32::from(interrupted));
        Outcome { status: if stopped { interrupted } else { 0 }, text: String::new() }
    }

    /// A text below the line that says where everything stands.
    fn with_logs(&self, text: &str) -> String {
        let dir = self.logs.dir();
        let dir = dir.strip_prefix(Path::new(&self.launch.work_dir)).unwrap_or(&dir);
        format!("what each rank wrote: {}/rank-*.log\n{text}", dir.display())
    }
}
