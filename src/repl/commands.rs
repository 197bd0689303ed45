//! The commands of a session: a colon and a word.

use std::path::Path;

use super::{
    layout::{Layout, TITLE, wrapped},
    plot, saving,
    session::Session,
    timing,
};
use crate::{
    config::suggest::nearest,
    error::{Code, Error},
    foreign::Foreign,
    fs,
    live::{
        Live,
        card::Table,
        complete::{Candidate, Completion},
        curves::CURVES,
    },
    recipe::{Failure, Recipe, file::BUILT_IN},
    run,
    script::reference,
    units::{Bytes, proc_bytes},
};

/// The function of a command; true ends the session.
type Run = fn(&mut Session, &str) -> Result<bool, Failure>;

/// A command.
struct Command {
    name: &'static str,
    arguments: &'static str,
    help: &'static str,
    run: Run,
}

/// All of them.
const COMMANDS: [Command; 16] = [
    Command {
        name: "doc",
        arguments: "[NAME]",
        help: "the reference, as ?NAME; without a name what there is",
        run: doc,
    },
    Command { name: "help", arguments: "", help: "these commands", run: help },
    Command {
        name: "history",
        arguments: "[WORD]",
        help: "inputs of this directory, of all its sessions",
        run: history,
    },
    Command { name: "load", arguments: "FILE", help: "run a recipe as one input", run: load },
    Command {
        name: "mem",
        arguments: "",
        help: "what variables and this process take of memory",
        run: memory,
    },
    Command {
        name: "perm",
        arguments: "",
        help: "what was given beside what every recipe may do",
        run: permissions,
    },
    Command {
        name: "plot",
        arguments: "loss|lr|grad_norm|VALUES [--svg FILE]",
        help: "a curve, in the terminal or in a file",
        run: draw,
    },
    Command { name: "quit", arguments: "", help: "leave, as Ctrl-D", run: |_, _| Ok(true) },
    Command {
        name: "reload",
        arguments: "",
        help: "forget all, and run the loaded recipe again",
        run: reload,
    },
    Command {
        name: "reset",
        arguments: "",
        help: "forget variables, functions, imports and parameters",
        run: reset,
    },
    Command {
        name: "save",
        arguments: "[--force] FILE",
        help: "write what worked so far as a recipe",
        run: save,
    },
    Command {
        name: "seed",
        arguments: "N",
        help: "seed the random numbers: manual_seed(N)",
        run: seed,
    },
    Command {
        name: "time",
        arguments: "TEXT",
        help: "run it until its median is known",
        run: time,
    },
    Command { name: "type", arguments: "TEXT", help: "the type of its value", run: type_of },
    Command {
        name: "vars",
        arguments: "",
        help: "variables, parameters and functions of the session",
        run: variables,
    },
    Command {
        name: "verbose",
        arguments: "",
        help: "show the causes of errors, or no longer",
        run: verbose,
    },
];

/// Whether the input is a command.
pub(super) fn is_command(text: &str) -> bool {
    text.starts_with(':')
}

/// Does what was entered; true ends the session.
pub(super) fn enter(session: &mut Session, text: &str) -> Result<bool, Failure> {
    let text = text.trim_end();
    if ["exit", "quit", "exit()", "quit()"].contains(&text.trim()) {
        return Ok(true);
    }
    if is_command(text) {
        return run(session, text);
    }
    if let Some(name) = text.strip_prefix('?') {
        let name = name.trim();
        return if name.is_empty() {
            run(session, ":help")
        } else {
            session.help(name).map(|()| false)
        };
    }
    if !text.trim().is_empty() {
        let value = session.live().eval(text)?;
        session.show(&value);
    }
    Ok(false)
}

/// Runs a line that begins with a colon.
fn run(session: &mut Session, line: &str) -> Result<bool, Failure> {
    let line = line.trim_start_matches(':').trim();
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    match COMMANDS.iter().find(|command| command.name == name) {
        Some(command) => (command.run)(session, rest.trim()),
        None => {
            let error = Error::new(Code::Usage, format!("there is no command :{name}"));
            let near = nearest(name, COMMANDS.iter().map(|command| command.name));
            Err(match near {
                Some(near) => error.hint(format!("did you mean :{near}?")),
                None => error.hint(":help lists them"),
            }
            .into())
        }
    }
}

