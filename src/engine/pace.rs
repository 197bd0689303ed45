//! The speed of the recent steps, for whoever decides by it while training.
//!
//! A step's time is that from its first forward pass to its end, and the loading of its first micro
//! batch. What lies between two steps (an evaluation, a checkpoint, the user's thoughts) is left out.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// How many steps the speed is taken from: as many as the progress line does.
const WINDOW: usize = 20;

/// The recent steps.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The start of the step that is under way.
    began: Option<(Instant, Duration)>,
    recent: VecDeque<StepCost>,
}

/// The time of a step, and what it did.
#[derive(Debug, Clone, Copy)]
struct StepCost {
    time: Duration,
    tokens: u64,
    flops: f64,
}

impl Pace {
    /// A step begins at `now`, whose first micro batch took `loading`.
    pub(super) fn begin(&mut self, now: Instant, loading: Duration) {
        self.began = Some((now, loading));
    }

    /// The step that has begun ends at `now`.
    pub(super) fn end(&mut self, now: Instant, tokens: u64, flops: f64) {
        let Some((began, loading)) = self.began.take() else { return };
        let time = now.saturating_duration_since(began) + loading;
        self.recent.push_back(StepCost { time, tokens, flops });
        if self.recent.len() > WINDOW {
            self.recent.pop_front();
        }
    }

    /// Tokens and operations a second; `None` before the first step.
    pub(super) fn per_second(&self) -> Option<(f64, f64)> {
        let seconds: f64 = self.recent.iter().map(|step| step.time.as_secs_f64()).sum();
        let tokens: u64 = self.recent.iter().map(|step| step.tokens).sum();
        let flops: f64 = self.recent.iter().map(|step| step.flops).sum();
        (seconds > 0.0).then(|| (tokens as f64 / seconds, flops / seconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_between_steps_is_left_out() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::default();
        assert_eq!(pace.per_second(), None);
        // Two steps of four seconds, one of them of loading, with an hour between them.
        for begin in [0, 3600] {
            pace.begin(at(begin), Duration::from_secs(1));
            pace.end(at(begin + 3), 100, 4e9);
        }
        assert_eq!(pace.per_second(), Some((25.0, 1e9)));
        // The speed follows the recent steps.
        for begin in (5000..).step_by(10).take(WINDOW) {
            pace.begin(at(begin), Duration::ZERO);
            pace.end(at(begin + 1), 100, 4e9);
        }
        assert_eq!(pace.per_second(), Some((100.0, 4e9)));
    }
}
