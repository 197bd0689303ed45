//! Questions to the user on a terminal: may a recipe do this?

use std::{fmt::Write as _, io::BufRead};

use super::console;
use crate::{
    foreign::{Foreign, lines},
    permission::Access,
    recipe::{
        Recipe,
        requests::{Request, Requests},
    },
};

/// The user's answer to all that a recipe asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Once,
    Trust,
    No,
}

/// One screen with all that the recipe asks for, and what the user says to it.
pub(super) fn ask(
    recipe: &Recipe,
    hash: &str,
    missing: &[Request],
    requests: &Requests,
    can_trust: bool,
) -> Answer {
    let (first, last) = (&hash[..4], &hash[hash.len() - 2..]);
    let mut screen = format!("{} (sha256 {first}...{last}) wants:\n", Foreign(&recipe.name));
    for request in missing {
        let _ = writeln!(
            screen,
            "  {:6}  {}  {}",
            request.capability.name(),
            Foreign(&request.what),
            Foreign(&request.wanted_by)
        );
    }
    let trust = if can_trust { "[t] trust this exact file   " } else { "" };
    let question = format!("Allow?  [y] once   {trust}[n] no   [v] view source  ");
    console::err(&screen);
    let sources = requests.texts.iter().map(|(name, text)| source(name, text));
    answer(&question, can_trust, &sources.collect::<String>())
}

/// Asks for one access of a session.
pub(super) fn ask_for(access: &Access<'_>) -> bool {
    let wanted = match access {
        Access::Read(path) => format!("read {}", path.display()),
        Access::Write(path) => format!("write {}", path.display()),
        Access::Net(host) => format!("connect to {host}"),
        Access::Import(host) => format!("import code from {host}"),
    };
    let question =
        format!("This wants to {}. Allow?  [y] for this session   [n] no  ", Foreign(&wanted));
    answer(&question, false, "") == Answer::Once
}

/// Asks whether a text may run that the user's trust is not in.
pub(super) fn ask_to_run(name: &str, text: &str) -> bool {
    let question = format!(
        "The recipe is trusted without {}, which it imports now. \
         Run it?  [y] once   [n] no   [v] view source  ",
        Foreign(name)
    );
    answer(&question, false, &source(name, text)) == Answer::Once
}

fn source(name: &str, text: &str) -> String {
    format!("--- {}\n{}\n", Foreign(name), lines(text))
}

/// Asks until there is an answer; nothing is `n`, and `v` shows the source.
fn answer(question: &str, can_trust: bool, source: &str) -> Answer {
    loop {
        console::err(question);
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line).unwrap_or(0) == 0 {
            return Answer::No;
        }
        match line.trim() {
            "y" => return Answer::Once,
            "t" if can_trust => return Answer::Trust,
            "n" | "" => return Answer::No,
            "v" => console::err(source),
            _ => {}
        }
    }
}
