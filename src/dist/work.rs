//! A collective that was started and is not waited for yet.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    backend::Started,
    rank::Rank,
    rank_state::{Call, RankPhase},
    watch::Watch,
};
use crate::error::{Code, Error, Result};

/// How often a rank that waits looks at what is known of the others.
const SLICE: Duration = Duration::from_secs(1);

/// A collective that runs beside the caller, so that communication overlaps with computation. It
/// keeps its tensors alive; until [`Work::wait`] returns they must not be written, and what is
/// received must not be read.
///
/// Dropping it does not stop the transfer: the other ranks count on it.
#[must_use = "the result of a collective may be used only after `wait`"]
pub struct Work {
    pub(super) inner: Started,
    pub(super) operation: &'static str,
    pub(super) place: Rank,
    pub(super) watched: Option<Watched>,
}

/// A collective that the other ranks are told of.
pub(super) struct Watched {
    pub(super) watch: Arc<Watch>,
    pub(super) call: Call,
    /// The ranks of the group.
    pub(super) members: Arc<[usize]>,
}

impl Work {
    /// Returns when the result can be used: on the CPU when it is there, on CUDA when every later
    /// operation of the current stream is ordered after it.
    ///
    /// # Errors
    /// [`Code::Dist`] when another rank has left or did not take part
    /// within the timeout, naming it where it is known.
    pub fn wait(self) -> Result<()> {
        let Some(watched @ Watched { watch, call, members }) = &self.watched else {
            while !self.inner.wait(SLICE).map_err(|e| self.place.failed(self.operation, e))? {}
            return Ok(());
        };
        watch.waits(call);
        let mut asked = None;
        let result = loop {
            match self.inner.wait(SLICE) {
                Ok(true) => break Ok(()),
                Ok(false) => {
                    if let Some(who) = watch.who_never_comes(call, members) {
                        watch.abandons();
                        break Err(self.never(call, &who));
                    }
                    if let Some(e) = Self::held_up(watched, &mut asked) {
                        watch.abandons();
                        break Err((e, RankPhase::Working));
                    }
                }
                Err(e) => break Err(self.explain(watched, e)),
            }
        };
        watch.waited();
        if result.as_ref().is_err_and(|(_, phase)| *phase == RankPhase::Disconnected) {
            watch.close(RankPhase::Disconnected);
        }
        result.map_err(|(e, _)| e)
    }

    /// Whether the transfer is over, well or not. An average is only complete after
    /// [`Work::wait`].
    pub fn is_completed(&self) -> Result<bool> {
        self.inner.is_completed().map_err(|e| self.place.failed(self.operation, e))
    }

    /// The error where the user wants no more, and others keep this rank here. `asked` is when that was seen
    /// first.
    fn held_up(
        Watched { watch, call, members }: &Watched,
        asked: &mut Option<Instant>,
    ) -> Option<Error> {
        if !watch.stops() {
            return None;
        }
        let since = asked.get_or_insert_with(Instant::now).elapsed();
        watch.refresh();
        let who = watch.who_holds_up(call, members, since)?;
        Some(Error::new(Code::Interrupted, format!("stopped while waiting for {call}: {who}")))
    }

    /// The error where `who` can never take part.
    fn never(&self, call: &Call, who: &str) -> (Error, RankPhase) {
        let what = format!("{who}, and does not take part in {call}");
        let failed = self.place.failed(self.operation, Error::new(Code::Dist, what));
        let failed = failed.hint(
            "every rank must call the same collectives: whether a step, a save or an evaluation \
             is done must not depend on the rank",
        );
        (failed, RankPhase::Working)
    }

    /// The error for what the transport says, with who is missing.
    fn explain(&self, Watched { watch, call, members }: &Watched, e: Error) -> (Error, RankPhase) {
        if e.code() == Code::Memory {
            return (e, RankPhase::Working);
        }
        watch.refresh();
        if let Some(who) = watch.who_never_comes(call, members) {
            return self.never(call, &who);
        }
        let text = e.message().to_lowercase();
        let (what, phase) = if text.contains("timed out") || text.contains("timeout") {
            let what = match watch.who_is_missing(call, members).as_str() {
                "" => format!("{call} timed out, though all ranks take part: {e}"),
                who => format!("{call} timed out: {who}"),
            };
            (what, RankPhase::Working)
        } else {
            let what = format!("the connection to another rank is lost: {}", reason(e.message()));
            (what, RankPhase::Disconnected)
        };
        let failed = self.place.failed(self.operation, Error::new(Code::Dist, what));
        (failed.caused_by(e), phase)
    }
}

/// The transport's message, without the place in its source and its advice.
fn reason(message: &str) -> &str {
    let message = match message.split_once("] ") {
        Some((place, rest)) if place.starts_with('[') => rest,
        _ => message,
    };
    message.split(". ").next().unwrap_or(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_sentence() {
        let gloo = "[/src/gloo/transport/tcp/pair.cc:553] Connection closed by peer \
                    [127.0.0.1]:30637. This is typically caused by a remote worker crashing. GLHF!";
        assert_eq!(reason(gloo), "Connection closed by peer [127.0.0.1]:30637");
        assert_eq!(reason("NCCL error: unhandled"), "NCCL error: unhandled");
    }
}
