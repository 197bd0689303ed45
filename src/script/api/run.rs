//! `Run` in scripts: the directory, the progress line, checkpoints and Ctrl-C of a training loop.

use std::{sync::atomic::Ordering, time::Instant};

use rhai::{Array, Map, Module, plugin::*};

use super::{
    dataset::api::Dataset,
    engine::{self, Engine},
    evaluation,
    loader::{api::Loader, loop_left, next_batch},
    run_records::Records,
};
use crate::{
    config::options::{option_table, option_words},
    error::{Error, Result},
    recipe::{error::ScriptResult, options},
    run::{Sample, Shown, Training, TrainingOptions, lowest},
    script::{
        host::{self, Host},
        iterate,
        output::Output,
    },
};

/// How the calls are named that more than one function makes.
const EVALUATE: &str = "run.evaluate";
const BATCHES: &str = "a loop over the batches of a run";

/// A run as a script value: its records, and the engine and loader that it follows.
#[derive(Clone)]
pub struct Run {
    training: Records,
    engine: Engine,
    loader: Loader,
}

/// The functions of runs, and `for` over the batches that are left of one.
pub(super) fn build() -> Module {
    let mut module = rhai::exported_module!(api);
    iterate::set_iterator(&mut module, |run: Run| Ok(Batches(run)));
    module
}

/// Runs.
#[export_module]
pub mod api {
    /// A training run with its directory. Made by `start_run`.
    pub type Run = super::Run;

    /// Starts a run, or goes on with one under `--resume`: makes its directory `runs/NAME`, or brings
    /// engine and loader to its checkpoint.
    ///
    /// ```rhai
    /// let run = start_run(engine, loader, #{ total_steps: 300, save_every: 100 });
    /// for batch in run {
    ///     engine.backward(engine.forward(batch));
    ///     if engine.step() { run.after_step(); }
    /// }
    /// run.finish();
    /// ```
    #[rhai_fn(return_raw)]
    pub fn start_run(
        ctx: NativeCallContext,
        engine: Engine,
        loader: Loader,
        options: Map,
    ) -> ScriptResult<Run> {
        Ok(super::start(&*host::of(&ctx)?, engine, loader, &options)?)
    }

    /// Makes the next step of the run with `engine.train_batch`, and all that `after_step` does; false
    /// when the last step of the run is done.
    ///
    /// ```rhai
    /// while run.train_batch() {
    ///     if engine.global_step % 100 == 0 { run.evaluate(validation); }
    /// }
    /// run.finish();
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn train_batch(ctx: NativeCallContext, run: &mut Run) -> ScriptResult<bool> {
        let host = host::of(&ctx)?;
        run.training.check("run.train_batch")?;
        if run.is_over()? {
            return Ok(false);
        }
        if engine::train_batch(&host, &run.engine, &run.loader)?.is_none() {
            return Err(run.data_ended()?.into());
        }
        run.step_done(&host)?;
        Ok(true)
    }

    /// Writes the step that was just done into `metrics.jsonl`, shows the progress line, saves a
    /// checkpoint when one is due, and, if the user has pressed Ctrl-C, saves and ends the recipe.
    ///
    /// ```rhai
    /// if engine.step() { run.after_step(); }
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn after_step(ctx: NativeCallContext, run: &mut Run) -> ScriptResult<()> {
        Ok(run.step_done(&*host::of(&ctx)?)?)
    }

    /// Computes the mean loss over all target tokens of a dataset, as `engine.evaluate` does, and
    /// writes it down.
    ///
    /// ```rhai
    /// if engine.global_step % 100 == 0 { run.evaluate(validation); }
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn evaluate(ctx: NativeCallContext, run: &mut Run, dataset: Dataset) -> ScriptResult<Map> {
        Ok(run.evaluate_and_log(&*host::of(&ctx)?, &dataset)?)
    }

    /// Writes a text of the model into the run's `samples.jsonl`, with the step and the prompt. `dsr watch`
    /// shows the newest.
    ///
    /// ```rhai
    /// if engine.global_step % 500 == 0 {
    ///     let prompt = "It is a truth";
    ///     run.log_sample(prompt, generate(engine.model, tok, prompt));
    /// }
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn log_sample(run: &mut Run, prompt: &str, text: &str) -> ScriptResult<()> {
        let step = run.engine.read()?.global_step();
        let sample = Sample { step, prompt: prompt.to_owned(), text: text.to_owned() };
        Ok(run.training.write("run.log_sample")?.on_sample(&sample)?)
    }

    /// Returns the evaluations that the run has written down, those before a resumption too: maps with
    /// `step` and `loss`.
    ///
    /// ```rhai
    /// for e in run.evaluations { print(`${e.step}: ${e.loss}`); }
    /// ```
    #[rhai_fn(get = "evaluations", return_raw, pure)]
    pub fn evaluations(ctx: NativeCallContext, run: &mut Run) -> ScriptResult<Array> {
        Ok(super::evaluations(&*host::of(&ctx)?, run)?)
    }

