//! A training run: its start, the records of each step, its checkpoints.
//!
//! [`Training`] ties an engine and its loader to a run's directory. It returns the lines to show
//! and prints nothing. Only rank 0 writes; the other ranks keep step with it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use super::{
    EvaluationAt, Interrupt, Meter, OutputLog, RunDir, RunLog, Sample, State, StepReport,
    StepValues, TrainingOptions, header, load_checkpoint,
    lock::RunLock,
    opened::{Opened, Told, Unbegun, resumed},
    ranks,
    record::RunEnding,
    renewal::Renewal,
    save_checkpoint, scratch,
    trial::Trial,
};
use crate::{
    checkpoint::{Retention, Store},
    data::{Loader, LoaderOptions, LoaderState},
    engine::{Engine, Evaluation},
    error::{Code, Error, Result},
};

/// The name under which rank 0 tells a launcher where its run lies.
pub const TOLD_DIR: &str = "run_dir";

/// A run that has started.
#[derive(Debug)]
pub struct Training {
    options: TrainingOptions,
    meter: Meter,
    /// What the run tells of itself, on rank 0.
    ending: Option<RunEnding>,
    /// When the curve is drawn anew.
    renewal: Renewal,
    /// The files of the run, on rank 0.
    files: Option<(RunDir, RunLog)>,
    /// Keeps other processes from going on with the run, on rank 0.
    _lock: Option<RunLock>,
    /// Removes the directory of a run that is only tried, on rank 0.
    trial: Option<Trial>,
    /// Whether the ranks have told what they compute on and the memory that a step takes.
    ranks_told: bool,
    /// The step that was written down last, and the loader's place behind it.
    noted: (u64, LoaderState),
    /// The step of the newest checkpoint.
    saved: Option<u64>,
    /// The lowest loss of an evaluation, where its checkpoint is kept.
    best: Option<f64>,
}

/// The output of a step.
#[derive(Debug, Default)]
pub struct Shown {
    /// The step with speed and memory; its `Display` is the progress line.
    pub report: Option<StepReport>,
    /// Lines to keep on the screen.
    pub lines: Vec<String>,
}

impl Training {
    /// Begins a run, or goes on with one: engine and loader are then brought to its checkpoint. One
    /// that is at its last step is gone on with too, without a step, as in Lightning and transformers:
    /// whoever restarts a job until it succeeds comes to an end.
    pub fn start(
        options: TrainingOptions,
        engine: &mut Engine,
        loader: &mut Loader,
    ) -> Result<(Self, Shown)> {
        let is_first = engine.group().rank() == 0;
        if is_first {
            scratch::clear(&options.root)?;
        }
        let (resumed, lock) = resumed(&options, is_first)?;
        let mut warnings = Vec::new();
        if let Some(checkpoint) = &resumed {
            warnings = load_checkpoint(engine, Some(loader), checkpoint)?;
        }
        let (step, total) = (engine.global_step(), options.total_steps);
        // A run that was killed behind its last step still ends as it would have.
        let is_whole = resumed.is_some() && step == total;
        if step >= total && !is_whole {
            let message = format!("the run is at step {step} already, and total_steps is {total}");
            return Err(Error::new(Code::BadValue, message)
                .option("total_steps")
                .hint("raise total_steps to go on with it"));
        }
        check_data(&options, engine, loader)?;
        if is_first {
            // Before anything of the run is there.
            Store::open(&options.root).check_space(engine.state_bytes())?;
        }
        let opened = is_first.then(|| Opened::at(&options, resumed.as_ref(), step, lock));
        let opened = opened.transpose()?;
        let Told { goes_on, best } = Told::to_all(engine, opened.as_ref())?;
        let (unbegun, files, lock, warning) = match opened {
            Some(Opened { dir, log, lock, unbegun, warning, .. }) => {
                (unbegun, Some((dir, log)), Some(lock), warning)
            }
            None => (None, None, None, None),
        };
        let mut shown = Shown::default();
        if let Some((dir, _)) = &files {
            shown.lines.push(match &resumed {
                Some(_) if is_whole => format!(
                    "the run is at step {step} already, its last: nothing is left to train (raise \
                     total_steps to go on)"
                ),
                Some(from) => format!("going on after step {step}, from {}", from.display()),
                None if options.is_trial => "a dry run of one step".to_owned(),
                None => format!("a new run in {}", dir.path().display()),
            });
            shown.lines.extend(warning);
            if !is_whole {
                shown.lines.extend(header::lines(engine, loader, total)?);
            }
        }
        shown.lines.extend(warnings.into_iter().filter(|_| is_first));
        let begun = (&*engine, &*loader);
        let ending = files.as_ref().map(|(dir, log)| {
            let last = (log.last_values()?, options.total_steps);
            RunEnding::begin(dir, begun, &options.recipe, last)
        });
        let ending = ending.transpose()?;
        unbegun.into_iter().for_each(Unbegun::begins);
        if let Some((dir, _)) = &files {
            engine.save_bad_batches(dir.place());
            engine.group().tell_launcher(TOLD_DIR, &dir.path().display().to_string());
        }
        let meter = Meter::start(Some(options.total_steps), Instant::now());
        let tried = files.as_ref().filter(|_| options.is_trial);
        let trial = tried.map(|(dir, _)| Trial::of(dir.place().clone()));
        let training = Self {
            options,
            meter,
            ending,
            renewal: Renewal::default(),
            files,
            _lock: lock,
            trial,
            ranks_told: false,
            noted: (step, loader.state()),
            saved: goes_on.then_some(step),
            best,
        };
        Ok((training, shown))
    }

