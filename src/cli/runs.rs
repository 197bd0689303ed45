//! `dsr runs`: the runs of this directory, listed, compared and removed.

use std::{
    io::{BufRead, IsTerminal},
    path::{Path, PathBuf},
};

use anstyle::Style;
use chrono::DateTime;
use clap::{Args, Subcommand};
use serde_json::Value;

use super::{
    columns::coloured,
    console,
    style::{BAD, STRONG, of_state, painted},
};
use crate::{
    config::suggest::nearest,
    error::{Code, Error, Result},
    foreign::{Foreign, ForeignPath},
    fs::Place,
    repl::curve,
    run::{Picture, Removal, RunSummary, State, differences, list_runs, losses_svg},
};

/// Columns of a curve where the terminal does not say how wide it is.
const WIDTH: usize = 100;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct RunsArgs {
    #[command(subcommand)]
    command: Option<RunsCommand>,

    #[command(flatten)]
    list: ListArgs,
}

#[derive(Debug, Subcommand)]
enum RunsCommand {
    /// List the runs, as `dsr runs` alone does.
    Ls(ListArgs),

    /// Compare runs: parameters and settings that differ, losses, curves.
    Compare(CompareArgs),

    /// Remove runs with their checkpoints, after a question.
    Rm(RemoveArgs),
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Show only runs whose name, recipe's parameters or error have this text in them.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,

    /// Show only runs that stand so.
    #[arg(long, value_parser = State::NAMES.map(|(_, name)| name))]
    status: Option<String>,

    /// Print as JSON.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    root: RootArgs,
}

#[derive(Debug, Args)]
pub(super) struct RootArgs {
    /// The directory of the runs.
    #[arg(long, value_name = "DIR", default_value = "runs")]
    pub(super) root: PathBuf,
}

#[derive(Debug, Args)]
struct CompareArgs {
    /// The runs, by name or path.
    #[arg(required = true, num_args = 2..)]
    runs: Vec<String>,

    /// Write the curves of all runs into this picture.
    #[arg(long, value_name = "FILE.svg")]
    svg: Option<PathBuf>,

    #[command(flatten)]
    root: RootArgs,
}

#[derive(Debug, Args)]
struct RemoveArgs {
    /// The runs, by name or path.
    #[arg(required = true)]
    runs: Vec<String>,

    /// Remove them without a question.
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    root: RootArgs,
}

pub(super) fn run(args: RunsArgs) -> Result<()> {
    match args.command {
        None => list(&args.list),
        Some(RunsCommand::Ls(args)) => list(&args),
        Some(RunsCommand::Compare(args)) => compare(&args),
        Some(RunsCommand::Rm(args)) => remove(args),
    }
}

fn list(args: &ListArgs) -> Result<()> {
    let mut runs = list_runs(Place::unguarded(&args.root.root))?;
    let all = runs.len();
    runs.retain(|run| {
        let of_status = args.status.as_ref().is_none_or(|status| status == run.state.name());
        of_status && args.filter.as_ref().is_none_or(|text| has_text(run, text))
    });
    if args.json {
        let all: Vec<Value> = runs.iter().map(RunSummary::as_json).collect();
        console::out_json(format_args!("{:#}", Value::from(all)));
        return Ok(());
    }
    if runs.is_empty() {
        let root = args.root.root.display();
        console::err(&match all {
            0 => format!("no runs in {root}\n"),
            all => format!("none of the {all} runs in {root} matches\n"),
        });
        return Ok(());
    }
    let head = ["RUN", "STATUS", "STEP", "LOSS", "BEST EVAL", "STARTED", "TOOK"];
    let rows: Vec<_> = runs.iter().map(row).collect();
    console::out(&coloured(&head.map(str::to_owned), &rows, |column, cell| match column {
        0 => STRONG,
        1 => of_state(cell),
        _ => Style::new(),
    }));
    for run in &runs {
        let error = run.text("error").filter(|_| run.state == State::Failed);
        for fault in error.into_iter().chain(run.damage.as_deref()) {
            let first = Foreign(fault.lines().next().unwrap_or_default());
            let line = format!("{}: {first}", Foreign(&run.name));
            let line = if console::has_colours() { painted(&line, BAD) } else { line };
            console::out(&format!("{line}\n"));
        }
    }
    Ok(())
}

fn has_text(run: &RunSummary, text: &str) -> bool {
    let params = run.told.get("params").map(Value::to_string).unwrap_or_default();
    let error = run.text("error").unwrap_or_default();
    [run.name.as_str(), params.as_str(), error].iter().any(|place| place.contains(text))
}

fn row(run: &RunSummary) -> Vec<String> {
    let none = || "-".to_owned();
    let step = match run.told.get("total_steps").and_then(Value::as_u64) {
        Some(total) => format!("{}/{total}", run.last.step),
        None => run.last.step.to_string(),
    };
    let loss = run.last.loss.map_or_else(none, |loss| format!("{loss:.3}"));
    let best = run.last.best_evaluation;
    let best = best.map_or_else(none, |best| format!("{:.3} at {}", best.loss, best.step));
    let started = run.text("started_at").map_or_else(none, |time| time.replace(['T', 'Z'], " "));
    vec![
        run.name.clone(),
        run.state.name().to_owned(),
        step,
        loss,
        best,
        started.trim_end().to_owned(),
        took(run).unwrap_or_else(none),
    ]
}