    /// Returns the best evaluation so far, those before a resumption too: a map with `step` and `loss`;
    /// `()` before the first. With `keep_best` its checkpoint is `checkpoints/best`.
    ///
    /// ```rhai
    /// let best = run.best;
    /// if best != () { print(`${best.loss} at step ${best.step}`); }
    /// ```
    #[rhai_fn(get = "best", return_raw, pure)]
    pub fn best(ctx: NativeCallContext, run: &mut Run) -> ScriptResult<Dynamic> {
        let all = super::told_evaluations(&*host::of(&ctx)?, run)?;
        Ok(lowest(&all).map_or(Dynamic::UNIT, super::evaluation_at))
    }

    /// Saves a checkpoint now.
    ///
    /// ```rhai
    /// run.save();
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn save(run: &mut Run) -> ScriptResult<()> {
        let mut training = run.training.write("run.save")?;
        Ok(training.save(&*run.engine.read()?, &*run.loader.read()?)?)
    }

    /// Ends the run: saves the last step, draws `loss.svg` and says where everything is.
    ///
    /// ```rhai
    /// run.finish();
    /// ```
    #[rhai_fn(return_raw, pure)]
    pub fn finish(ctx: NativeCallContext, run: &mut Run) -> ScriptResult<()> {
        let host = host::of(&ctx)?;
        let mut training = run.training.write("run.finish")?;
        let line = training.finish(&*run.engine.read()?, &*run.loader.read()?)?;
        drop(training);
        host.run_is_active.store(false, Ordering::Relaxed);
        host.end_of_run.take();
        line.iter().for_each(|line| host.output.note(line));
        if host.is_live() {
            // The inputs that follow need not be about the run.
            host.output.keep_no_more();
        }
        host.trial_is_over.set(host.run.is_trial);
        if host.run.is_trial { Err(Error::interrupted().into()) } else { Ok(()) }
    }

    /// Returns the run's directory; `()` on every rank but the first.
    #[rhai_fn(get = "dir", return_raw, pure)]
    pub fn dir(run: &mut Run) -> ScriptResult<Dynamic> {
        let training = run.training.read()?;
        Ok(training.dir().map_or(Dynamic::UNIT, |dir| dir.display().to_string().into()))
    }

    /// Returns the number of the run's last step.
    #[rhai_fn(get = "total_steps", return_raw, pure)]
    pub fn total_steps(run: &mut Run) -> ScriptResult<i64> {
        Ok(run.training.read()?.total_steps() as i64)
    }
}

option_words! {
    /// What makes a checkpoint the best.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum BestBy {
        /// The lowest loss of an evaluation.
        EvalLoss = "eval_loss",
    }
}

option_table! {
    /// The options of `start_run`.
    #[derive(Debug)]
    pub(crate) struct RunOptions {
        /// the name of the run's directory; the recipe's by default
        #[option(optional)]
        pub name: Option<String>,
        /// the number of the last step
        #[option(required, range = 1..)]
        pub total_steps: u64,
        /// after how many steps a checkpoint is saved; by default only at the end
        #[option(optional, range = 1..)]
        pub save_every: Option<u64>,
        /// how many checkpoints stay; 0 keeps all
        #[option(default = 2)]
        pub keep: usize,
        /// what makes a checkpoint the best, which stays beside these: an evaluation with the lowest
        /// loss then saves one
        #[option(optional)]
        pub keep_best: Option<BestBy>,
    }
}

/// The evaluations of the run, which rank 0 knows and tells the others.
fn evaluations(host: &Host, run: &Run) -> Result<Array> {
    Ok(told_evaluations(host, run)?.into_iter().map(evaluation_at).collect())
}

fn evaluation_at((step, loss): (u64, f64)) -> Dynamic {
    let (step, loss) = (Dynamic::from(step as i64), Dynamic::from(loss));
    Dynamic::from_map([("step".into(), step), ("loss".into(), loss)].into())
}

fn told_evaluations(host: &Host, run: &Run) -> Result<Vec<(u64, f64)>> {
    let own: Vec<f64> = run
        .training
        .read()?
        .evaluations()?
        .into_iter()
        .flat_map(|(step, loss)| [step as f64, loss])
        .collect();
    let all = host.group()?.told(own)?;
    Ok(all.chunks_exact(2).map(|pair| (pair[0] as u64, pair[1])).collect())
}