    /// What the run tells of itself, on rank 0: for whoever knows how it ends.
    pub fn ending(&self) -> Option<RunEnding> {
        self.ending.clone()
    }

    fn end(&self, status: State) -> Result<()> {
        self.ending.as_ref().map_or(Ok(()), |ending| ending.end(status, None))
    }

    /// Draws the curve where it is time for it.
    fn renew_curve(&mut self, elapsed: Duration) -> Result<()> {
        let draw = || self.files.iter().try_for_each(|(_, log)| log.finish().map(drop));
        let took = self.renewal.renew(elapsed, Instant::now, draw)?;
        self.meter.exclude(took);
        Ok(())
    }

    /// The number of the last step.
    pub fn total_steps(&self) -> u64 {
        self.options.total_steps
    }

    /// The losses of the evaluations so far by their steps, those before a resumption too, on rank 0.
    pub fn evaluations(&self) -> Result<Vec<(u64, f64)>> {
        match &self.files {
            Some((_, log)) => log.evaluations(),
            None => Ok(Vec::new()),
        }
    }

    /// The run's directory, on rank 0.
    pub fn dir(&self) -> Option<&Path> {
        self.files.as_ref().map(|(dir, _)| dir.path())
    }

    /// Writes down the step that `engine` has just done, and saves a checkpoint when it is time.
    ///
    /// # Errors
    /// The metrics or the checkpoint cannot be written; no step was done.
    pub fn on_step(&mut self, engine: &Engine, loader: &Loader) -> Result<Shown> {
        let Some(outcome) = engine.last_step() else {
            return Err(Error::new(Code::CallOrder, "no step was done since the run started")
                .hint("call it where engine.step() returned true"));
        };
        let values = StepValues {
            step: engine.global_step(),
            loss: outcome.loss,
            lr: outcome.lr,
            grad_norm: Some(outcome.grad_norm).filter(|norm| norm.is_finite()),
            tokens: outcome.tokens,
            loss_scale: outcome.loss_scale,
            skipped: outcome.skipped,
            device_bytes: engine.allocator()?.map(|held| held.max_reserved),
            flops: outcome.flops,
            peak_flops: engine.peak_flops(),
            memory_use: engine.memory(),
            phases: engine.phase_times(),
        };
        self.noted = (values.step, loader.state());
        let report = self.meter.report(values, Instant::now());
        let mut shown = Shown::default();
        if let Some((_, log)) = &mut self.files {
            shown.lines.extend(log.on_step(&report)?);
            self.ending.iter().for_each(|ending| ending.on_step(&report));
            self.renew_curve(report.elapsed)?;
            shown.report = Some(report);
        }
        if !self.ranks_told {
            self.tell_ranks(engine)?;
        }
        let due = |every: u64| engine.global_step().is_multiple_of(every);
        if self.options.save_every.is_some_and(due) {
            self.save(engine, loader)?;
        }
        Ok(shown)
    }

