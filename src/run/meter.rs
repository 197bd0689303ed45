//! Speed, memory and the time left, from the steps as they are done.
//!
//! The speed shown is that of the last [`WINDOW`] steps, so that it follows a change within
//! seconds and does not jump with each step. Time spent beside training (evaluation, saving) is
//! left out of the speed and kept in the time left.

use std::{
    collections::VecDeque,
    fmt,
    time::{Duration, Instant},
};

use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::{
    engine::{MemoryUse, PhaseTimes, Skip},
    units::{Bytes, Count, proc_bytes},
};

/// How many steps the shown speed is taken from.
const WINDOW: usize = 20;

/// The values of a step that the training loop knows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepValues {
    /// Optimizer steps done, this one included.
    pub step: u64,
    /// The step's mean loss.
    pub loss: f64,
    /// The learning rate that the step used.
    pub lr: f64,
    /// The gradient's norm before clipping, where it was computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_norm: Option<f64>,
    /// The loss scale that the step used; only with fp16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
    /// The reason why the step was skipped, where it was.
    #[serde(flatten, serialize_with = "skip")]
    pub skipped: Option<Skip>,
    /// Tokens of the step, over all ranks.
    pub tokens: u64,
    /// The model's floating-point operations of the step, over all ranks.
    #[serde(skip)]
    pub flops: f64,
    /// The peak operations a second of all ranks' devices, where that is known.
    #[serde(skip)]
    pub peak_flops: Option<f64>,
    /// The most bytes that libtorch has taken from the device, where it is not the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_bytes: Option<u64>,
    /// This rank's memory by kind at the peak so far.
    #[serde(skip)]
    pub memory_use: MemoryUse,
    /// The times of the step's phases, where they were measured.
    #[serde(flatten)]
    pub phases: Option<PhaseTimes>,
}

/// A step with what the meter adds. Its `Display` is the progress line; as JSON it is a line of
/// `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepReport {
    /// The values that the training loop knows.
    #[serde(flatten)]
    pub values: StepValues,
    /// The last step of the run, where it is known.
    #[serde(skip)]
    pub total_steps: Option<u64>,
    /// Tokens a second over the recent steps.
    pub tokens_per_second: f64,
    /// The model's floating-point operations a second over the recent steps.
    pub flops_per_second: f64,
    /// The model FLOPs utilization: their share of what the devices are capable of, where that is
    /// known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Tokens a second since the start of this process.
    #[serde(skip)]
    pub tokens_per_second_overall: f64,
    /// Since the start of this process.
    #[serde(rename = "elapsed_s", serialize_with = "seconds")]
    pub elapsed: Duration,
    /// Until the last step, where that is known.
    #[serde(skip)]
    pub left: Option<Duration>,
    /// Of this process, where the system tells.
    #[serde(flatten)]
    pub memory: Option<Memory>,
}

/// Host memory of this process in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// In use now.
    #[serde(rename = "resident_bytes")]
    pub resident: u64,
    /// The most that was ever in use.
    #[serde(rename = "peak_bytes")]
    pub peak: u64,
}

fn seconds<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// A skipped step as `skipped`, with the z-score that it was skipped for.
fn skip<S: Serializer>(skip: &Option<Skip>, serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(None)?;
    if skip.is_some() {
        map.serialize_entry("skipped", &true)?;
    }
    match skip {
        Some(Skip::Loss(z)) => map.serialize_entry("loss_zscore", z)?,
        Some(Skip::GradNorm(z)) => map.serialize_entry("grad_norm_zscore", z)?,
        Some(Skip::NotFinite) | None => {}
    }
    map.end()
}

/// The tokens and operations of steps.
#[derive(Debug, Clone, Copy, Default)]
struct StepCounts {
    tokens: u64,
    flops: f64,
}