/// The time from the start, or the last continuation, to the end.
fn took(run: &RunSummary) -> Option<String> {
    let time = |key| DateTime::parse_from_rfc3339(run.text(key)?).ok();
    let began = time("resumed_at").or_else(|| time("started_at"))?;
    let seconds = (time("ended_at")? - began).num_seconds();
    Some(match seconds {
        ..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    })
}

/// The runs of these names or paths, each once.
fn chosen(names: &[String], root: &Path) -> Result<Vec<RunSummary>> {
    let mut all = list_runs(Place::unguarded(root))?;
    let mut found = Vec::new();
    for name in names {
        let path = Path::new(name);
        let is = |run: &RunSummary| run.name == *name || run.path() == path;
        if let Some(at) = all.iter().position(is) {
            found.push(all.remove(at));
            continue;
        }
        if found.iter().any(is) {
            continue;
        }
        let e = Error::new(Code::BadValue, format!("no run {name:?} in {}", root.display()));
        return Err(match nearest(name, all.iter().map(|run| run.name.as_str())) {
            Some(near) => e.hint(format!("did you mean {near:?}?")),
            None => e.hint("`dsr runs` lists them"),
        });
    }
    Ok(found)
}

fn compare(args: &CompareArgs) -> Result<()> {
    args.svg.iter().try_for_each(Picture::check_name)?;
    let runs = chosen(&args.runs, &args.root.root)?;
    if let [only] = &runs[..] {
        let message = format!("{} is one run: there is nothing to compare", only.name);
        return Err(Error::new(Code::Usage, message));
    }
    let mut head = vec![String::new()];
    head.extend(runs.iter().map(|run| run.name.clone()));
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut add = |name: &str, values: Vec<String>| {
        rows.push(std::iter::once(name.to_owned()).chain(values).collect());
    };
    for (name, values) in differences(&runs) {
        add(&name, values);
    }
    let told: Vec<Vec<String>> = runs.iter().map(row).collect();
    for (name, i) in [("status", 1), ("step", 2), ("loss", 3), ("best eval", 4), ("took", 6)] {
        add(name, told.iter().map(|values| values[i].clone()).collect());
    }
    let losses = runs.iter().map(RunSummary::losses).collect::<Result<Vec<_>>>()?;
    if losses.iter().any(|losses| losses.unreadable > 0) {
        add(
            "unreadable metrics",
            losses.iter().map(|losses| format!("{} lines", losses.unreadable)).collect(),
        );
    }
    console::out(&coloured(&head, &rows, |column, cell| match column {
        0 => Style::new(),
        _ => of_state(cell),
    }));
    for (run, losses) in runs.iter().zip(&losses) {
        let points: Vec<_> =
            losses.points.iter().map(|&(step, loss)| (step as f64, loss)).collect();
        if let Some(drawn) = curve(&format!("{}: loss", run.name), &points, WIDTH) {
            console::out(&format!("\n{drawn}\n"));
        }
    }
    let Some(file) = &args.svg else { return Ok(()) };
    let curves: Vec<_> = runs
        .iter()
        .zip(&losses)
        .map(|(run, losses)| (run.name.as_str(), &losses.points[..]))
        .collect();
    let Some(svg) = losses_svg(&curves)? else {
        return Err(Error::new(Code::BadValue, "none of these runs has a loss to draw"));
    };
    svg.write(Place::unguarded(file))?;
    console::err(&format!("{} has the curves\n", file.display()));
    Ok(())
}

fn remove(args: RemoveArgs) -> Result<()> {
    let runs = chosen(&args.runs, &args.root.root)?;
    let named = |run: &RunSummary| {
        let path = ForeignPath(run.path()).to_string();
        Ok(match run.removal()? {
            Removal::Run => format!("{path} with all checkpoints"),
            Removal::Link => format!("the link {path}, whose run stays"),
        })
    };
    let names = runs.iter().map(named).collect::<Result<Vec<_>>>()?;
    if !args.yes && !consent(&names)? {
        console::err("nothing is removed\n");
        return Ok(());
    }
    for run in runs {
        let path = ForeignPath(run.path()).to_string();
        console::out(&match run.remove()? {
            Removal::Run => format!("removed {path}\n"),
            Removal::Link => format!("removed the link {path}, whose run stays\n"),
        });
    }
    Ok(())
}

/// Asks on the terminal; without one `--yes` is the consent.
fn consent(names: &[String]) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(Code::Usage, "there is no terminal to ask on")
            .hint("--yes removes them without a question"));
    }
    console::err(&format!("Remove {}?  [y] yes   [n] no  ", names.join(", ")));
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    Ok(read.is_ok() && line.trim() == "y")
}
