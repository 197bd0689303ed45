//! From the start of the ranks to the end of the last.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{
    COMMAND, ERROR_FILE, Event, Events, Launch, Outcome, Report,
    cause::MemoryKills,
    failure::Failure,
    link::{Link, Order, sizes},
    logs::{Logs, Stream},
    process::Process,
    remote,
};
use crate::{
    dist::Board,
    error::{Code, IoContext, Result},
};

/// What the ranks have between SIGTERM and SIGKILL once one of them has failed.
const GRACE: Duration = Duration::from_secs(5);
/// How long another machine may take beyond that to say that its ranks have ended.
const NODE_GRACE: Duration = Duration::from_secs(3);
/// How long a machine may be silent, if the timeout is not shorter.
const SILENCE: Duration = Duration::from_secs(30);
/// How often the supervisor looks around.
const TICK: Duration = Duration::from_millis(50);
/// How many of the last lines of a way to another machine are shown when it fails.
const TAIL: usize = 8;

/// See [`super::run`].
pub(super) fn run(launch: &Launch, Events(inbox, events): Events) -> Result<Outcome> {
    let scratch = tempfile::tempdir().at("make a directory in", &std::env::temp_dir())?;
    let plan = &launch.plan;
    let master = plan.master.0.as_str();
    let (board, port) = match plan.node_rank {
        0 => Board::host((master, plan.master.1), plan.timeout)?,
        _ => (Board::join((master, plan.master.1), plan.timeout)?, plan.master.1),
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
    Ok(supervisor.outcome(&link))
}

struct Supervisor<'a> {
    launch: &'a Launch,
    logs: Arc<Logs>,
    /// Where the ranks leave their errors.
    scratch: PathBuf,
    events: Sender<Event>,
    port: u16,
    kills: MemoryKills,
    /// The ranks of this machine.
    ranks: BTreeMap<usize, Process>,
    /// The ways to other machines, by their number, with their last lines.
    ways: BTreeMap<usize, Way>,
    stopping: Option<Stopping>,
    /// What failed as a whole machine, as the leading launcher sees it.
    node_failures: Vec<(usize, Failure)>,
}

struct Way {
    process: Process,
    tail: Arc<Mutex<Vec<String>>>,
    ended_at: Option<Instant>,
}

/// Why and since when the ranks are being ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stopping {
    /// The user asked for it; they take the time they need to save.
    Requested,
    /// A rank has failed, here or elsewhere.
    Failed { since: Instant, killed: bool },
    /// They are being killed, on the user's second request.
    Killed { since: Instant },
}