/// Measures a run.
#[derive(Debug)]
pub struct Meter {
    total_steps: Option<u64>,
    start: Instant,
    /// Time beside training since the start.
    paused: Duration,
    /// Since the start.
    done: StepCounts,
    /// Training time and what was done at the end of the recent steps, before them one more.
    recent: VecDeque<(Duration, StepCounts)>,
}

impl Meter {
    /// Starts at `now`; `total_steps` is the number of the run's last step.
    pub fn start(total_steps: Option<u64>, now: Instant) -> Self {
        let done = StepCounts::default();
        let recent = VecDeque::from([(Duration::ZERO, done)]);
        Self { total_steps, start: now, paused: Duration::ZERO, done, recent }
    }

    /// Leaves time that was not training (an evaluation, a checkpoint) out of the speed.
    pub fn exclude(&mut self, pause: Duration) {
        self.paused += pause;
    }

    /// Takes note of a step that ended at `now`.
    pub fn report(&mut self, values: StepValues, now: Instant) -> StepReport {
        let elapsed = now.saturating_duration_since(self.start);
        let training = elapsed.saturating_sub(self.paused);
        self.done.tokens += values.tokens;
        self.done.flops += values.flops;
        let StepCounts { tokens, flops } = self.done;
        let (before, done_before) = self.recent[0];
        let steps = self.recent.len() as f64;
        let recent = training.saturating_sub(before).as_secs_f64();
        self.recent.push_back((training, self.done));
        if self.recent.len() > WINDOW {
            self.recent.pop_front();
        }
        let left = self.total_steps.map(|total| {
            // Evaluations and checkpoints will take the share of the time that they took so far.
            let share = per_second(elapsed.as_secs_f64(), training.as_secs_f64()).max(1.0);
            let steps_left = total.saturating_sub(values.step) as f64;
            Duration::try_from_secs_f64(steps_left * recent / steps * share)
                .unwrap_or(Duration::MAX)
        });
        let flops_per_second = per_second(flops - done_before.flops, recent);
        StepReport {
            values,
            total_steps: self.total_steps,
            tokens_per_second: per_second((tokens - done_before.tokens) as f64, recent),
            flops_per_second,
            mfu: values.peak_flops.map(|peak| flops_per_second / peak),
            tokens_per_second_overall: per_second(tokens as f64, training.as_secs_f64()),
            elapsed,
            left,
            memory: Memory::of_process(),
        }
    }
}

impl Memory {
    /// The memory of this process now; `None` where the system does not tell.
    pub fn of_process() -> Option<Self> {
        Self::parse(&crate::fs::read_to_string("/proc/self/status").ok()?)
    }

    /// Reads `VmRSS` and `VmHWM`, in kB, out of the text of `/proc/self/status`.
    fn parse(status: &str) -> Option<Self> {
        let bytes = |key| proc_bytes(status, key);
        Some(Self { resident: bytes("VmRSS:")?, peak: bytes("VmHWM:")? })
    }
}

impl fmt::Display for StepReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StepValues { step, loss, lr, grad_norm, loss_scale, skipped, device_bytes, .. } =
            self.values;
        write!(f, "step {step}")?;
        if let Some(total) = self.total_steps {
            write!(f, "/{total}")?;
        }
        write!(f, "  loss {loss:.3}  lr {lr:.1e}")?;
        if let Some(norm) = grad_norm {
            write!(f, "  |g| {norm:.2}")?;
        }
        write!(f, "  {} tok/s", Count(self.tokens_per_second))?;
        write!(f, "  {}", Flops(self.flops_per_second))?;
        if let Some(mfu) = self.mfu {
            write!(f, "  MFU {:.1}%", 100.0 * mfu)?;
        }
        if let Some(memory) = self.memory {
            write!(f, "  {}", Bytes(memory.resident))?;
        }
        if let Some(bytes) = device_bytes {
            write!(f, "  device {}", Bytes(bytes))?;
        }
        if let Some(left) = self.left.filter(|left| !left.is_zero()) {
            write!(f, "  {} left", Elapsed(left))?;
        }
        match skipped {
            None => Ok(()),
            Some(Skip::Loss(z)) => write!(f, "  skipped: the loss has the z-score {z:.1}"),
            Some(Skip::GradNorm(z)) => {
                write!(f, "  skipped: the gradient's norm has the z-score {z:.1}")
            }
            Some(Skip::NotFinite) => {
                f.write_str("  skipped: a gradient is not finite")?;
                loss_scale.map_or(Ok(()), |scale| write!(f, " at loss scale {scale}"))
            }
        }
    }
}