fn start(host: &Host, engine: Engine, loader: Loader, options: &Map) -> Result<Run> {
    let RunOptions { name, total_steps, save_every, keep, keep_best } =
        options::read_table("start_run", options)?;
    let is_trial = host.run.is_trial;
    let root = host.workspace.rights.writable("runs")?;
    let options = TrainingOptions {
        root,
        keeps_best: keep_best == Some(BestBy::EvalLoss),
        is_trial,
        is_named: host.run.name.is_some(),
        name: host.run.name.clone().or(name).unwrap_or_else(|| host.program.stem()),
        start: host.workspace.rights.start.clone(),
        total_steps: if is_trial { 1 } else { total_steps },
        save_every,
        keep: (keep > 0).then_some(keep),
        lines: host.run.lines.or_steps(engine.read()?.config().monitor.steps_per_print),
        recipe: host.program.record(&host.workspace.sources),
        command: host.run.command.clone(),
    };
    engine.read()?.check_kept("start_run")?;
    loader.write()?.join_mesh();
    let (training, shown) = Training::start(options, &mut *engine.write()?, &mut *loader.write()?)?;
    host.run_ending.replace(training.ending());
    host.output.keep_in(training.output_log())?;
    let training = Records::new(training, engine.clone());
    show(&host.output, &training, shown)?;
    host.run_is_active.store(true, Ordering::Relaxed);
    let run = Run { training, engine, loader };
    // Of several ranks each could be in another step.
    if !host.is_live() && host.world_size()? == 1 {
        let stopped = run.clone();
        host.end_of_run.replace(Some(Box::new(move || stopped.give_up())));
    }
    Ok(run)
}

fn show(output: &Output, training: &Records, shown: Shown) -> Result<()> {
    if let Some(report) = &shown.report {
        let total = training.read()?.total_steps();
        output.progress(report.values.step, total, &report.to_string());
    }
    shown.lines.iter().for_each(|line| output.note(line));
    Ok(())
}

impl Run {
    fn is_over(&self) -> Result<bool> {
        Ok(self.engine.read()?.global_step() >= self.training.read()?.total_steps())
    }

    /// The error of data that ended before the last step.
    fn data_ended(&self) -> Result<Error> {
        let mut training = self.training.write(BATCHES)?;
        training.data_ended(&*self.engine.read()?, &*self.loader.read()?)
    }

    fn step_done(&self, host: &Host) -> Result<()> {
        let mut training = self.training.write("run.after_step")?;
        let shown = training.on_step(&*self.engine.read()?, &*self.loader.read()?)?;
        drop(training);
        show(&host.output, &self.training, shown)?;
        self.end_if_interrupted(host)
    }

    fn evaluate_and_log(&self, host: &Host, dataset: &Dataset) -> Result<Map> {
        self.training.check(EVALUATE)?;
        let began = Instant::now();
        let stop = || host.interrupted();
        let found = evaluation::evaluate(host, &self.engine, dataset, &stop)?;
        let Some(evaluation) = found else {
            if host.is_live() {
                return Err(Error::interrupted());
            }
            // All ranks are here, as they agree on the end of an evaluation.
            return Err(self.interrupted(host, EVALUATE)?);
        };
        let step = self.engine.read()?.global_step();
        let mut training = self.training.write(EVALUATE)?;
        let line = training.on_evaluation(step, &evaluation, began)?;
        line.iter().for_each(|line| host.output.note(line));
        training.keep_best(&*self.engine.read()?, &*self.loader.read()?, evaluation.loss)?;
        Ok(evaluation::map(&evaluation))
    }

    /// Saves and fails with the way to go on, if the user asked any rank to stop. All ranks must
    /// call it at the same step. In a live session the run stays as it is.
    fn end_if_interrupted(&self, host: &Host) -> Result<()> {
        if host.is_live() || !self.engine.read()?.group().any(host.interrupted())? {
            return Ok(());
        }
        Err(self.interrupted(host, "run.after_step")?)
    }

    /// Saves, and gives the error with which an interrupted run ends.
    fn interrupted(&self, host: &Host, call: &'static str) -> Result<Error> {
        host.end_of_run.take();
        let mut training = self.training.write(call)?;
        training.interrupted(&*self.engine.read()?, &*self.loader.read()?)
    }

    /// Gives up the step under way, saves the last whole one, and gives the error with which an
    /// interrupted run ends.
    fn give_up(&self) -> Result<Error> {
        let mut training = self.training.write("run.save")?;
        training.give_up(&mut *self.engine.write()?, &mut *self.loader.write()?)
    }
}

/// The batches until the run's last step.
struct Batches(Run);

impl Drop for Batches {
    fn drop(&mut self) {
        loop_left(&self.0.loader);
    }
}

impl Iterator for Batches {
    type Item = Result<Dynamic>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().transpose()
    }
}

impl Batches {
    fn next_batch(&mut self) -> Result<Option<Dynamic>> {
        self.0.training.check(BATCHES)?;
        if self.0.is_over()? {
            return Ok(None);
        }
        if let Some(batch) = next_batch(&self.0.loader)? {
            return Ok(Some(batch));
        }
        Err(self.0.data_ended()?)
    }
}
