//! `dsr sweep`: a recipe with each combination of parameter values, one run after another.
//!
//! Each run is a process of its own, `dsr run` or `dsr launch` with the same grants, and has its
//! directory like any other. What the sweep knows of its runs is in these directories alone, so that the
//! same command goes on with a sweep that was stopped or killed.

mod grid;
mod standing;
mod table;

use std::{
    path::PathBuf,
    process::{Child, Command, ExitStatus},
    thread,
    time::Duration,
};

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};

use self::{
    grid::Point,
    standing::{Planned, Standing},
    table::Results,
};
use super::{
    Console, console,
    device::DeviceArgs,
    grants::GrantArgs,
    host,
    origin::LockArgs,
    run_args::{ParamArgs, RunArgs},
    signals,
    style::{STRONG, painted},
    words::own_words,
};
use crate::{
    error::{Code, Error, Result},
    recipe::{self, Failure, Recipe},
    run::{Interrupt, RunSummary, Start, check_name, shell_line},
    script::Session,
};

/// How often the sweep looks whether its run has ended.
const LOOKS_AFTER: Duration = Duration::from_millis(50);

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    /// The recipe: a .rhai file, one that is part of dsr, or https://HOST/FILE#sha256=HEX.
    recipe: PathBuf,

    /// The values of a parameter: lr=1e-4,3e-4 or, of numbers, seed=1..3: the whole ones, both ends included.
    #[arg(short = 'p', long = "param", value_name = "NAME=VALUES")]
    param: Vec<String>,

    /// Read parameters that all runs share from a JSON object; -p wins.
    #[arg(long, value_name = "FILE.json")]
    params: Option<PathBuf>,

    /// Name the sweep; its runs are NAME-PARAMETER=VALUE [default: the recipe's name].
    #[arg(long)]
    name: Option<String>,

    /// Run each in this many processes of this machine, as `dsr launch` does.
    #[arg(long, visible_alias = "nproc_per_node", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    nproc_per_node: Option<u16>,

    #[command(flatten)]
    device: DeviceArgs,

    /// Check all combinations and list them, and run nothing.
    #[arg(long)]
    dry_run: bool,

    /// Print the table as JSON, and what the runs print on standard error.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    grants: GrantArgs,

    #[command(flatten)]
    lock: LockArgs,
}

pub(super) fn run(mut args: SweepArgs, console: &Console, verbose: bool) -> Result<(), Failure> {
    let recipe = args.grants.open(&args.recipe)?;
    let points = args.points(&recipe)?;
    let runs = standing::all_runs()?;
    let planned: Vec<_> = points
        .into_iter()
        .map(|point| args.plan(point, &recipe, &runs, console))
        .collect::<Result<_, Failure>>()?;
    if args.dry_run {
        match args.json {
            true => console::out_json(format_args!("{:#}", table::planned_as_json(&planned))),
            false => console::out(&table::planned(&planned)),
        }
        return Ok(());
    }
    // The questions are asked once, before the first run.
    for Planned { point, .. } in &planned {
        let mut host = args.host(point, &recipe, console)?;
        args.grants.settle(&mut host, &recipe)?;
    }
    let interrupt = Interrupt::new();
    signals::install(&interrupt)?;
    let outcome = args.run_all(&planned, &interrupt, verbose);
    let results = Results::of(&planned)?;
    match args.json {
        true => console::out_json(format_args!("{:#}", results.as_json())),
        false => console::out(&results.as_table()),
    }
    Ok(outcome?)
}

impl SweepArgs {
    fn points(&self, recipe: &Recipe) -> Result<Vec<Point>, Failure> {
        let description = recipe::describe(recipe)?;
        let name = self.name.clone().unwrap_or_else(|| Recipe::stem(&recipe.name));
        check_name(&name)?;
        let kind = |name: &str| {
            let found = description.parameters.iter().find(|parameter| parameter.name == name);
            found.map(|parameter| parameter.type_name())
        };
        Ok(grid::points(&name, &self.param, kind)?)
    }

    fn given(&self, point: &Point) -> ParamArgs {
        ParamArgs { param: point.assignments.clone(), params: self.params.clone() }
    }