    /// Writes an evaluation down, which began at `began`; returns the line to show.
    pub fn on_evaluation(
        &mut self,
        step: u64,
        evaluation: &Evaluation,
        began: Instant,
    ) -> Result<Option<String>> {
        self.meter.exclude(began.elapsed());
        self.trial.iter_mut().for_each(Trial::evaluated);
        match &mut self.files {
            Some((_, log)) => {
                let line = log.on_evaluate(step, evaluation.loss, evaluation.perplexity)?;
                let found = EvaluationAt { step, loss: evaluation.loss };
                self.ending.iter().try_for_each(|ending| ending.on_evaluation(found))?;
                Ok(Some(line))
            }
            None => Ok(None),
        }
    }

    /// Writes a sample of the model down, on rank 0.
    pub fn on_sample(&mut self, sample: &Sample) -> Result<()> {
        self.files.as_mut().map_or(Ok(()), |(_, log)| log.on_sample(sample))
    }

    /// The log of what the recipe prints, on rank 0; a run that is only tried keeps none.
    pub fn output_log(&self) -> Option<OutputLog> {
        let (dir, _) = self.files.as_ref().filter(|_| self.trial.is_none())?;
        Some(OutputLog::at(dir.output_log()))
    }

    /// Saves a checkpoint that stays where this evaluation is the best so far. Every rank must call it.
    pub fn keep_best(&mut self, engine: &Engine, loader: &Loader, loss: f64) -> Result<()> {
        let is_best = loss.is_finite() && self.best.is_none_or(|best| loss < best);
        if !self.options.keeps_best || !is_best {
            return Ok(());
        }
        self.save_as(engine, loader, true)?;
        self.best = Some(loss);
        Ok(())
    }

    /// Saves a checkpoint and redraws the loss curve. Every rank must call it.
    ///
    /// # Errors
    /// It cannot be written; the earlier ones are then as they were.
    pub fn save(&mut self, engine: &Engine, loader: &Loader) -> Result<()> {
        self.save_as(engine, loader, false)
    }

    fn save_as(&mut self, engine: &Engine, loader: &Loader, is_best: bool) -> Result<()> {
        let step = engine.global_step();
        if self.saved == Some(step) {
            let mut marked = self.files.iter().filter(|_| is_best);
            return marked.try_for_each(|(dir, _)| dir.checkpoints().mark_best(step));
        }
        let began = Instant::now();
        if let Some((dir, _)) = &self.files {
            let store = dir.checkpoints();
            let recipe = Some(self.options.recipe.clone());
            let retention = Retention { keep: self.options.keep, is_best };
            save_checkpoint(engine, &store, retention, Some(loader), recipe)?;
            self.draw()?;
        } else {
            engine.write_state(None, None, None)?;
        }
        engine.group().barrier()?;
        self.tell_ranks(engine)?;
        self.saved = Some(step);
        self.meter.exclude(began.elapsed());
        Ok(())
    }

    /// Writes down what each of several ranks computes on, and its memory so far. Every rank must call it.
    fn tell_ranks(&mut self, engine: &Engine) -> Result<()> {
        self.ranks_told = true;
        if engine.group().world_size() == 1 {
            return Ok(());
        }
        let ranks = ranks::gathered(engine)?;
        self.ending.as_ref().map_or(Ok(()), |ending| ending.tell_ranks(ranks))
    }

