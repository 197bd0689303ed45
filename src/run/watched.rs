//! A run that is looked at while it goes on, or when it has ended, by a process that has no part in it.
//!
//! Nothing is written. Its lock is tried for the moment that it takes to see whether it is held, at the
//! beginning and while nothing comes from a run that says it goes on.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    catalog::State,
    dir::{self, RunDir},
    lock::is_held,
    ranks::RankRecord,
    samples::{NewestSamples, Sample},
    series::Series,
    tail::{Part, Tail},
};
use crate::{
    config::suggest::nearest,
    engine::MemoryUse,
    error::{Code, Error, Result},
    fs::Place,
};

/// How long nothing may come from a run before its lock is looked at, and how often then.
const SILENCE: Duration = Duration::from_secs(5);

/// What a curve is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// The loss of the steps.
    Loss,
    /// The loss of the evaluations.
    EvalLoss,
    /// The learning rate.
    LearningRate,
    /// Tokens a second.
    Speed,
    /// The norm of the gradient.
    GradNorm,
    /// The host memory of the process.
    HostMemory,
    /// The memory that libtorch has taken from the device.
    DeviceMemory,
}

/// The number of quantities.
const QUANTITIES: usize = Quantity::DeviceMemory as usize + 1;

/// A line of `metrics.jsonl`, of a step or of an evaluation.
#[derive(Debug, Clone, Default, Deserialize)]
struct Line {
    step: u64,
    loss: Option<f64>,
    eval_loss: Option<f64>,
    lr: Option<f64>,
    grad_norm: Option<f64>,
    tokens: Option<f64>,
    tokens_per_second: Option<f64>,
    resident_bytes: Option<f64>,
    device_bytes: Option<f64>,
    memory: Option<MemoryUse>,
    #[serde(default)]
    skipped: bool,
}

/// The metrics that were read so far.
#[derive(Debug, Default)]
struct Metrics {
    series: [Series; QUANTITIES],
    /// The line of the highest step.
    last: Line,
    /// The evaluation with the lowest loss.
    best: Option<(u64, f64)>,
    /// The memory by kind that was written last, and its step.
    memory: Option<(u64, MemoryUse)>,
    skipped: u64,
    unreadable: u64,
}

/// A run under observation.
#[derive(Debug)]
pub struct Watched {
    dir: RunDir,
    tail: Tail,
    metrics: Metrics,
    samples: NewestSamples,
    /// The content of `run.json`.
    told: Map<String, Value>,
    /// The ranks that it tells of.
    ranks: Vec<RankRecord>,
    state: State,
    /// When something came, or the lock was looked at.
    stirred: Instant,
}

impl Watched {
    /// The run of this name in `root` or in this directory; without one the run in `root` that began or was
    /// gone on with last. The end of its metrics is read.
    pub fn open(root: impl Into<Place>, run: Option<&str>) -> Result<Self> {
        let root = root.into();
        let dir = match run {
            Some(run) => named(&root, run)?,
            None => newest(&root)?,
        };
        let told = dir.told();
        let held = is_held(dir.place());
        let state = State::of(told.as_ref(), held);
        let is_damaged = told.is_none();
        let told = told.unwrap_or_default();
        let tail = Tail::of(dir.metrics());
        let (metrics, samples) = (Metrics::default(), NewestSamples::of(dir.samples()));
        let (ranks, stirred) = (ranks_in(&told), Instant::now());
        let mut watched = Self { dir, tail, metrics, samples, told, ranks, state, stirred };
        watched.look(Duration::ZERO)?;
        // What was there before says nothing of a process.
        watched.state = State::of(Some(&watched.told).filter(|_| !is_damaged), held);
        Ok(watched)
    }

    /// Reads what is new, and of what is older as much as `patience` allows; returns whether anything
    /// changed.
    pub fn look(&mut self, patience: Duration) -> Result<bool> {
        let metrics = &mut self.metrics;
        let is_new = self.tail.read(patience, &mut |part| match part {
            Part::Anew => *metrics = Metrics::default(),
            Part::Line(line) => metrics.add(line),
        })?;
        let is_new = self.samples.look(patience)? || is_new;
        // It is replaced as a whole, and never half there.
        let told = self.dir.told();
        let mut state = State::said(told.as_ref());
        if is_new {
            self.stirred = Instant::now();
        } else if state == State::Running {
            state = self.state;
            if self.stirred.elapsed() > SILENCE {
                self.stirred = Instant::now();
                state = State::of(told.as_ref(), is_held(self.dir.place()));
            }
        }
        let told = told.unwrap_or_default();
        let has_changed = is_new || state != self.state || told != self.told;
        if told != self.told {
            self.ranks = ranks_in(&told);
        }
        (self.told, self.state) = (told, state);
        Ok(has_changed)
    }

