//! The failure that ended a run, from which the others follow.
//!
//! When a rank dies, the others fail too, as they wait for it; they may even be noticed first. What
//! counts is therefore not only the order: an error that has nothing to do with other ranks comes
//! before one that names a missing rank, and that one before a connection that merely broke.

use std::{fmt::Write, process::ExitStatus};

use serde::{Deserialize, Serialize};

use super::cause::{MemoryKills, Report, how, shell_status};
use crate::dist::RankPhase;

/// A rank, or a whole machine, that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Failure {
    /// The rank; `None` for a machine.
    pub(super) rank: Option<usize>,
    /// The machine.
    pub(super) host: String,
    /// Its end, as the end of a sentence.
    pub(super) how: String,
    /// The exit status as a shell gives it.
    pub(super) status: u8,
    /// The rank's own error.
    pub(super) report: Option<Report>,
    /// Further facts and remedies.
    pub(super) hint: Option<String>,
    /// The last state of the rank, for an error that is about other ranks.
    pub(super) phase: Option<RankPhase>,
}

impl Failure {
    /// A rank of `host` that has ended with `status`.
    pub(super) fn of_rank(
        (rank, host): (usize, &str),
        status: ExitStatus,
        report: Option<Report>,
        kills: MemoryKills,
    ) -> Self {
        let killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(9);
        let hint = killed.then(|| kills.hint().to_owned());
        let (how, status) = (how(status), shell_status(status));
        Self { rank: Some(rank), host: host.to_owned(), how, status, report, hint, phase: None }
    }

    /// A whole machine, or the way to it.
    pub(super) fn of_host(host: &str, how: String, hint: Option<String>) -> Self {
        let status = crate::error::Code::Dist.exit_status();
        Self { rank: None, host: host.to_owned(), how, status, report: None, hint, phase: None }
    }

    /// The rank, where what it said of itself would tell more.
    pub(super) fn lacks_phase(&self) -> Option<usize> {
        self.rank.filter(|_| self.is_about_others() && self.phase.is_none())
    }

    /// The failure from which the others follow; of equal ones the first.
    pub(super) fn cause(failures: &[Self]) -> Option<&Self> {
        failures.iter().min_by_key(|failure| failure.distance())
    }

    /// Whether the rank's error is about other ranks.
    pub(super) fn is_about_others(&self) -> bool {
        self.report.as_ref().is_some_and(Report::is_about_others)
    }

    /// How far it is from a cause.
    fn distance(&self) -> u8 {
        match (self.is_about_others(), self.phase) {
            (false, _) => 0,
            (true, Some(RankPhase::Disconnected)) => 2,
            (true, _) => 1,
        }
    }

    /// The sentence: who, where and what.
    pub(super) fn sentence(&self) -> String {
        match self.rank {
            Some(rank) => format!("rank {rank} on {} {}", self.host, self.how),
            None => format!("{} {}", self.host, self.how),
        }
    }

    /// The lines that end the launcher's output.
    pub(super) fn text(&self) -> String {
        let mut text = self.sentence();
        text.push_str(if self.report.is_some() { ":\n" } else { "\n" });
        if let Some(report) = &self.report {
            text.push_str(report.text.trim_end());
            text.push('\n');
        }
        if let Some(hint) = &self.hint {
            let _ = writeln!(text, "   = {hint}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(rank: usize, code: Option<&str>, phase: Option<RankPhase>) -> Failure {
        Failure {
            rank: Some(rank),
            host: "a".into(),
            how: "failed with exit status 7".into(),
            status: 7,
            report: code.map(|code| Report { code: code.into(), text: format!("error[{code}]\n") }),
            hint: None,
            phase,
        }
    }

    #[test]
    fn what_follows_from_a_failure_is_not_its_cause() {
        let lost = failed(0, Some("E901"), Some(RankPhase::Disconnected));
        let named = failed(1, Some("E901"), Some(RankPhase::Working));
        let unknown = failed(2, Some("E901"), None);
        let (own, killed) = (failed(3, Some("E401"), None), failed(4, None, None));
        let cause = |failures: &[&Failure]| {
            let all: Vec<_> = failures.iter().map(|f| (*f).clone()).collect();
            Failure::cause(&all).unwrap().rank.unwrap()
        };
        assert_eq!(cause(&[&lost, &named, &killed, &own]), 4);
        assert_eq!(cause(&[&lost, &own, &killed]), 3);
        assert_eq!(cause(&[&lost, &named, &unknown]), 1);
        assert_eq!(cause(&[&lost]), 0);
        assert_eq!(Failure::cause(&[]), None);
    }

    #[test]
    fn the_last_lines_name_rank_host_and_cause() {
        let text = failed(1, Some("E401"), None).text();
        assert_eq!(text, "rank 1 on a failed with exit status 7:\nerror[E401]\n");
        let hint = Some("see there".to_owned());
        let text = Failure::of_host("b", "is gone".into(), hint).text();
        assert_eq!(text, "b is gone\n   = see there\n");
    }
}