/// Operations a second as people read them: `310.0 MFLOP/s`, `41.2 TFLOP/s`.
struct Flops(f64);

impl fmt::Display for Flops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(f64, char); 3] = [(1e15, 'P'), (1e12, 'T'), (1e9, 'G')];
        // A value that rounds to 1000.0 of a unit is 1.0 of the next.
        let of = |(unit, letter): (f64, char)| (self.0 / unit, letter);
        let (value, letter) = UNITS
            .map(of)
            .into_iter()
            .find(|(value, _)| *value >= 0.99995)
            .unwrap_or((self.0 / 1e6, 'M'));
        write!(f, "{value:.1} {letter}FLOP/s")
    }
}

/// A time as people read it: `45s`, `2m10s`, `1h05m`, `3d04h`.
#[derive(Debug, Clone, Copy)]
pub struct Elapsed(pub Duration);

impl fmt::Display for Elapsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
        match seconds {
            0..60 => write!(f, "{seconds}s"),
            60..3600 => write!(f, "{minutes}m{:02}s", seconds % 60),
            3600..86400 => write!(f, "{hours}h{:02}m", minutes % 60),
            _ => write!(f, "{days}d{:02}h", hours % 24),
        }
    }
}

/// Zero instead of an infinity when no time has passed.
fn per_second(count: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { count / seconds } else { 0.0 }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A step of 100 tokens.
    pub(in crate::run) fn values(step: u64) -> StepValues {
        StepValues {
            step,
            loss: 4.2134,
            lr: 3e-4,
            grad_norm: Some(1.21),
            tokens: 100,
            flops: 4e9,
            peak_flops: None,
            loss_scale: None,
            skipped: None,
            device_bytes: None,
            memory_use: MemoryUse::default(),
            phases: None,
        }
    }

    /// A report of step `step` of 1000, `seconds` after the start.
    pub(in crate::run) fn report(step: u64, seconds: u64) -> StepReport {
        StepReport {
            values: values(step),
            total_steps: Some(1000),
            tokens_per_second: 3400.0,
            flops_per_second: 136e9,
            mfu: None,
            tokens_per_second_overall: 3000.0,
            elapsed: Duration::from_secs(seconds),
            left: Some(Duration::from_secs(130)),
            memory: Some(Memory { resident: 2_040_109_466, peak: 3 << 30 }),
        }
    }

    #[test]
    fn the_progress_line() {
        assert_eq!(
            report(120, 0).to_string(),
            "step 120/1000  loss 4.213  lr 3.0e-4  |g| 1.21  3.4k tok/s  136.0 GFLOP/s  \
             1.9 GiB  2m10s left"
        );
        let mut bare = report(1, 0);
        (bare.total_steps, bare.left, bare.memory) = (None, None, None);
        bare.values.grad_norm = None;
        assert_eq!(bare.to_string(), "step 1  loss 4.213  lr 3.0e-4  3.4k tok/s  136.0 GFLOP/s");
        (bare.flops_per_second, bare.mfu) = (446.2e12, Some(0.451));
        bare.values.skipped = Some(Skip::NotFinite);
        bare.values.loss_scale = Some(65536.0);
        bare.values.device_bytes = Some(5 << 30);
        assert_eq!(
            bare.to_string(),
            "step 1  loss 4.213  lr 3.0e-4  3.4k tok/s  446.2 TFLOP/s  MFU 45.1%  device 5.0 GiB  \
             skipped: a gradient is not finite at loss scale 65536"
        );
    }

    #[test]
    fn speed_follows_the_recent_steps_and_the_time_left_follows_speed() {
        let start = Instant::now();
        let mut meter = Meter::start(Some(110), start);
        // 60 steps of one second, then 40 of two.
        let ends = (1..=60).chain((1..=40).map(|i| 60 + 2 * i));
        let reports: Vec<_> = (1..)
            .zip(ends)
            .map(|(step, end)| meter.report(values(step), start + Duration::from_secs(end)))
            .collect();
        assert_eq!(reports[0].tokens_per_second, 100.0);
        assert_eq!(reports[59].tokens_per_second, 100.0);
        assert_eq!(reports[59].left, Some(Duration::from_secs(50)));
        assert_eq!(reports[99].tokens_per_second, 50.0);
        assert_eq!(reports[99].left, Some(Duration::from_secs(20)));
        assert_eq!(reports[99].tokens_per_second_overall, 10_000.0 / 140.0);
        assert_eq!(reports[99].elapsed, Duration::from_secs(140));
    }

    #[test]
    fn the_utilization_is_that_of_the_recent_steps() {
        let start = Instant::now();
        let mut meter = Meter::start(None, start);
        let of = |seconds, meter: &mut Meter| {
            let values = StepValues { peak_flops: Some(8e9), ..values(1) };
            let report = meter.report(values, start + Duration::from_secs(seconds));
            (report.flops_per_second, report.mfu)
        };
        assert_eq!(of(1, &mut meter), (4e9, Some(0.5)));
        assert_eq!(of(4, &mut meter), (2e9, Some(0.25)));
    }

    #[test]
    fn evaluation_counts_for_the_time_left_but_not_for_the_speed() {
        let start = Instant::now();
        let mut meter = Meter::start(Some(4), start);
        meter.report(values(1), start + Duration::from_secs(1));
        meter.exclude(Duration::from_secs(2));
        let report = meter.report(values(2), start + Duration::from_secs(4));
        assert_eq!(report.tokens_per_second, 100.0);
        assert_eq!(report.left, Some(Duration::from_secs(4)));
    }

    #[test]
    fn no_time_at_all_is_no_division_by_zero() {
        let start = Instant::now();
        let report = Meter::start(Some(3), start).report(values(1), start);
        assert_eq!((report.tokens_per_second, report.left), (0.0, Some(Duration::ZERO)));
    }

    #[test]
    fn a_run_resumed_past_its_end_has_no_time_left() {
        let start = Instant::now();
        let report = Meter::start(Some(3), start).report(values(9), start + Duration::from_secs(1));
        assert_eq!(report.left, Some(Duration::ZERO));
    }

    #[test]
    fn memory_is_read_from_the_kernels_text() {
        let status = "Name:\tdsr\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        assert_eq!(Memory::parse(status), Some(Memory { resident: 1 << 20, peak: 2 << 20 }));
        assert_eq!(Memory::parse("Name:\tdsr\n"), None);
        let now = Memory::of_process().unwrap();
        assert!(now.resident > 0 && now.peak >= now.resident);
    }

    #[test]
    fn numbers_as_people_say_them() {
        let flops = |n| Flops(n).to_string();
        assert_eq!(flops(0.0), "0.0 MFLOP/s");
        assert_eq!(flops(999.96e6), "1.0 GFLOP/s");
        assert_eq!(flops(41.23e12), "41.2 TFLOP/s");
        assert_eq!(flops(3.168e15), "3.2 PFLOP/s");
        let span = |s| Elapsed(Duration::from_secs(s)).to_string();
        assert_eq!(
            [span(45), span(130), span(3900), span(273_600)],
            ["45s", "2m10s", "1h05m", "3d04h"]
        );
    }
}
