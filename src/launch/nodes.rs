//! The supervisor's part for other machines: leading their launchers, or following one.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{
    Event,
    failure::Failure,
    link::{Link, Order},
    process::Process,
    remote,
    supervise::{GRACE, RemoteAgent, Stopping, Supervisor, TICK},
};
use crate::error::Result;

/// How long another machine may take beyond the grace to say that its ranks have ended.
const NODE_GRACE: Duration = Duration::from_secs(3);
/// How long a machine may be silent, if the timeout is not shorter.
const SILENCE: Duration = Duration::from_secs(30);
/// How long the last report of a machine may take once the way to it has ended.
const LAST_REPORT: Duration = Duration::from_secs(1);
/// How many of the last lines of a way to another machine are shown when it fails.
const TAIL: usize = 8;

impl Supervisor<'_> {
    /// Starts the launchers of the other machines.
    pub(super) fn start_ways(&mut self) -> Result<()> {
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
            let ended = move |status| Event::RemoteAgent(node, status);
            let process = Process::start(command, &self.events, line, ended)?;
            self.ways.insert(node, RemoteAgent { process, tail, ended_at: None });
        }
        Ok(())
    }

    /// The leading launcher's part: what the other machines report.
    pub(super) fn look_at_nodes(&mut self, link: &Link) {
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

    /// Tells the other machines the cause, which may come to light after what follows from it.
    pub(super) fn tell_cause(&self, link: &Link) {
        if matches!(self.stopping, Some(Stopping::Failed { .. }))
            && let Some(cause) = Failure::cause(&self.failures(link))
        {
            link.give(Order::Fail(cause.sentence()));
        }
    }

    /// The fault of a machine whose ranks have not ended, if there is one.
    fn node_failure(&self, node: usize, silence: Option<Duration>) -> Option<Failure> {
        let host = self.host(node);
        let limit = self.silence_limit();
        if let Some(way) = self.ways.get(&node)
            && let (Some(status), Some(at)) = (way.process.ended, way.ended_at)
            && at.elapsed() > LAST_REPORT
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
    pub(super) fn nodes_ended(&self, link: &Link) -> bool {
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
    pub(super) fn follow(&mut self, link: &Link) {
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
    pub(super) fn end_ways(&self) {
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
    pub(super) fn named(&self, node: usize, failure: &Failure) -> Failure {
        let mut failure = failure.clone();
        if let Some(host) = self.launch.plan.others.get(node.wrapping_sub(1)) {
            failure.host.clone_from(&host.name);
        }
        failure
    }
}
