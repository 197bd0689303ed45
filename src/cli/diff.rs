//! `dsr recipe diff A B`: the differences of two recipes: their texts and imports,
//! their requests, their parameters.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    path::Path,
    time::Duration,
};

use similar::TextDiff;

use super::{console, host, origin::FetchArgs, run_args::ParamArgs};
use crate::{
    foreign::lines,
    recipe::{self, Failure, Recipe, requests},
};

/// Lines around each difference.
const CONTEXT: usize = 3;
/// How long the least difference of two texts is looked for.
const DIFF_TIME: Duration = Duration::from_secs(1);

/// The compared parts of a recipe.
struct Side {
    recipe: Recipe,
    /// By name, what it imports.
    modules: BTreeMap<String, String>,
    /// Powers, each with what it is wanted for.
    requests: BTreeSet<String>,
    /// By name, as lines.
    parameters: BTreeMap<String, String>,
}

impl Side {
    fn open(spec: &Path, fetch: &FetchArgs) -> Result<Self, Failure> {
        let recipe = fetch.open(spec)?;
        let workspace = host::workspace(&recipe, &ParamArgs::default(), fetch)?;
        let found = requests::read(&workspace, &recipe)?;
        let modules = found.modules().map(|(name, text)| (name.to_owned(), text.to_owned()));
        let request = |request: &requests::Request| {
            let name = request.capability.name();
            format!("{name:6}  {}  {}", request.what, request.wanted_by)
        };
        let parameters = recipe::describe(&recipe)?.parameters.into_iter().map(|p| {
            let (default, limits) = (p.default_text(), p.limits_text());
            let words = [p.type_name(), &default, &limits, &p.help];
            let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
            (p.name.clone(), words.join("  "))
        });
        Ok(Self {
            modules: modules.collect(),
            requests: found.list.iter().map(request).collect(),
            parameters: parameters.collect(),
            recipe,
        })
    }
}

/// Prints the differences.
pub(super) fn run(old: &Path, new: &Path, fetch: &FetchArgs) -> Result<(), Failure> {
    let (old, new) = (Side::open(old, fetch)?, Side::open(new, fetch)?);
    console::out(&lines(&text(&old, &new)));
    Ok(())
}

fn text(old: &Side, new: &Side) -> String {
    let names = (old.recipe.name.as_str(), new.recipe.name.as_str());
    let mut text = unified((&old.recipe.text, &new.recipe.text), names);
    let modules: BTreeSet<_> = old.modules.keys().chain(new.modules.keys()).collect();
    for name in modules {
        let of = |side: &Side| side.modules.get(name).cloned().unwrap_or_default();
        let shown = |side: &Side| match side.modules.contains_key(name) {
            true => name.clone(),
            false => "/dev/null".to_owned(),
        };
        text += &unified((&of(old), &of(new)), (&shown(old), &shown(new)));
    }
    if text.is_empty() {
        text.push_str("The texts are the same.\n");
    }
    let requests = [&old.requests, &new.requests].map(|all| all.iter().cloned().collect());
    let _ = write!(text, "\nWhat it asks for{}", changes(&requests));
    let lines = |side: &Side| {
        let line = |(name, words): (&String, &String)| format!("{name}  {words}");
        side.parameters.iter().map(line).collect::<BTreeSet<_>>()
    };
    let _ = write!(text, "\nParameters{}", changes(&[lines(old), lines(new)]));
    text
}

/// The unified diff of two texts; empty where they are the same.
fn unified((old, new): (&str, &str), (old_name, new_name): (&str, &str)) -> String {
    if old == new {
        return String::new();
    }
    // Where texts differ in most lines, the least difference takes time that grows with its square; after a
    // while any difference will do.
    let diff = TextDiff::configure().timeout(DIFF_TIME).diff_lines(old, new);
    diff.unified_diff().context_radius(CONTEXT).header(old_name, new_name).to_string()
}

/// The lines that came and went.
fn changes([old, new]: &[BTreeSet<String>; 2]) -> String {
    if old == new {
        return ": the same\n".to_owned();
    }
    let mut text = ":\n".to_owned();
    old.difference(new).for_each(|line| text += &format!("- {line}\n"));
    new.difference(old).for_each(|line| text += &format!("+ {line}\n"));
    text
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn texts_that_have_nothing_in_common_are_compared_in_bounded_time() {
        let text = |name: &str| (0..60_000).map(|i| format!("{name}{i}\n")).collect::<String>();
        let start = Instant::now();
        let diff = unified((&text("a"), &text("b")), ("a", "b"));
        assert_eq!(diff.lines().filter(|line| line.starts_with("-a")).count(), 60_000);
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
}