/// Completes a line with a command at byte `at`: its name, a curve, a file. `None` where it
/// is no command, or takes what an input has.
pub(super) fn complete(live: &Live, line: &str, at: usize) -> Option<Completion> {
    let typed = line[..at].strip_prefix(':')?;
    let candidate =
        |text: &str, help: &str| Candidate { text: text.to_owned(), help: help.to_owned() };
    let Some((name, argument)) = typed.split_once(char::is_whitespace) else {
        let known = COMMANDS.iter().map(|command| candidate(command.name, command.help));
        return Some(going_on(known, typed, at));
    };
    let file = argument.trim_start().trim_start_matches("--force ").trim_start();
    let file = file.trim_start_matches('"');
    let is_recipe = |path: &Candidate| path.text.ends_with(".rhai") || path.text.ends_with('/');
    let recipes = || live.paths(file).into_iter().filter(is_recipe);
    match name {
        "load" => {
            let own = BUILT_IN.iter().map(|recipe| candidate(recipe.name, "in dsr"));
            Some(going_on(own.chain(recipes()), file, at))
        }
        "save" => Some(going_on(recipes(), file, at)),
        "plot" => {
            let curves = CURVES.iter().map(|curve| candidate(curve, "of the last engine's steps"));
            Some(going_on(curves, argument, at)).filter(|found| !found.candidates.is_empty())
        }
        _ => None,
    }
}

/// The names of `all` that begin with the text typed up to byte `at`.
fn going_on(all: impl Iterator<Item = Candidate>, typed: &str, at: usize) -> Completion {
    let candidates = all.filter(|candidate| candidate.text.starts_with(typed)).collect();
    Completion { start: at - typed.len(), candidates }
}

/// Where the argument of a command begins, for what is completed in it.
pub(super) fn argument_start(line: &str) -> Option<usize> {
    let rest = line.strip_prefix(':')?;
    Some(1 + rest.find(char::is_whitespace)? + 1)
}

fn usage(name: &str) -> Failure {
    let command = COMMANDS.iter().find(|command| command.name == name);
    let arguments = command.map_or("", |command| command.arguments);
    Error::new(Code::Usage, format!("write :{name} {arguments}")).into()
}

fn help(session: &mut Session, _: &str) -> Result<bool, Failure> {
    let row = |c: &Command| vec![format!(":{} {}", c.name, c.arguments), c.help.to_owned()];
    let mut rows: Vec<_> = COMMANDS.iter().map(row).collect();
    let keys = [
        ("?NAME", "help for a function, a type, or value.member"),
        ("Tab", "what may come next, with its help"),
        ("Ctrl-R", "search earlier inputs"),
        ("Ctrl-C", "stop what runs; variables stay"),
    ];
    rows.extend(keys.iter().map(|(key, what)| vec![(*key).to_owned(), (*what).to_owned()]));
    session.table(&Table { head: vec![String::new(); 2], rows });
    Ok(false)
}

fn doc(session: &mut Session, name: &str) -> Result<bool, Failure> {
    if !name.is_empty() {
        return session.help(name).map(|()| false);
    }
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    for entry in reference::entries() {
        match groups.iter_mut().find(|(group, _)| *group == entry.group) {
            Some((_, names)) if names.contains(&entry.name) => {}
            Some((_, names)) => names.push(entry.name),
            None => groups.push((entry.group, vec![entry.name])),
        }
    }
    let layout = session.layout();
    for (group, names) in groups {
        let lines = wrapped(&names.join(" "), layout.width.saturating_sub(4));
        (session.screen.print)(&layout.styled(TITLE, &group));
        lines.iter().for_each(|line| (session.screen.print)(&format!("  {}", line.trim_start())));
    }
    Ok(false)
}

fn history(session: &mut Session, word: &str) -> Result<bool, Failure> {
    for text in session.history.iter().filter(|text| text.contains(word)) {
        (session.screen.print)(text);
    }
    Ok(false)
}

fn load(session: &mut Session, file: &str) -> Result<bool, Failure> {
    if file.is_empty() {
        return Err(usage("load"));
    }
    let recipe = Recipe::open(Path::new(unquoted(file)))?;
    session.load(recipe).map(|()| false)
}

fn reload(session: &mut Session, _: &str) -> Result<bool, Failure> {
    let Some(recipe) = &session.recipe else {
        let error = Error::new(Code::CallOrder, "no recipe was loaded");
        return Err(error.hint("load one with :load FILE").into());
    };
    let recipe = Recipe::open(Path::new(&recipe.name))?;
    session.live().reset();
    session.load(recipe).map(|()| false)
}

fn reset(session: &mut Session, _: &str) -> Result<bool, Failure> {
    session.live().reset();
    Ok(false)
}

fn save(session: &mut Session, arguments: &str) -> Result<bool, Failure> {
    let (force, file) = match arguments.strip_prefix("--force") {
        Some(file) => (true, file.trim()),
        None => (false, arguments),
    };
    if file.is_empty() {
        return Err(usage("save"));
    }
    let place = session.live().writable(unquoted(file))?;
    saving::save(&place, &session.live(), force)?;
    (session.screen.print)(&Foreign(&place.display().to_string()).to_string());
    Ok(false)
}