    /// The error for data that ended before the last step; what was trained is saved.
    pub fn data_ended(&mut self, engine: &Engine, loader: &Loader) -> Result<Error> {
        let (step, total) = (engine.global_step(), self.options.total_steps);
        let mut message = format!("the data ended after step {step} of {total}");
        if engine.micro_step() == 0 && step > 0 {
            self.save(engine, loader)?;
            message.push_str(", whose checkpoint is saved");
        }
        Ok(Error::new(Code::Data, message)
            .hint("let the loader go on without end (endless: true), or lower total_steps"))
    }

    /// Saves the last step and draws the loss curve; returns the line that sums the run up.
    pub fn finish(&mut self, engine: &Engine, loader: &Loader) -> Result<Option<String>> {
        if self.saved == Some(engine.global_step()) {
            // It may lack what was evaluated since.
            self.draw()?;
        } else {
            self.save(engine, loader)?;
        }
        let is_last = engine.global_step() >= self.options.total_steps;
        self.end(if is_last { State::Finished } else { State::Stopped })?;
        let Some((dir, _)) = &self.files else { return Ok(None) };
        if let Some(trial) = &self.trial {
            return trial.end().map(Some);
        }
        Ok(Some(format!("done: {} (metrics.jsonl, loss.svg, checkpoints/)", dir.path().display())))
    }

    /// Draws the loss curve, on rank 0.
    fn draw(&self) -> Result<()> {
        self.files.iter().try_for_each(|(_, log)| log.finish().map(drop))
    }

    /// Gives up the step under way, so that engine and loader are where the last whole one left them,
    /// saves that, and gives the error with which an interrupted run ends. For a run of one rank: others
    /// would be in other steps.
    pub fn give_up(&mut self, engine: &mut Engine, loader: &mut Loader) -> Result<Error> {
        engine.give_up_step()?;
        let (step, place) = self.noted;
        if engine.global_step() == step {
            loader.restore(place)?;
        } else {
            self.on_step(engine, loader)?;
        }
        self.interrupted(engine, loader)
    }

    /// Saves and gives the error with which an interrupted run ends.
    pub fn interrupted(&mut self, engine: &Engine, loader: &Loader) -> Result<Error> {
        // Amid an accumulation the checkpoint is the one of the last whole step, if any.
        if engine.micro_step() == 0 && engine.global_step() > 0 {
            self.save(engine, loader)?;
        }
        self.end(State::Interrupted)?;
        let files = self.files.as_ref().filter(|_| self.trial.is_none());
        let from = files.and_then(|(dir, _)| dir.path_of_other(&self.options.name));
        Ok(Interrupt::error(engine.global_step(), self.saved, &self.options.command, from))
    }
}

/// Refuses a loader that ends before the last step, where its length is known.
fn check_data(options: &TrainingOptions, engine: &Engine, loader: &Loader) -> Result<()> {
    let (Some(epochs), Some(per_epoch)) = (loader.options().epochs, loader.batches_per_epoch()?)
    else {
        return Ok(());
    };
    let place = loader.state();
    let LoaderOptions { micro_batch_size, world_size, .. } = *loader.options();
    let done = place.epoch * per_epoch + place.row / (micro_batch_size * world_size) as u64;
    let there = (epochs * per_epoch).saturating_sub(done);
    let steps = options.total_steps - engine.global_step();
    let accumulated = engine.config().gradient_accumulation_steps as u64;
    if there >= steps * accumulated {
        return Ok(());
    }
    Err(Error::new(
        Code::BadValue,
        format!(
            "{steps} steps of {accumulated} micro batches need {}, and the loader has {there} left",
            steps * accumulated
        ),
    )
    .option("total_steps")
    .hint("let the loader go on without end (endless: true), or lower total_steps"))
}