    /// Reads all of the metrics.
    pub fn look_at_all(&mut self) -> Result<()> {
        while !self.tail.is_whole() {
            self.look(Duration::from_secs(1))?;
        }
        Ok(())
    }

    /// Whether the beginning of the metrics is read too.
    pub fn is_whole(&self) -> bool {
        self.tail.is_whole()
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// How it stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// A value that it tells of itself.
    pub fn told(&self, key: &str) -> Option<&Value> {
        self.told.get(key).filter(|value| !value.is_null())
    }

    /// A curve of it.
    pub fn series(&self, quantity: Quantity) -> &Series {
        &self.metrics.series[quantity as usize]
    }

    /// The samples of its model that were written down last, the newest first.
    pub fn samples(&self) -> impl Iterator<Item = &Sample> {
        self.samples.newest()
    }

    /// The last step that it has written down.
    pub fn step(&self) -> u64 {
        self.metrics.last.step
    }

    /// The value of a quantity at the last step.
    pub fn last(&self, quantity: Quantity) -> Option<f64> {
        let last = &self.metrics.last;
        match quantity {
            Quantity::Loss => last.loss,
            Quantity::EvalLoss => last.eval_loss,
            Quantity::LearningRate => last.lr,
            Quantity::Speed => last.tokens_per_second,
            Quantity::GradNorm => last.grad_norm,
            Quantity::HostMemory => last.resident_bytes,
            Quantity::DeviceMemory => last.device_bytes,
        }
    }

    /// Rank 0's memory by kind at the peak so far.
    pub fn memory(&self) -> Option<MemoryUse> {
        self.metrics.memory.map(|(_, memory)| memory)
    }

    /// The ranks, where there are several and the first step is done.
    pub fn ranks(&self) -> &[RankRecord] {
        &self.ranks
    }

    /// The evaluation with the lowest loss.
    pub fn best(&self) -> Option<(u64, f64)> {
        self.metrics.best
    }

    /// How many steps were skipped.
    pub fn skipped(&self) -> u64 {
        self.metrics.skipped
    }

    /// How many lines of the metrics are none.
    pub fn unreadable(&self) -> u64 {
        self.metrics.unreadable
    }

    /// The time of the steps that are left at the speed of the last one, while it goes on.
    pub fn left(&self) -> Option<Duration> {
        let total = self.told("total_steps")?.as_u64()?;
        let left = total.checked_sub(self.step()).filter(|&left| left > 0)?;
        let last = &self.metrics.last;
        let seconds = left as f64 * last.tokens? / last.tokens_per_second.filter(|&s| s > 0.0)?;
        (self.state == State::Running).then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
    }
}

impl Metrics {
    fn add(&mut self, line: &[u8]) {
        let Ok(line) = serde_json::from_slice::<Line>(line) else {
            self.unreadable += 1;
            return;
        };
        let values = [
            (Quantity::Loss, line.loss),
            (Quantity::EvalLoss, line.eval_loss),
            (Quantity::LearningRate, line.lr),
            (Quantity::Speed, line.tokens_per_second),
            (Quantity::GradNorm, line.grad_norm),
            (Quantity::HostMemory, line.resident_bytes),
            (Quantity::DeviceMemory, line.device_bytes),
        ];
        for (quantity, value) in values {
            let series = &mut self.series[quantity as usize];
            value.into_iter().for_each(|value| series.add(line.step, value));
        }
        self.skipped += u64::from(line.skipped);
        if let Some(memory) = line.memory
            && self.memory.is_none_or(|(step, _)| step <= line.step)
        {
            self.memory = Some((line.step, memory));
        }
        match line.eval_loss {
            // The first of equal ones, in whatever order they are read.
            Some(loss) if self.best.is_none_or(|(step, best)| (loss, line.step) < (best, step)) => {
                self.best = Some((line.step, loss));
            }
            Some(_) => {}
            None if line.step >= self.last.step => self.last = line,
            None => {}
        }
    }
}

fn ranks_in(told: &Map<String, Value>) -> Vec<RankRecord> {
    let ranks = told.get("ranks").map(Vec::<RankRecord>::deserialize);
    ranks.and_then(Result::ok).unwrap_or_default()
}

fn named(root: &Place, run: &str) -> Result<RunDir> {
    let mut runs = dir::runs(root)?;
    if let Some(at) = runs.iter().position(|dir| dir.place().name() == Some(run)) {
        return Ok(runs.swap_remove(at));
    }
    if let Some(dir) = RunDir::look_at(root.beside(run)) {
        return Ok(dir);
    }
    let e = Error::new(Code::BadValue, format!("no run {run:?} in {}", root.display()));
    let names = runs.iter().filter_map(|dir| dir.place().name());
    Err(match nearest(run, names) {
        Some(near) => e.hint(format!("did you mean {near:?}?")),
        None => e.hint("`dsr runs` lists them"),
    })
}

fn newest(root: &Place) -> Result<RunDir> {
    let began = |dir: &RunDir| {
        let told = dir.told().unwrap_or_default();
        let time = told.get("resumed_at").or_else(|| told.get("started_at"));
        // Times in UTC are in the order of their texts.
        time.and_then(Value::as_str).map(str::to_owned)
    };
    dir::runs(root)?.into_iter().max_by_key(began).ok_or_else(|| {
        Error::new(Code::BadValue, format!("no runs in {}", root.display()))
            .hint("--root DIR is the directory of the runs")
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn run(root: &Path, name: &str, told: &str, metrics: &str) {
        let dir = root.join(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("run.json"), format!("{{\"name\":\"{name}\",\"number\":1{told}}}"))
            .unwrap();
        fs::write(dir.join("metrics.jsonl"), metrics).unwrap();
    }

    #[test]
    fn the_newest_run_is_the_one_that_was_gone_on_with_last() {
        let root = tempfile::tempdir().unwrap();
        let open = |run: Option<&str>| Watched::open(root.path(), run);
        assert!(open(None).unwrap_err().message().starts_with("no runs in"));
        let times =
            ",\"started_at\":\"2026-01-01T00:00:00Z\",\"resumed_at\":\"2026-03-01T00:00:00Z\"";
        run(root.path(), "a", times, "");
        run(root.path(), "b", ",\"started_at\":\"2026-02-01T00:00:00Z\"", "");
        assert!(open(None).unwrap().path().ends_with("a"));
        assert!(open(Some("b")).unwrap().path().ends_with("b"));
        let path = root.path().join("b").display().to_string();
        assert!(Watched::open(Path::new("nowhere"), Some(&path)).unwrap().path().ends_with("b"));
        assert!(format!("{:?}", open(Some("bb")).unwrap_err()).contains("did you mean \"b\"?"));
    }

    #[test]
    fn a_run_is_its_last_step_and_its_best_evaluation() {
        let root = tempfile::tempdir().unwrap();
        let told = ",\"status\":\"running\",\"total_steps\":10";
        let step =
            |n| format!("{{\"step\":{n},\"loss\":{n}.5,\"tokens\":8,\"tokens_per_second\":2.0}}\n");
        let eval = |n, loss| format!("{{\"step\":{n},\"eval_loss\":{loss}}}\n");
        let lines = [step(1), eval(1, 2.0), step(2), eval(2, 1.0), "[1]\n".into(), eval(3, 1.0)];
        run(root.path(), "a", told, &lines.concat());
        let mut watched = Watched::open(root.path(), Some("a")).unwrap();
        // Nobody holds its lock.
        assert_eq!((watched.state(), watched.left()), (State::Killed, None));
        assert_eq!((watched.step(), watched.best()), (2, Some((2, 1.0))));
        assert_eq!((watched.last(Quantity::Loss), watched.unreadable()), (Some(2.5), 1));
        assert_eq!(watched.series(Quantity::EvalLoss).points(0.0).len(), 3);
        assert!(!watched.look(Duration::ZERO).unwrap(), "nothing is new");
        fs::write(root.path().join("a/metrics.jsonl"), format!("{}{}", lines.concat(), step(3)))
            .unwrap();
        assert!(watched.look(Duration::ZERO).unwrap());
        // Seven steps of eight tokens, two tokens a second.
        assert_eq!(
            (watched.state(), watched.left()),
            (State::Running, Some(Duration::from_secs(28)))
        );
    }
}