fn seed(session: &mut Session, number: &str) -> Result<bool, Failure> {
    let number: i64 = number.parse().map_err(|_| usage("seed"))?;
    session.live().eval(&format!("manual_seed({number});"))?;
    Ok(false)
}

fn time(session: &mut Session, text: &str) -> Result<bool, Failure> {
    if text.is_empty() {
        return Err(usage("time"));
    }
    let (_, times) = session.live().repeat(text, &timing::tells_more)?;
    (session.screen.print)(&timing::summary(&times));
    Ok(false)
}

fn type_of(session: &mut Session, text: &str) -> Result<bool, Failure> {
    if text.is_empty() {
        return Err(usage("type"));
    }
    let value = session.live().peek(text)?;
    let kind = session.live().type_of(&value);
    (session.screen.print)(&kind);
    Ok(false)
}

fn variables(session: &mut Session, _: &str) -> Result<bool, Failure> {
    let live = session.live();
    let (parameters, functions) = (live.parameters(), live.functions());
    let row = |v: crate::live::Variable| vec![v.name, v.kind, v.shown];
    let mut rows: Vec<_> = live.variables().into_iter().map(row).collect();
    rows.extend(
        parameters.into_iter().map(|(name, value, help)| vec![format!("P::{name}"), value, help]),
    );
    rows.extend(functions.into_iter().map(|name| vec![name, "function".to_owned(), String::new()]));
    drop(live);
    match rows.is_empty() {
        true => (session.screen.print)("nothing yet"),
        false => session.table(&Table { head: vec![String::new(); 3], rows }),
    }
    Ok(false)
}

fn memory(session: &mut Session, _: &str) -> Result<bool, Failure> {
    let holders = session.live().variables().into_iter().filter(|v| v.bytes > 0);
    let mut rows: Vec<_> =
        holders.map(|v| vec![v.name, Bytes(v.bytes).to_string(), v.shown]).collect();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(bytes) = proc_bytes(&status, "VmRSS:") {
        rows.push(vec![
            "this process".to_owned(),
            Bytes(bytes).to_string(),
            "resident in host memory".to_owned(),
        ]);
    }
    session.table(&Table { head: vec![String::new(); 3], rows });
    Ok(false)
}

fn permissions(session: &mut Session, _: &str) -> Result<bool, Failure> {
    let lines = session.live().host().workspace.rights.in_words();
    lines.iter().for_each(|line| (session.screen.print)(line));
    Ok(false)
}

fn verbose(session: &mut Session, _: &str) -> Result<bool, Failure> {
    session.screen.verbose.set(!session.screen.verbose.get());
    Ok(false)
}

fn draw(session: &mut Session, arguments: &str) -> Result<bool, Failure> {
    let (what, svg) = match arguments.split_once("--svg") {
        Some((what, file)) => (what.trim(), Some(unquoted(file.trim()))),
        None => (arguments, None),
    };
    if what.is_empty() || svg.is_some_and(str::is_empty) {
        return Err(usage("plot"));
    }
    svg.map_or(Ok(()), run::Picture::check_name)?;
    let points = points(session, what)?;
    let nothing = || Error::new(Code::BadValue, format!("{what} has no number to draw"));
    match svg {
        Some(file) => {
            let finite: Vec<_> = points.into_iter().filter(|(_, y)| y.is_finite()).collect();
            let picture = run::curve_svg(what, &finite)?.ok_or_else(nothing)?;
            let place = session.live().writable(file)?;
            picture.write_over_own(&place)?;
            (session.screen.print)(&Foreign(&place.display().to_string()).to_string());
        }
        None => {
            let Layout { width, .. } = session.layout();
            let points: Vec<_> = points.into_iter().map(|(x, y)| (x as f64, y)).collect();
            let drawn = plot::curve(what, &points, width).ok_or_else(nothing)?;
            (session.screen.print)(&drawn);
        }
    }
    Ok(false)
}

/// The curve of an engine, or the numbers of a value.
fn points(session: &mut Session, what: &str) -> Result<Vec<(u64, f64)>, Failure> {
    if let Some(points) = session.live().curve(what) {
        return Ok(points);
    }
    let mut live = session.live();
    if CURVES.contains(&what) && live.variables().iter().all(|v| v.name != what) {
        let error = Error::new(Code::CallOrder, "no engine of this session has done a step");
        return Err(error.hint("engine.step() does one, after forward and backward").into());
    }
    let value = live.peek(what)?;
    let Some(numbers) = live.numbers(&value) else {
        let kind = live.type_of(&value);
        let error =
            Error::new(Code::WrongType, format!("a curve is made of numbers, found {kind}"));
        return Err(error.hint("give an array of numbers, or a tensor").into());
    };
    Ok((0..).zip(numbers).collect())
}

fn unquoted(file: &str) -> &str {
    file.trim_matches(['"', '\''])
}
