//! The command line, and the only code that prints, exits or reads the environment.
//!
//! The command line is parsed here, turned into plain values and passed down. Results go to standard
//! output; errors, progress and notes to standard error.

mod args;
mod ask;
mod bundle;
mod chat;
mod check;
mod columns;
mod config;
mod console;
mod crash;
mod device;
mod diff;
mod doc;
mod doctor;
mod download;
mod environment;
mod generate;
mod generated;
mod grants;
mod help;
mod host;
mod launch;
mod live;
mod lock;
mod log;
mod origin;
mod plan;
mod recipe;
pub mod report;
mod run_args;
mod runs;
mod score;
mod served;
mod served_files;
mod signals;
mod style;
mod sweep;
mod table_args;
mod trust;
mod usage;
mod watch;
mod words;

use std::{ffi::OsString, process::ExitCode, thread};

pub use self::console::Console;
use self::{
    args::{Command, PlanArgs},
    run_args::RunArgs,
};
use crate::{
    bridge,
    recipe::Failure,
    run::{LineInterval, Start},
    script::Session,
};

/// Address space for the stack. A value of a recipe may be nested as deep as an array may be long, and
/// goes away level by level.
const STACK: usize = 2 << 30;

/// Runs the program with these arguments (the first is its own name); the result is its exit
/// status, see [`Code::exit_status`](crate::error::Code::exit_status).
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    bridge::alloc::keep_freed_memory();
    bridge::alloc::on_exhausted(crash::exhausted);
    environment::set_defaults();
    let args: Vec<OsString> = args.into_iter().collect();
    let work = || start(&args);
    let deep = thread::Builder::new().name("main".to_owned()).stack_size(STACK);
    thread::scope(|scope| match deep.spawn_scoped(scope, work) {
        Ok(thread) => thread.join().unwrap_or(ExitCode::FAILURE),
        Err(_) => work(),
    })
}

fn start(args: &[OsString]) -> ExitCode {
    let cli = match usage::read(args) {
        Ok(cli) => cli,
        Err(e) => return usage::show(e, args),
    };
    console::choose_colours(cli.color);
    let verbose = cli.verbose;
    let console = Console::new();
    log::install(&console, verbose);
    let outcome = crash::guard(verbose, || match cli.command {
        Command::Run(args) => run(args, &console).map(|()| 0),
        Command::Launch(args) => launch::run(args, &console),
        Command::Plan(args) => plan(&args, &console).map(|()| 0),
        Command::Check(args) => check::run(&args, &console),
        Command::Lock(args) => lock::run(&args, &console).map(|()| 0),
        Command::Recipe(args) => recipe::run(args, &console),
        Command::Doc(args) => doc::show(&args).map(|()| 0).map_err(Failure::from),
        Command::Repl(args) => live::repl(args, &console, verbose),
        Command::Eval(args) => live::eval(args, &console).map(|()| 0),
        Command::Generate(args) => generate::run(&args, &console).map_err(Failure::from),
        Command::Chat(args) => chat::run(&args, &console).map_err(Failure::from),
        Command::Score(args) => score::run(&args, &console).map_err(Failure::from),
        Command::Doctor(args) => Ok(doctor::run(&args)),
        Command::Sweep(args) => sweep::run(args, &console, verbose).map(|()| 0),
        Command::Runs(args) => runs::run(args).map(|()| 0).map_err(Failure::from),
        Command::Watch(args) => watch::run(&args).map(|()| 0).map_err(Failure::from),
        Command::Trust(args) => trust::run(&args).map(|()| 0).map_err(Failure::from),
        Command::Config(args) => config::show(&args).map(|()| 0),
        Command::Completions { shell } => {
            generated::completions(shell);
            Ok(0)
        }
        Command::Man { directory } => {
            generated::manual(&directory).map(|()| 0).map_err(Failure::from)
        }
    });
    console.finish();
    match outcome.and_then(|status| console::lost_output().map(|()| status).map_err(Failure::from))
    {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            report::show(&failure, verbose);
            launch::tell_launcher(&failure);
            ExitCode::from(failure.code().exit_status())
        }
    }
}

fn run(mut args: RunArgs, console: &Console) -> Result<(), Failure> {
    let Some(recipe) = args.recipe.clone() else {
        console::out(&args::help("run"));
        return Ok(());
    };
    let recipe = args.grants.open(&recipe)?;
    if args.help {
        help::print_recipe(&recipe)?;
        return Ok(());
    }
    let output = args.grants.output(console);
    let print = move |line: &str| output.print(line);
    let mut host = host::of(&recipe, &args.given, args.grants.fetch(), console, print)?;
    args.lock.settle(&mut host.workspace, &recipe)?;
    host.workspace.rights.start = args.resume.unwrap_or(Start::Afresh);
    host.run.name = args.name;
    host.run.is_trial = args.dry_run;
    args.device.give(&mut host)?;
    host.run.profile.replace(args.profile);
    if args.explain_permissions {
        return args.grants.explain(&mut host, &recipe);
    }
    args.grants.settle(&mut host, &recipe)?;
    signals::install(&host.interrupt)?;
    host.run.command = launch::command();
    args.grants.limit_time(&host, console);
    args.grants.lock(&host)?;
    if console.has_bar() {
        let bar = console.clone();
        host.run.lines = LineInterval::Never;
        host.output.show_progress =
            Box::new(move |done, total, line| bar.progress(done, total, line));
    }
    Session::new(host).run(&recipe)
}

/// The recipe's output before its training has no place in a plan.
fn plan(args: &PlanArgs, console: &Console) -> Result<(), Failure> {
    let recipe = args.grants.open(&args.recipe)?;
    let mut host = host::of(&recipe, &args.given, args.grants.fetch(), console, |_| ())?;
    args.lock.settle(&mut host.workspace, &recipe)?;
    args.grants.clone().settle(&mut host, &recipe)?;
    signals::install(&host.interrupt)?;
    args.grants.lock(&host)?;
    plan::run(args, &recipe, host)
}
