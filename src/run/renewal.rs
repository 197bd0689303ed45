//! When the curve of a run is drawn anew while the run goes on: every 20 seconds, and for at most a
//! hundredth of the time.

use std::time::{Duration, Instant};

use crate::error::Result;

/// After how long the curve is drawn anew at the earliest.
const RENEWED_AFTER: Duration = Duration::from_secs(20);

/// The last drawing of a curve.
#[derive(Debug, Default)]
pub(super) struct Renewal {
    /// When it was, since the start.
    at: Duration,
    /// How long it took.
    took: Duration,
}

impl Renewal {
    /// Draws where it is time for it; returns how long that took by `clock`.
    pub(super) fn renew(
        &mut self,
        elapsed: Duration,
        clock: impl Fn() -> Instant,
        draw: impl FnOnce() -> Result<()>,
    ) -> Result<Duration> {
        if elapsed.saturating_sub(self.at) < RENEWED_AFTER.max(100 * self.took) {
            return Ok(Duration::ZERO);
        }
        let began = clock();
        draw()?;
        (self.at, self.took) = (elapsed, clock().saturating_duration_since(began));
        Ok(self.took)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::run::{LineInterval, RunDir, RunLog, meter::tests::report};

    /// The seconds of a run at which its curve is drawn, where drawing takes so many milliseconds.
    fn drawn(seconds: u64, takes: u64) -> Vec<u64> {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::create(root.path(), "a").unwrap();
        let mut log = RunLog::open(&dir, None, LineInterval::Never).unwrap();
        let now = Cell::new(Instant::now());
        let mut renewal = Renewal::default();
        let mut found = Vec::new();
        for second in 1..=seconds {
            log.on_step(&report(second, second)).unwrap();
            let draw = || {
                now.set(now.get() + Duration::from_millis(takes));
                log.finish().map(drop)
            };
            let took = renewal.renew(Duration::from_secs(second), || now.get(), draw).unwrap();
            let svg = dir.loss_svg();
            if svg.exists() {
                assert_eq!(took, Duration::from_millis(takes));
                found.push(second);
                svg.remove_file().unwrap();
            } else {
                assert_eq!(took, Duration::ZERO);
            }
        }
        found
    }

    #[test]
    fn the_curve_is_drawn_every_twenty_seconds() {
        assert_eq!(drawn(65, 5), [20, 40, 60]);
    }

    #[test]
    fn a_curve_that_takes_long_is_drawn_less_often() {
        assert_eq!(drawn(130, 500), [20, 70, 120]);
    }

    #[test]
    fn a_curve_that_cannot_be_drawn_is_an_error_and_is_tried_again() {
        let mut renewal = Renewal::default();
        let late = Duration::from_secs(30);
        let failed = || bail!(crate::error::Code::DiskFull, "the disk is full");
        assert!(renewal.renew(late, Instant::now, failed).is_err());
        let tried = Cell::new(false);
        let note = || {
            tried.set(true);
            Ok(())
        };
        renewal.renew(late, Instant::now, note).unwrap();
        assert!(tried.get());
    }
}
