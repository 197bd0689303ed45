//! The output and the logs of an engine's steps: DeepSpeed's `steps_per_print`,
//! `wall_clock_breakdown`, `flops_profiler`, `csv_monitor` and `tensorboard`.
//!
//! [`Monitors`] is an [`Observer`] of the engine, on rank 0, with or without a run. The logs get
//! events with DeepSpeed's tags; their x axis is the number of samples seen.
//!
//! Where dsr differs from DeepSpeed: `train_loss`, which DeepSpeed documents and only its pipeline
//! engine writes, is there; `lr` is the rate that the step used, where DeepSpeed's scheduler has
//! already gone on; `grad_norm`, `tokens_per_second` and `elapsed_time_ms_data` are new. `eval_loss`,
//! which is DeepSpeed's tag for a pipeline's evaluation, is that of each evaluation.

mod csv;
mod event;
mod flops;
mod line;
mod tensorboard;

use self::{
    csv::CsvMonitor,
    event::{Event, evaluated, events},
    tensorboard::EventFile,
};
use crate::{
    config::MonitorConfig,
    engine::{Engine, Evaluation, Observer},
    error::{Code, Error, IoContext, Result},
    fs::{Place, read_start, write_atomic},
};

/// Takes the lines that are to be shown.
pub type ShowLine = Box<dyn Fn(&str)>;

/// The monitors of one engine.
pub struct Monitors {
    config: MonitorConfig,
    csv: Option<CsvMonitor>,
    tensorboard: Option<EventFile>,
    /// Where the profile goes, if not to the screen.
    profile_file: Option<Place>,
    show: ShowLine,
}

impl Monitors {
    /// The monitors that `config` asks for, with their files opened: relative paths start from
    /// `work_dir`, lines go to `show`. `None` where it asks for none.
    pub fn open(
        config: &MonitorConfig,
        work_dir: impl Into<Place>,
        show: ShowLine,
    ) -> Result<Option<Self>> {
        let work_dir = work_dir.into();
        if *config == MonitorConfig::default() {
            return Ok(None);
        }
        let csv = config.csv_monitor.as_ref();
        let csv = csv.map(|dir| CsvMonitor::open(work_dir.join(dir.path()))).transpose();
        let tensorboard = config.tensorboard.as_ref();
        let tensorboard =
            tensorboard.map(|dir| EventFile::create(work_dir.join(dir.path()))).transpose();
        let profiler = config.flops_profiler.as_ref();
        let file = profiler.and_then(|profiler| profiler.file());
        let profile_file = file.map(|file| prepare(work_dir.join(file))).transpose();
        Ok(Some(Self {
            config: config.clone(),
            csv: csv.map_err(|e| e.option("csv_monitor"))?,
            tensorboard: tensorboard.map_err(|e| e.option("tensorboard"))?,
            profile_file: profile_file.map_err(|e| e.option("flops_profiler.output_file"))?,
            show,
        }))
    }

    /// Writes the events into all logs; returns the errors.
    fn write(&mut self, events: &[Event]) -> Vec<Error> {
        let csv = self.csv.as_mut().map(|csv| csv.write(events));
        let tensorboard = self.tensorboard.as_mut().map(|file| file.write(events));
        [csv, tensorboard].into_iter().flatten().filter_map(Result::err).collect()
    }

    fn show_profile(&self, engine: &Engine) -> Result<()> {
        let Some(profiler) = &self.config.flops_profiler else { return Ok(()) };
        let Some(text) = flops::text(engine, profiler) else { return Ok(()) };
        match &self.profile_file {
            Some(file) => write_atomic(file, text.as_bytes()),
            None => {
                (self.show)(text.trim_end());
                Ok(())
            }
        }
    }
}

impl Observer for Monitors {
    fn on_step(&mut self, engine: &Engine) -> Result<()> {
        let is_due = |every: u64| engine.global_step().is_multiple_of(every);
        if self.config.steps_per_print.is_some_and(|every| is_due(every.get())) {
            line::progress(engine).iter().for_each(|line| (self.show)(line));
        }
        let mut faults = self.write(&events(engine));
        faults.extend(self.show_profile(engine).err());
        if let Some(times) = engine.phase_times() {
            (self.show)(&line::breakdown(&times));
        }
        Error::all(faults).map_or(Ok(()), |e| {
            Err(e.hint("the step is done and the engine whole: it can go on or be saved"))
        })
    }

    fn on_evaluation(&mut self, engine: &Engine, evaluation: &Evaluation) -> Result<()> {
        Error::all(self.write(&[evaluated(engine, evaluation)])).map_or(Ok(()), Err)
    }
}

/// Makes the directory of a profile to be written later. Only a profile is replaced by it: DeepSpeed
/// takes any file, but a recipe may be a stranger's.
fn prepare(file: Place) -> Result<Place> {
    if file.is_dir() {
        bail!(Code::Io, "cannot write {}: it is a directory", file.display());
    }
    if file.exists() {
        let mut opened = file.open()?;
        let begin = read_start(&mut opened, flops::TITLE.len()).at("read", file.path())?;
        if !begin.is_empty() && begin != flops::TITLE.as_bytes() {
            let message = format!("{} is no flops profile, and is not overwritten", file.display());
            return Err(Error::new(Code::Io, message).hint("name a file that does not exist yet"));
        }
    }
    file.create_parents()?;
    Ok(file)
}
