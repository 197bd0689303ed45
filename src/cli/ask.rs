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
    loop {
        console::err(&question);
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line).unwrap_or(0) == 0 {
            return Answer::No;
        }
        match line.trim() {
            "y" => return Answer::Once,
            "t" if can_trust => return Answer::Trust,
            "n" | "" => return Answer::No,
            "v" => {
                for (name, text) in &requests.texts {
                    console::err(&format!("--- {}\n{}\n", Foreign(name), lines(text)));
                }
            }
            _ => {}
        }
    }
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
    is_allowed(&question, None)
}

/// Asks whether a text may run that the user's trust is not in.
pub(super) fn ask_to_run(name: &str, text: &str) -> bool {
    let name = Foreign(name);
    let question = format!(
        "The recipe is trusted without {name}, which it imports now. \
         Run it?  [y] once   [n] no   [v] view source  "
    );
    is_allowed(&question, Some(&format!("--- {name}\n{}\n", lines(text))))
}

/// Asks until the answer is `y`, or `n` or nothing; `v` shows the source, where there is one.
fn is_allowed(question: &str, source: Option<&str>) -> bool {
    loop {
        console::err(question);
        let mut line = String::new();
        if std::io::stdin().lock().read_line(&mut line).unwrap_or(0) == 0 {
            return false;
        }
        match (line.trim(), source) {
            ("y", _) => return true,
            ("n" | "", _) => return false,
            ("v", Some(source)) => console::err(source),
            _ => {}
        }
    }
}
