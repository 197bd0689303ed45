//! The list of every key and what becomes of it.

use std::fmt;

use super::key::{Fate, Key, Kind, Literal, Typed};

/// A key that the tables know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownKey {
    /// Its dotted path; parameters of one type have it in the path: `optimizer.params.lr (Lamb)`.
    pub path: String,
    /// What becomes of it, as a phrase.
    pub fate: String,
}

/// Every key of the top level `keys` and inside, block by block.
pub(super) fn known_keys(keys: &[Key]) -> Vec<KnownKey> {
    let mut known = Vec::new();
    let mut visit =
        |path: &str, _: &str, fate| known.push(KnownKey { path: path.to_owned(), fate });
    table("", "", keys, &mut visit);
    known
}

/// Another block than `here` that a key of this name stands in, where there is one.
pub(super) fn home_of(keys: &[Key], name: &str, here: &str) -> Option<String> {
    let mut home = None;
    table("", "", keys, &mut |path, key, _| {
        if key == name
            && home.is_none()
            && let Some((block, _)) = path.rsplit_once('.')
            && block != here
        {
            home = Some(block.to_owned());
        }
    });
    home
}

/// Calls `visit` with path, name and fate of every key; `suffix` names the type that the keys go with.
fn table(path: &str, suffix: &str, keys: &[Key], visit: &mut dyn FnMut(&str, &str, String)) {
    for key in keys {
        let inner =
            if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
        if !matches!(key.fate, Fate::Inside) {
            visit(&format!("{inner}{suffix}"), key.name, key.fate.to_string());
        }
        inside(&inner, suffix, &key.kind, visit);
    }
}

fn inside(path: &str, suffix: &str, kind: &Kind, visit: &mut dyn FnMut(&str, &str, String)) {
    match kind {
        Kind::Block(keys) => table(path, suffix, keys, visit),
        Kind::Typed(kind) => typed(path, kind, visit),
        Kind::OrNull(kind) | Kind::Either(_, kind) => inside(path, suffix, kind, visit),
        _ => {}
    }
}

fn typed(path: &str, typed: &Typed, visit: &mut dyn FnMut(&str, &str, String)) {
    visit(&format!("{path}.type"), "type", Fate::Becomes(typed.becomes).to_string());
    table(path, "", typed.beside, visit);
    for (name, why) in typed.refused {
        visit(&format!("{path}.type {name}"), "type", Fate::Refused(why).to_string());
    }
    // Types that share a table are listed together.
    for types in typed.types.chunk_by(|(_, a), (_, b)| std::ptr::eq(*a, *b)) {
        let names: Vec<_> = types.iter().map(|(name, _)| *name).collect();
        if let Some((_, keys)) = types.first() {
            table(&format!("{path}.params"), &format!(" ({})", names.join(", ")), keys, visit);
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Becomes(option) | Self::Makes(option) => write!(f, "{option}"),
            Self::NoMeaning(why) => write!(f, "no meaning here: {why}"),
            Self::Only(values, why) => {
                let words = values.iter().map(Literal::to_string).collect::<Vec<_>>();
                write!(f, "only {}: {why}", words.join(" or "))
            }
            Self::Refused(why) => write!(f, "refused: {why}"),
            Self::GoesWith(key) => write!(f, "goes with {key}"),
            Self::AliasOf(key) => write!(f, "another name of {key}"),
            Self::Inside => f.write_str("an object"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{super::top, *};

    /// The options of `init_engine` that the tables may name.
    const OPTIONS: &[&str] = &[
        "train_batch_size",
        "micro_batch_size",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "precision",
        "optimizer",
        "scheduler",
        "activation_checkpointing",
        "sparse_attention",
        "zero",
        "pipeline",
        "tensor_parallel",
        "steps_per_print",
        "wall_clock_breakdown",
        "flops_profiler",
        "csv_monitor",
        "tensorboard",
    ];

    /// Every table with the keys of its object and of those around it.
    fn each_table(keys: &[Key], around: &[&str], check: &mut dyn FnMut(&[Key], &[&str])) {
        let names: Vec<_> = keys.iter().map(|key| key.name).chain(around.iter().copied()).collect();
        check(keys, &names);
        let mut inside = |mut kind: &Kind| loop {
            match kind {
                Kind::OrNull(inner) | Kind::Either(_, inner) => kind = inner,
                Kind::Block(keys) => return each_table(keys, &names, check),
                Kind::Typed(typed) => {
                    typed.types.iter().for_each(|(_, keys)| each_table(keys, &names, check));
                    return;
                }
                _ => return,
            }
        };
        keys.iter().for_each(|key| inside(&key.kind));
    }

    #[test]
    fn the_tables_name_what_exists() {
        let check = &mut |keys: &[Key], names: &[&str]| {
            let unique: BTreeSet<_> = keys.iter().map(|key| key.name).collect();
            assert_eq!(unique.len(), keys.len(), "{names:?}");
            for key in keys {
                match key.fate {
                    Fate::Becomes(option) | Fate::Makes(option) => {
                        let option = option.split('.').next().unwrap();
                        assert!(OPTIONS.contains(&option), "{} becomes {option}", key.name);
                    }
                    Fate::AliasOf(other) | Fate::GoesWith(other) => {
                        assert!(names.contains(&other), "{} goes with {other}", key.name);
                    }
                    Fate::NoMeaning(why) | Fate::Only(_, why) | Fate::Refused(why) => {
                        assert!(why.len() > 10 && !why.ends_with('.'), "{}: {why}", key.name);
                    }
                    Fate::Inside => {}
                }
            }
        };
        each_table(top::keys(), &[], check);
        let all: Vec<_> = top::keys().iter().map(|k| k.name).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn types_with_the_same_parameters_are_listed_together() {
        let keys = known_keys(top::keys());
        let lr = keys.iter().filter(|key| key.path.starts_with("optimizer.params.lr "));
        let paths: Vec<_> = lr.map(|key| key.path.as_str()).collect();
        assert_eq!(paths[0], "optimizer.params.lr (AdamW, Adam)");
        assert_eq!(paths.len(), 6);
    }
}
