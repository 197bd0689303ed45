//! The wall clock of a step's phases: DeepSpeed's `wall_clock_breakdown`.
//!
//! Off unless asked for, since a time on a device has a meaning only when the device has done all
//! that it was given, and waiting for that costs speed.

use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use crate::{
    error::Result,
    tensor::{Device, guard, synchronize},
};

/// The time of each phase of an optimizer step on this rank, summed over its micro batches.
///
/// As data they are numbers of milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PhaseTimes {
    /// Forward passes.
    #[serde(rename = "forward_ms", serialize_with = "milliseconds")]
    pub forward: Duration,
    /// Backward passes, without exchanging gradients.
    #[serde(rename = "backward_ms", serialize_with = "milliseconds")]
    pub backward: Duration,
    /// Summing losses and gradients over the ranks, waiting for the slowest one included.
    #[serde(rename = "reduce_ms", serialize_with = "milliseconds")]
    pub reduce: Duration,
    /// Norm, clipping and optimizer.
    #[serde(rename = "step_ms", serialize_with = "milliseconds")]
    pub step: Duration,
    /// The time that the loader took to make the batches.
    #[serde(rename = "data_ms", serialize_with = "milliseconds")]
    pub data: Duration,
}

fn milliseconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64() * 1e3)
}

/// A part of a step that is timed while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepPhase {
    Forward,
    Backward,
    Reduce,
    Step,
}

/// Times one phase at a time, and adds up those of a step.
#[derive(Debug)]
pub(super) struct Timers {
    /// `None` where nothing is timed.
    device: Option<Device>,
    running: Option<(StepPhase, Instant)>,
    times: PhaseTimes,
}

impl Timers {
    /// Timers of what runs on `device`.
    pub(super) fn new(device: Device, is_on: bool) -> Self {
        Self { device: is_on.then_some(device), running: None, times: PhaseTimes::default() }
    }

    /// Ends the phase that runs, if one does, and begins another.
    pub(super) fn start(&mut self, phase: StepPhase) -> Result<()> {
        self.stop()?;
        self.running = self.now()?.map(|now| (phase, now));
        Ok(())
    }

    /// Ends the phase that runs, if one does.
    pub(super) fn stop(&mut self) -> Result<()> {
        let Some((phase, began)) = self.running.take() else { return Ok(()) };
        if let Some(now) = self.now()? {
            *self.sum(phase) += now - began;
        }
        Ok(())
    }

    /// Forgets the phase that runs: it failed.
    pub(super) fn discard(&mut self) {
        self.running = None;
    }

    /// Forgets all that was measured.
    pub(super) fn reset(&mut self) {
        self.running = None;
        self.times = PhaseTimes::default();
    }

    /// Adds what the loader took.
    pub(super) fn add_data(&mut self, took: Duration) {
        self.times.data += took;
    }

    /// The sums since the last call; `None` where nothing is timed.
    pub(super) fn take(&mut self) -> Option<PhaseTimes> {
        let times = std::mem::take(&mut self.times);
        self.device.map(|_| times)
    }

    fn sum(&mut self, phase: StepPhase) -> &mut Duration {
        match phase {
            StepPhase::Forward => &mut self.times.forward,
            StepPhase::Backward => &mut self.times.backward,
            StepPhase::Reduce => &mut self.times.reduce,
            StepPhase::Step => &mut self.times.step,
        }
    }

    /// The time when the device has done all that it was given.
    fn now(&self) -> Result<Option<Instant>> {
        let Some(device) = self.device else { return Ok(None) };
        guard("synchronize", || {
            synchronize(device);
            Ok(())
        })?;
        Ok(Some(Instant::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_goes_from_its_start_to_the_next_one() {
        let mut timers = Timers::new(Device::Cpu, true);
        let pause = Duration::from_millis(2);
        timers.start(StepPhase::Reduce).unwrap();
        std::thread::sleep(pause);
        timers.start(StepPhase::Step).unwrap();
        timers.stop().unwrap();
        timers.start(StepPhase::Forward).unwrap();
        timers.discard();
        timers.stop().unwrap();
        timers.add_data(pause);
        timers.add_data(pause);
        let times = timers.take().unwrap();
        assert!(times.reduce >= pause, "{times:?}");
        assert_eq!((times.forward, times.backward), (Duration::ZERO, Duration::ZERO));
        assert_eq!(times.data, 2 * pause);
        assert_eq!(timers.take(), Some(PhaseTimes::default()));
    }

    #[test]
    fn timers_that_are_off_measure_nothing() {
        let mut timers = Timers::new(Device::Cpu, false);
        timers.start(StepPhase::Forward).unwrap();
        timers.stop().unwrap();
        assert_eq!(timers.take(), None);
    }
}
