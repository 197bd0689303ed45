//! The state of a rank as it is published to the others: its activity, and its last collective.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// The two ends of a transfer.
pub(super) const SEND: &str = "send";
pub(super) const RECEIVE: &str = "recv";

/// A collective: its number among those that a rank has started in a group, from 1, and its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The number.
    pub number: u64,
    /// The name.
    pub name: String,
    /// The group, as its ranks call it; empty for that of all ranks.
    #[serde(default)]
    pub group: String,
}

impl Call {
    /// Whether another rank of the group that makes `other` takes part in this.
    fn is_met_by(&self, other: &Self) -> bool {
        let is_transfer = |call: &Self| [SEND, RECEIVE].contains(&call.name.as_str());
        self.name == other.name || is_transfer(self) && is_transfer(other)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} #{}", self.name, self.number)?;
        if self.group.is_empty() { Ok(()) } else { write!(f, " of {}", self.group) }
    }
}

/// The activity of a rank when it last published its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RankPhase {
    /// It computes, or reads data.
    Working,
    /// It waits for a collective.
    Waiting,
    /// It has left the group.
    Ended,
    /// Its connection to another rank broke, so that its failure follows from that one's.
    Disconnected,
}

/// The state that a rank publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankState {
    /// Its activity.
    pub phase: RankPhase,
    /// The collective that it waits for; else the last one that it started.
    pub call: Option<Call>,
    /// How many collectives it has started in each of its groups.
    pub started: BTreeMap<String, u64>,
    /// A number that grows while the process lives.
    pub beat: u64,
    /// Whether its user wants it to stop.
    #[serde(default)]
    pub stops: bool,
}

impl RankState {
    /// The key of a rank's state in the store of its group.
    pub(super) fn key(rank: usize) -> String {
        format!("state/{rank}")
    }

    /// The state in the form in which it is stored; `None` for what is none.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// How many collectives it has started in the group of `call`.
    pub(super) fn started_beside(&self, call: &Call) -> u64 {
        self.started.get(&call.group).copied().unwrap_or(0)
    }

    /// Whether this rank, of the group of `call`, can never take part in it.
    pub(super) fn never_comes(&self, call: &Call) -> bool {
        let elsewhere = self.call.as_ref().is_some_and(|theirs| {
            theirs.group == call.group && theirs.number == call.number && !theirs.is_met_by(call)
        });
        match self.phase {
            RankPhase::Ended => self.started_beside(call) < call.number,
            RankPhase::Waiting => elsewhere,
            RankPhase::Working | RankPhase::Disconnected => false,
        }
    }

    /// The activity of the rank, as the second half of a sentence about it.
    pub(super) fn words(&self) -> String {
        let call = self.call.as_ref();
        let last = |word: &str| call.map_or_else(String::new, |call| format!(" {word} {call}"));
        match (self.phase, call) {
            (RankPhase::Waiting, Some(call)) => format!("is in {call}"),
            (RankPhase::Ended, _) => format!("has ended{}", last("after")),
            (RankPhase::Disconnected, _) => format!("has lost its connections{}", last("after")),
            (RankPhase::Working | RankPhase::Waiting, _) => {
                format!("has not come{}", last("since"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: u64, name: &str) -> Call {
        Call { number, name: name.to_owned(), group: String::new() }
    }

    fn state(phase: RankPhase, number: u64, name: &str) -> RankState {
        let started = BTreeMap::from([(String::new(), number)]);
        RankState { phase, call: Some(call(number, name)), started, beat: 1, stops: false }
    }

    /// Each group has numbers of its own: of a rank that waits in another one nothing follows.
    #[test]
    fn a_rank_that_waits_in_another_group_may_still_come() {
        let of = |group: &str, call: Call| Call { group: group.to_owned(), ..call };
        let mine = of("tp", call(7, "all_reduce"));
        let there = |theirs: Call, phase| RankState {
            call: Some(theirs),
            started: BTreeMap::from([("tp".to_owned(), 6), (String::new(), 9)]),
            ..state(phase, 0, "")
        };
        let received = of("stage 0 to stage 1", call(7, "recv"));
        assert!(!there(received.clone(), RankPhase::Waiting).never_comes(&mine));
        assert!(there(received.clone(), RankPhase::Ended).never_comes(&mine));
        assert!(there(of("tp", call(7, "barrier")), RankPhase::Waiting).never_comes(&mine));
        let sent = of("stage 0 to stage 1", call(7, "send"));
        assert!(!there(received, RankPhase::Waiting).never_comes(&sent));
        assert_eq!(mine.to_string(), "all_reduce #7 of tp");
    }

    #[test]
    fn a_rank_that_ended_or_is_elsewhere_never_comes() {
        let mine = call(12, "all_reduce");
        let cases = [
            (state(RankPhase::Ended, 11, "barrier"), true, "has ended after barrier #11"),
            (state(RankPhase::Ended, 12, "all_reduce"), false, "has ended after all_reduce #12"),
            (state(RankPhase::Waiting, 12, "barrier"), true, "is in barrier #12"),
            (state(RankPhase::Waiting, 12, "all_reduce"), false, "is in all_reduce #12"),
            // Its last state may be old.
            (state(RankPhase::Waiting, 11, "barrier"), false, "is in barrier #11"),
            (state(RankPhase::Working, 11, "barrier"), false, "has not come since barrier #11"),
        ];
        for (state, never, words) in cases {
            assert_eq!((state.never_comes(&mine), state.words().as_str()), (never, words));
        }
    }

    #[test]
    fn a_state_survives_the_store() {
        let state = state(RankPhase::Waiting, 3, "barrier");
        assert_eq!(RankState::parse(&serde_json::to_vec(&state).unwrap()), Some(state));
        assert_eq!(RankState::parse(b"?"), None);
    }
}
