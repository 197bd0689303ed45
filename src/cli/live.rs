//! `dsr repl` and `dsr eval`: a session instead of a recipe.

use std::{
    cell::Cell,
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
};

use super::{
    args::{EvalArgs, ReplArgs},
    ask::ask_for,
    console::{self, Console},
    device::DeviceArgs,
    grants::GrantArgs,
    host, launch, report,
    run_args::ParamArgs,
    signals,
};
use crate::{
    bridge,
    dist::Rendezvous,
    error::{Code, Error, IoContext},
    live::Live,
    recipe::{Failure, Recipe},
    repl::{self, Screen},
    script::Host,
};

/// Runs a session; the result is the exit status.
pub(super) fn repl(args: ReplArgs, console: &Console, verbose: bool) -> Result<u8, Failure> {
    if args.load.is_none() && (!args.given.param.is_empty() || args.given.params.is_some()) {
        let error = Error::new(Code::Usage, "-p gives a value to a parameter of the loaded recipe");
        return Err(error.hint("name the recipe with --load").into());
    }
    let recipe = args.load.as_deref().map(|spec| args.grants.open(spec)).transpose()?;
    let given = (&args.given, args.device);
    let live = session(recipe.as_ref(), given, &args.grants, console)?;
    let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let screen = screen(console, is_terminal, verbose);
    if is_terminal {
        repl::converse(live.typed(), screen, recipe)?;
        return Ok(0);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).at("read", Path::new("standard input"))?;
    repl::run_script(live, screen, recipe, &text)?;
    Ok(0)
}

/// Prints the value of a text.
pub(super) fn eval(args: EvalArgs, console: &Console) -> Result<(), Failure> {
    let given = (&ParamArgs::default(), args.device);
    let mut live = session(None, given, &args.grants, console)?.typed();
    let value = live.eval(&args.text)?;
    if !value.is_nothing() {
        console.print(&live.print(&value));
    }
    Ok(())
}

fn session(
    recipe: Option<&Recipe>,
    (given, device): (&ParamArgs, DeviceArgs),
    grants: &GrantArgs,
    console: &Console,
) -> Result<Live, Failure> {
    let nothing = || Recipe { name: "repl".into(), text: String::new(), base_dir: ".".into() };
    let recipe = recipe.cloned().unwrap_or_else(nothing);
    let output = grants.output(console);
    let print = move |line: &str| output.print(line);
    let mut host: Host = host::of(&recipe, given, grants.fetch(), console, print)?;
    refuse_ranks(&host)?;
    device.give(&mut host)?;
    if grants.give(&mut host) {
        host.workspace.rights.ask = Some(Box::new(ask_for));
    }
    grants.limit_time(&host, console);
    signals::install_for_session(&host.interrupt)?;
    host.run.command = launch::command();
    Live::new(host)
}

/// Each of several ranks would need what is typed.
fn refuse_ranks(host: &Host) -> Result<(), Error> {
    match Rendezvous::from_env(&host.workspace.rights.env)? {
        Some(rendezvous) if rendezvous.world_size > 1 => {
            let message = format!(
                "a session is for one process, and this is one of {}",
                rendezvous.world_size
            );
            Err(Error::new(Code::Usage, message)
                .hint("run a recipe on several: dsr launch --nproc-per-node N recipe.rhai"))
        }
        _ => Ok(()),
    }
}

fn screen(console: &Console, is_terminal: bool, verbose: bool) -> Screen {
    let (printer, bar) = (console.clone(), console.clone());
    let color = console::has_colours();
    Screen {
        print: Box::new(move |text| printer.print(text)),
        error: Box::new(move |failure, verbose| {
            console::err(&report::text(failure, verbose, color));
        }),
        settle: Box::new(move || bar.finish()),
        color,
        greeted: is_terminal && bridge::early::greeted(),
        verbose: Cell::new(verbose),
        state: state_dir(),
    }
}

/// Where dsr keeps what it wants to find again.
fn state_dir() -> Option<PathBuf> {
    let path = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let state = path("XDG_STATE_HOME").or_else(|| Some(path("HOME")?.join(".local/state")))?;
    Some(state.join("dsr"))
}