    fn host(
        &self,
        point: &Point,
        recipe: &Recipe,
        console: &Console,
    ) -> Result<crate::script::Host, Failure> {
        let given = self.given(point);
        let mut host = host::of(recipe, &given, self.grants.fetch(), console, |_| ())?;
        self.lock.settle(&mut host.workspace, recipe)?;
        host.run.name = Some(point.name.clone());
        host.run.named_by = "dsr sweep";
        Ok(host)
    }

    /// Checks the recipe with the values of a run, and looks how that run stands.
    fn plan(
        &self,
        point: Point,
        recipe: &Recipe,
        runs: &[RunSummary],
        console: &Console,
    ) -> Result<Planned, Failure> {
        let session = Session::new(self.host(&point, recipe, console)?);
        session.check(recipe)?;
        let standing = standing::of(standing::latest(runs, &point.name), &session.record())?;
        Ok(Planned { point, standing })
    }

    /// Makes the runs that are not complete. One that fails does not keep the others from being tried.
    fn run_all(&self, planned: &[Planned], interrupt: &Interrupt, verbose: bool) -> Result<()> {
        let mut failed = Vec::new();
        for (i, Planned { point, standing }) in planned.iter().enumerate() {
            let of_all = format!("run {} of {}: {}", i + 1, planned.len(), point.name);
            let of_all = if console::colors() { painted(&of_all, STRONG) } else { of_all };
            if let Standing::Complete(state) = standing {
                console::err(&format!("{of_all} is {}\n", state.name()));
                continue;
            }
            console::err(&format!("{of_all}\n"));
            let child = self.start(point, *standing == Standing::Resumable, verbose)?;
            let status = wait(child, interrupt)?;
            if interrupt.requested() {
                let message = format!("the sweep is stopped in run {} of {}", i + 1, planned.len());
                return Err(Error::new(Code::Interrupted, message)
                    .hint(format!("go on with: {}", shell_line(&own_words()))));
            }
            if !status.success() {
                console::err(&format!("{} ended with {status}\n", point.name));
                failed.push(point.name.as_str());
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        let message = format!("{} of {} runs are not complete", failed.len(), planned.len());
        Err(Error::new(Code::Recipe, message)
            .hint(format!("they are: {}", failed.join(", ")))
            .hint("the same command tries these again"))
    }

    /// Starts the process of a run.
    fn start(&self, point: &Point, goes_on: bool, verbose: bool) -> Result<Child> {
        let program = std::env::current_exe()
            .map_err(|e| Error::new(Code::Io, "cannot find this program").caused_by(e))?;
        let run = RunArgs {
            recipe: Some(self.recipe.clone()),
            given: self.given(point),
            resume: goes_on.then_some(Start::Latest),
            name: Some(point.name.clone()),
            device: self.device,
            profile: None,
            dry_run: false,
            explain_permissions: false,
            help: false,
            grants: self.grants.clone(),
            lock: self.lock.clone(),
        };
        let mut command = Command::new(program);
        command.args(verbose.then_some("--verbose"));
        match self.nproc_per_node {
            Some(ranks) => command.arg("launch").arg(format!("--nproc-per-node={ranks}")),
            None => command.arg("run"),
        };
        command.args(run.words()).args(console::colour_argument());
        if self.json {
            command.stdout(std::io::stderr());
        }
        command
            .spawn()
            .map_err(|e| Error::new(Code::Io, "cannot start a process of dsr").caused_by(e))
    }
}

/// Waits for the end of a run. A request to stop is handed on, as a terminal's Ctrl-C alone reaches the
/// run by itself.
fn wait(mut child: Child, interrupt: &Interrupt) -> Result<ExitStatus> {
    let mut told = false;
    loop {
        let ended = child.try_wait();
        let ended =
            ended.map_err(|e| Error::new(Code::Internal, "cannot wait for a run").caused_by(e))?;
        if let Some(status) = ended {
            return Ok(status);
        }
        if interrupt.requested() && !told {
            told = true;
            // The process is still there, or has ended and is not waited for yet.
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
        }
        thread::sleep(LOOKS_AFTER);
    }
}