impl Supervisor<'_> {
    /// Starts the launchers of the other machines.
    fn start_ways(&mut self) -> Result<()> {
        for (i, host) in self.launch.plan.others.iter().enumerate() {
            let node = i + 1;
            let command = remote::command(self.launch, node, host, self.port);
            let tail = Arc::new(Mutex::new(Vec::new()));
            let (logs, lines) = (Arc::clone(&self.logs), Arc::clone(&tail));
            let id = self.logs.open(format!("node-{node}.log"))?;
            let prefix = format!("[{}] ", host.name);
            let line = move |_, bytes: &[u8]| {
                logs.line(id, &prefix, bytes);
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                lines.push(String::from_utf8_lossy(bytes).trim_end().to_owned());
                if lines.len() > TAIL {
                    lines.remove(0);
                }
            };
            let ended = move |status| Event::Way(node, status);
            let process = Process::start(command, &self.events, line, ended)?;
            self.ways.insert(node, Way { process, tail, ended_at: None });
        }
        Ok(())
    }

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
            command.envs(self.variables(rank, local_rank, world_size));
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

    /// torchrun's variables for a rank, and dsr's.
    fn variables(&self, rank: usize, local: usize, world: usize) -> Vec<(&'static str, String)> {
        let plan = &self.launch.plan;
        let here = plan.here.slots.len();
        let mut variables = vec![
            ("RANK", rank.to_string()),
            ("WORLD_SIZE", world.to_string()),
            ("LOCAL_RANK", local.to_string()),
            ("LOCAL_WORLD_SIZE", here.to_string()),
            ("GROUP_RANK", plan.node_rank.to_string()),
            ("NODE_RANK", plan.node_rank.to_string()),
            ("GROUP_WORLD_SIZE", plan.nnodes.to_string()),
            ("MASTER_ADDR", plan.master.0.clone()),
            ("MASTER_PORT", self.port.to_string()),
            // The store is this launcher's, or the first machine's.
            ("TORCHELASTIC_USE_AGENT_STORE", "True".to_owned()),
            ("TORCHELASTIC_RESTART_COUNT", "0".to_owned()),
            ("TORCHELASTIC_MAX_RESTARTS", "0".to_owned()),
            (ERROR_FILE, self.error_file(rank).display().to_string()),
            ("DSR_TIMEOUT", plan.timeout.as_secs().to_string()),
            // A list of strings always has a JSON form.
            (COMMAND, serde_json::to_string(&self.launch.command).unwrap_or_default()),
        ];
        let is_set = |name: &str| self.launch.environment.iter().any(|(set, _)| set == name);
        if here > 1 && !is_set("OMP_NUM_THREADS") {
            variables.push(("OMP_NUM_THREADS", "1".to_owned()));
        }
        if let Some(devices) = &plan.devices {
            variables.push(("CUDA_VISIBLE_DEVICES", self.visible(devices)));
        }
        variables
    }

    /// The GPUs of these numbers among those that this process sees.
    fn visible(&self, devices: &[usize]) -> String {
        let environment = &self.launch.environment;
        let seen = environment.iter().find(|(name, _)| name == "CUDA_VISIBLE_DEVICES");
        let seen: Vec<&str> = seen.map_or_else(Vec::new, |(_, ids)| ids.split(',').collect());
        let names = devices.iter().map(|&device| match seen.get(device) {
            Some(name) => (*name).to_owned(),
            None => device.to_string(),
        });
        names.collect::<Vec<_>>().join(",")
    }

    fn error_file(&self, rank: usize) -> PathBuf {
        self.scratch.join(format!("rank-{rank}.json"))
    }

    /// Until all ranks have ended, here and elsewhere.
    fn watch(&mut self, link: &Link, inbox: &Receiver<Event>) {
        loop {
            match inbox.recv_timeout(TICK) {
                Ok(Event::Rank(rank, status)) => self.rank_ended(link, rank, status),
                Ok(Event::Way(node, status)) => {
                    if let Some(way) = self.ways.get_mut(&node) {
                        way.process.ended = Some(status);
                        way.ended_at = Some(Instant::now());
                    }
                }
                Ok(Event::Stop) => self.requested(link),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            if let Some(dir) = link.run_dir()
                && let Err(e) = self.logs.settle(&self.launch.work_dir.join(dir))
            {
                tracing::warn!("the logs stay in {}: {e}", self.logs.dir().display());
            }
            if link.leads() {
                self.look_at_nodes(link);
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
        self.end_ways();
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

    fn stop_requested(&mut self, link: &Link) {
        self.stopping = Some(Stopping::Requested);
        self.signal_all(Signal::TERM);
        if link.leads() {
            link.give(Order::Stop);
        }
    }

    /// Ends all ranks because one has failed.
    fn fail(&mut self, link: &Link, sentence: String) {
        if matches!(self.stopping, Some(Stopping::Failed { .. } | Stopping::Killed { .. })) {
            return;
        }
        self.stopping = Some(Stopping::Failed { since: Instant::now(), killed: false });
        self.signal_all(Signal::TERM);
        if link.leads() {
            link.give(Order::Fail(sentence));
        }
    }

    fn kill(&mut self, link: &Link) {
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

    /// The leading launcher's part: what the other machines report.
    fn look_at_nodes(&mut self, link: &Link) {
        let heard = link.heard();
        for (node, heard) in heard.iter().enumerate().skip(1) {
            if let Some(heard) = heard {
                if let Some(failure) = heard.report.failures.first() {
                    self.fail(link, self.named(node, failure).sentence());
                } else if heard.report.interrupted && self.stopping.is_none() {
                    self.stop_requested(link);
                }
            }
            let ended = heard.as_ref().is_some_and(|heard| heard.report.ended);
            let known = self.node_failures.iter().any(|(known, _)| *known == node);
            if ended || known {
                continue;
            }
            let silence = heard.as_ref().map(|heard| heard.silence());
            if let Some(failure) = self.node_failure(node, silence) {
                let sentence = failure.sentence();
                self.node_failures.push((node, failure));
                self.fail(link, sentence);
            }
        }
    }

    /// What is wrong with a machine whose ranks have not ended, if something is.
    fn node_failure(&self, node: usize, silence: Option<Duration>) -> Option<Failure> {
        let host = self.host(node);
        let limit = self.silence_limit();
        if let Some(way) = self.ways.get(&node)
            && let (Some(status), Some(at)) = (way.process.ended, way.ended_at)
            && at.elapsed() > Duration::from_secs(1)
        {
            let tail = way.tail.lock().unwrap_or_else(PoisonError::into_inner).join("\n     ");
            let how = format!(
                "could not be started, or its launcher died: {} ended ({status})",
                self.launch.ssh[0]
            );
            return Some(Failure::of_host(&host, how, (!tail.is_empty()).then_some(tail)));
        }
        let silence = silence.filter(|silence| *silence >= limit)?;
        let how = format!("has shown no sign of life for {} s", silence.as_secs());
        let hint = "the machine is down, or the network between".to_owned();
        Some(Failure::of_host(&host, how, Some(hint)))
    }

    /// Whether all other machines have ended, or are not waited for any more.
    fn nodes_ended(&self, link: &Link) -> bool {
        let given_up = match self.stopping {
            Some(Stopping::Failed { since, .. }) => since.elapsed() >= GRACE + NODE_GRACE,
            Some(Stopping::Killed { since }) => since.elapsed() >= NODE_GRACE,
            Some(Stopping::Requested) | None => false,
        };
        let mut others = link.heard().into_iter().enumerate().skip(1);
        given_up
            || others.all(|(node, heard)| {
                heard.is_some_and(|heard| heard.report.ended)
                    || self.node_failures.iter().any(|(known, _)| *known == node)
            })
    }

    /// Another launcher's part: what the first machine orders.
    fn follow(&mut self, link: &Link) {
        match link.order() {
            Some(Order::Stop) if self.stopping.is_none() => self.stop_requested(link),
            Some(Order::Fail(sentence)) => self.fail(link, sentence),
            Some(Order::Kill) if !matches!(self.stopping, Some(Stopping::Killed { .. })) => {
                self.kill(link);
            }
            _ => {}
        }
        if link.silence() >= self.silence_limit() && self.node_failures.is_empty() {
            let (address, _) = &self.launch.plan.master;
            let how = "does not answer any more".to_owned();
            let hint = "its launcher or the machine has ended, or the network between is down";
            let failure = Failure::of_host(address, how, Some(hint.to_owned()));
            let sentence = failure.sentence();
            self.node_failures.push((0, failure));
            self.fail(link, sentence);
        }
    }

    fn silence_limit(&self) -> Duration {
        SILENCE.min(self.launch.plan.timeout)
    }

    /// Ends what still leads to other machines.
    fn end_ways(&self) {
        let all_end = |end: Duration| {
            let end = Instant::now() + end;
            while self.ways.values().any(|way| !way.process.is_silent()) && Instant::now() < end {
                std::thread::sleep(TICK);
            }
        };
        all_end(NODE_GRACE);
        self.ways.values().for_each(|way| way.process.signal(Signal::TERM));
        all_end(NODE_GRACE);
        self.ways.values().for_each(|way| way.process.signal(Signal::KILL));
    }

    /// The name of a machine.
    fn host(&self, node: usize) -> String {
        match self.launch.plan.others.get(node.wrapping_sub(1)) {
            Some(host) => host.name.clone(),
            None => format!("machine {node}"),
        }
    }

    /// A failure of machine `node`, under the name that it has here.
    fn named(&self, node: usize, failure: &Failure) -> Failure {
        let mut failure = failure.clone();
        if let Some(host) = self.launch.plan.others.get(node.wrapping_sub(1)) {
            failure.host.clone_from(&host.name);
        }
        failure
    }

    fn outcome(&self, link: &Link) -> Outcome {
        let mut failures = link.own_failures();
        if link.leads() {
            for (node, heard) in link.heard().iter().enumerate() {
                let reported = heard.iter().flat_map(|heard| &heard.report.failures);
                failures.extend(reported.map(|failure| self.named(node, failure)));
            }
        }
        failures.extend(self.node_failures.iter().map(|(_, failure)| failure.clone()));
        if let Some(cause) = Failure::cause(&failures) {
            return Outcome { status: cause.status, text: self.with_logs(&cause.text()) };
        }
        let codes = self.ranks.values().filter_map(|rank| rank.ended?.code());
        let interrupted = i32::from(Code::Interrupted.exit_status());
        match self.stopping {
            Some(Stopping::Failed { .. }) => {
                let reason = match link.order() {
                    Some(Order::Fail(sentence)) => format!("stopped, since {sentence}\n"),
                    _ => "stopped, since another machine has failed\n".to_owned(),
                };
                Outcome { status: Code::Dist.exit_status(), text: self.with_logs(&reason) }
            }
            Some(Stopping::Killed { .. }) => {
                Outcome { status: Code::Interrupted.exit_status(), text: "killed\n".to_owned() }
            }
            _ => {
                let stopped = codes.into_iter().any(|code| code == interrupted);
                let status = if stopped { Code::Interrupted.exit_status() } else { 0 };
                Outcome { status, text: String::new() }
            }
        }
    }

    /// A text below the line that says where everything stands.
    fn with_logs(&self, text: &str) -> String {
        let dir = self.logs.dir();
        let dir = dir.strip_prefix(Path::new(&self.launch.work_dir)).unwrap_or(&dir);
        format!("what each rank wrote: {}/rank-*.log\n{text}", dir.display())
    }
}
