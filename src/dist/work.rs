//! A collective that was started and is not waited for yet.

use std::{sync::Arc, time::Duration};

use super::{
    group::Place,
    watch::{Call, Phase, Watch},
};
use crate::{
    bridge,
    error::{Code, Error, Result},
};

/// How often a rank that waits looks at what is known of the others.
const SLICE: Duration = Duration::from_secs(1);

/// A collective that runs beside the caller, so that communication overlaps with computation. It
/// keeps its tensors alive; until [`Work::wait`] returns they must not be written, and what is
/// received must not be read.
///
/// Dropping it does not stop the transfer: the other ranks count on it.
#[must_use = "the result of a collective may be used only after `wait`"]
pub struct Work {
    pub(super) inner: bridge::dist::Work,
    pub(super) operation: &'static str,
    pub(super) place: Place,
    pub(super) watched: Option<(Arc<Watch>, Call)>,
}

impl Work {
    /// Returns when the result can be used: on the CPU when it is there, on CUDA when every later
    /// operation of the current stream is ordered after it.
    ///
    /// # Errors
    /// [`Code::Dist`](crate::error::Code::Dist) when another rank has left or did not take part
    /// within the timeout, naming it where it is known.
    pub fn wait(self) -> Result<()> {
        let Some((watch, call)) = &self.watched else {
            while !self.inner.wait(SLICE).map_err(|e| self.place.failed(self.operation, e))? {}
            return Ok(());
        };
        watch.waits(call);
        let result = loop {
            match self.inner.wait(SLICE) {
                Ok(true) => break Ok(()),
                Ok(false) => {
                    if let Some(who) = watch.who_never_comes(call) {
                        break Err(self.never(call, &who));
                    }
                }
                Err(e) => break Err(self.explain(watch, call, e)),
            }
        };
        watch.waited();
        if result.as_ref().is_err_and(|(_, phase)| *phase == Phase::Disconnected) {
            watch.close(Phase::Disconnected);
        }
        result.map_err(|(e, _)| e)
    }

    /// Whether the transfer is over, well or not. An average is only complete after
    /// [`Work::wait`].
    ///
    /// # Errors
    /// [`Code::Dist`](crate::error::Code::Dist) when the state cannot be asked for.
    pub fn is_completed(&self) -> Result<bool> {
        self.inner.is_completed().map_err(|e| self.place.failed(self.operation, e))
    }

    /// The error where `who` can never take part.
    fn never(&self, call: &Call, who: &str) -> (Error, Phase) {
        let what = format!("{who}, and does not take part in {call}");
        let e = self.place.failed(self.operation, Error::new(Code::Dist, what));
        (e.hint("every rank must call the same collectives: no step, save or evaluation may depend on the rank"), Phase::Working)
    }

    /// The error for what the transport says, with who is missing.
    fn explain(&self, watch: &Watch, call: &Call, e: Error) -> (Error, Phase) {
        watch.refresh();
        if let Some(who) = watch.who_never_comes(call) {
            return self.never(call, &who);
        }
        let text = e.message().to_lowercase();
        if !text.contains("timed out") && !text.contains("timeout") {
            return (self.place.failed(self.operation, e), Phase::Disconnected);
        }
        let missing = watch.who_is_missing(call);
        let what = match missing.as_str() {
            "" => format!("{call} timed out, though all ranks take part: {e}"),
            who => format!("{call} timed out: {who}"),
        };
        let failed = self.place.failed(self.operation, Error::new(Code::Dist, what));
        (failed.caused_by(e), Phase::Working)
    }
}
