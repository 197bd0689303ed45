//! The files of a dataset's configuration: by the card's YAML header, or else by names.
//!
//! A dataset's README.md may begin with YAML whose `configs` list names configurations and the
//! files of their splits. Without it, a directory of the configuration's name is taken, or the
//! whole repository, and the splits follow from the files' names ([`super::splits`]).

use glob::{MatchOptions, Pattern};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_norway::Value;

use super::{
    repo::Repo,
    splits::{self, Split},
};
use crate::{
    config::suggest,
    error::{Code, Error, Result},
};

/// The name of the dataset's card.
pub(super) const CARD: &str = "README.md";

/// `*` stays within a directory, and hidden files must be named.
const GLOB: MatchOptions = MatchOptions {
    case_sensitive: true,
    require_literal_separator: true,
    require_literal_leading_dot: true,
};

#[derive(Deserialize)]
struct Card {
    #[serde(default)]
    configs: Vec<Config>,
}

#[derive(Deserialize)]
struct Config {
    config_name: String,
    data_files: Option<DataFiles>,
    data_dir: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    default: bool,
}

/// True or false, also as Python's YAML writes them.
fn flag<'de, D: Deserializer<'de>>(value: D) -> std::result::Result<bool, D::Error> {
    match Value::deserialize(value)? {
        Value::Bool(flag) => Ok(flag),
        Value::String(text) if ["yes", "on", "true"].contains(&&*text.to_lowercase()) => Ok(true),
        Value::String(text) if ["no", "off", "false"].contains(&&*text.to_lowercase()) => Ok(false),
        _ => Err(D::Error::custom("`default` must be true or false")),
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum DataFiles {
    One(String),
    Many(Vec<String>),
    Splits(Vec<SplitFiles>),
}

#[derive(Deserialize)]
struct SplitFiles {
    split: String,
    path: Paths,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Paths {
    One(String),
    Many(Vec<String>),
}

/// The splits of the configuration `config` among the repository's `files`, with its card if it has
/// one.
pub(super) fn resolve(
    repo: &Repo,
    files: &[&str],
    card: Option<&str>,
    config: Option<&str>,
) -> Result<Vec<Split>> {
    let configs = card.map_or_else(|| Ok(Vec::new()), |text| read(repo, text))?;
    let splits = if configs.is_empty() {
        splits::by_name(files, &directory(repo, files, config)?)
    } else {
        let chosen = choose(repo, &configs, config)?;
        from_card(repo, chosen, files)?
    };
    if splits.is_empty() { Err(no_data(repo, files)) } else { Ok(splits) }
}

fn read(repo: &Repo, card: &str) -> Result<Vec<Config>> {
    let Some(header) = header(card) else { return Ok(Vec::new()) };
    // An empty header is YAML's null, which is no list of configurations either.
    let card: Option<Card> = serde_norway::from_str(&header).map_err(|e| {
        Error::new(Code::Hub, format!("the header of {CARD} in the {repo} cannot be read: {e}"))
            .hint("its `configs` is a list of maps with `config_name` and `data_files`")
    })?;
    Ok(card.map(|c| c.configs).unwrap_or_default())
}

/// The lines between the two `---` at the top.
fn header(card: &str) -> Option<String> {
    let mut lines = card.trim_start_matches('\u{feff}').lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let lines: Vec<&str> = lines.collect();
    let end = lines.iter().position(|line| line.trim_end() == "---")?;
    Some(lines[..end].join("\n"))
}

fn choose<'a>(repo: &Repo, configs: &'a [Config], wanted: Option<&str>) -> Result<&'a Config> {
    let names: Vec<&str> = configs.iter().map(|c| c.config_name.as_str()).collect();
    let found = match wanted {
        Some(name) => configs.iter().find(|c| c.config_name == name),
        None if configs.len() == 1 => configs.first(),
        None => {
            let marked = configs.iter().find(|c| c.default);
            marked.or_else(|| configs.iter().find(|c| c.config_name == "default"))
        }
    };
    found.ok_or_else(|| no_config(repo, wanted, &names))
}

fn from_card(repo: &Repo, config: &Config, files: &[&str]) -> Result<Vec<Split>> {
    let base = match config.data_dir.as_deref().map(|d| d.trim_matches('/')) {
        None | Some("" | ".") => String::new(),
        Some(dir) => format!("{}/", dir.trim_start_matches("./")),
    };
    let train = |paths: &[String]| vec![("train".to_owned(), paths.to_vec())];
    let patterns: Vec<(String, Vec<String>)> = match &config.data_files {
        None => return Ok(splits::by_name(files, &base)),
        Some(DataFiles::One(path)) => train(std::slice::from_ref(path)),
        Some(DataFiles::Many(paths)) => train(paths),
        Some(DataFiles::Splits(all)) => all
            .iter()
            .map(|s| match &s.path {
                Paths::One(path) => (s.split.clone(), vec![path.clone()]),
                Paths::Many(paths) => (s.split.clone(), paths.clone()),
            })
            .collect(),
    };
    let mut out = Vec::new();
    for (split, patterns) in patterns {
        let mut matched: Vec<String> = Vec::new();
        for pattern in &patterns {
            let pattern = format!("{base}{}", pattern.trim_start_matches("./"));
            let found = matching(files, &pattern)
                .ok_or_else(|| bad_pattern(repo, config, &split, &pattern))?;
            for file in found.into_iter().filter(|f| splits::is_data(f)) {
                if !matched.iter().any(|m| m == file) {
                    matched.push(file.to_owned());
                }
            }
        }
        if matched.is_empty() {
            return Err(no_match(repo, config, &split, &patterns));
        }
        out.push((split, matched));
    }
    Ok(out)
}

/// The files that `pattern` names, in order; `None` when it is no pattern.
pub(super) fn matching<'a>(files: &[&'a str], pattern: &str) -> Option<Vec<&'a str>> {
    // A name with brackets in it is first of all a name.
    if let Some(exact) = files.iter().find(|f| **f == pattern) {
        return Some(vec![exact]);
    }
    let pattern = Pattern::new(pattern).ok()?;
    Some(files.iter().copied().filter(|f| pattern.matches_with(f, GLOB)).collect())
}

/// The directory, with its slash, that stands for a configuration where no card names any.
fn directory(repo: &Repo, files: &[&str], config: Option<&str>) -> Result<String> {
    let Some(config) = config else { return Ok(String::new()) };
    let base = format!("{config}/");
    let data: Vec<&str> = files.iter().copied().filter(|f| splits::is_data(f)).collect();
    if data.iter().any(|f| f.starts_with(&base)) {
        return Ok(base);
    }
    if config == "default" {
        return Ok(String::new());
    }
    let mut directories: Vec<&str> =
        data.iter().filter_map(|f| Some(f.split_once('/')?.0)).collect();
    directories.dedup();
    Err(no_config(repo, Some(config), &directories))
}

fn no_config(repo: &Repo, wanted: Option<&str>, names: &[&str]) -> Error {
    let list = names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    let Some(wanted) = wanted else {
        let example = names.first().copied().unwrap_or("name");
        let message = format!("the {repo} has several configurations and no default: {list}");
        return Error::new(Code::Hub, message).hint(format!("name one: `{}:{example}`", repo.id));
    };
    if names.is_empty() {
        let message =
            format!("the {repo} has no configuration `{wanted}`: it has no others either");
        return Error::new(Code::Hub, message).hint(format!("leave it out: `{}`", repo.id));
    }
    let message = format!("the {repo} has no configuration `{wanted}`; it has {list}");
    let near = suggest::nearest(wanted, names.iter().copied());
    Error::new(Code::Hub, message)
        .hint_if(near.map(|near| format!("did you mean `{}:{near}`?", repo.id)))
}

fn no_match(repo: &Repo, config: &Config, split: &str, patterns: &[String]) -> Error {
    let message = format!(
        "the configuration `{}` of the {repo} names no data file for the split `{split}`: \
         nothing matches {}",
        config.config_name,
        patterns.join(", ")
    );
    Error::new(Code::Hub, message).hint(PARQUET_HINT)
}

fn bad_pattern(repo: &Repo, config: &Config, split: &str, pattern: &str) -> Error {
    let message = format!(
        "the configuration `{}` of the {repo} has a pattern that cannot be read, \
         for the split `{split}`: {pattern}",
        config.config_name
    );
    Error::new(Code::Hub, message).hint(PARQUET_HINT)
}

const PARQUET_HINT: &str =
    "the hub keeps many datasets converted to Parquet: try the revision `refs/convert/parquet`";

fn no_data(repo: &Repo, files: &[&str]) -> Error {
    let visible: Vec<&str> = files.iter().copied().filter(|f| !f.starts_with('.')).collect();
    let shown = visible.iter().take(8).copied().collect::<Vec<_>>().join(", ");
    let more = if visible.len() > 8 { ", ..." } else { "" };
    let message =
        format!("the {repo} has no Parquet, Arrow, JSON, CSV or text files; it has {shown}{more}");
    Error::new(Code::Hub, message).hint(PARQUET_HINT)
}

#[cfg(test)]
mod tests {
    use super::{super::repo::RepoKind, *};

    const CARD: &str = "---\nlicense: mit\nconfigs:\n\
        - config_name: en\n  data_files:\n  - split: train\n    path: en/train-*\n  \
        - split: test\n    path: [en/test.parquet]\n\
        - config_name: all\n  data_files: \"*/*.parquet\"\n\
        - config_name: some\n  data_dir: en\n---\n# Card\n";
    const FILES: [&str; 4] =
        ["README.md", "de/train-0.parquet", "en/test.parquet", "en/train-0.parquet"];

    fn splits(card: Option<&str>, config: Option<&str>) -> Result<Vec<Split>> {
        let repo = Repo::new(RepoKind::Dataset, "O/n", None).unwrap();
        resolve(&repo, &FILES, card, config)
    }

    fn shape(splits: &[Split]) -> Vec<(&str, usize)> {
        splits.iter().map(|(name, files)| (name.as_str(), files.len())).collect()
    }

    #[test]
    fn the_card_names_the_files() {
        assert_eq!(shape(&splits(Some(CARD), Some("en")).unwrap()), [("train", 1), ("test", 1)]);
        assert_eq!(shape(&splits(Some(CARD), Some("all")).unwrap()), [("train", 3)]);
        assert_eq!(shape(&splits(Some(CARD), Some("some")).unwrap()), [("train", 1), ("test", 1)]);
    }

    #[test]
    fn a_configuration_that_is_missing_is_named_with_those_that_exist() {
        let e = splits(Some(CARD), None).unwrap_err();
        assert!(e.message().contains("`en`, `all`, `some`"), "{e}");
        let e = splits(Some(CARD), Some("sone")).unwrap_err();
        assert_eq!(e.hints(), ["did you mean `O/n:some`?"]);
        let e = splits(None, Some("fr")).unwrap_err();
        assert!(e.message().contains("it has `de`, `en`"), "{e}");
    }

    #[test]
    fn without_a_card_a_directory_is_a_configuration() {
        assert_eq!(shape(&splits(None, Some("de")).unwrap()), [("train", 1)]);
        assert_eq!(
            shape(&splits(Some("# No header\n"), None).unwrap()),
            [("train", 2), ("test", 1)]
        );
    }

    #[test]
    fn a_default_configuration_needs_no_name() {
        let marked = CARD.replace("- config_name: all\n", "- config_name: all\n  default: true\n");
        assert_eq!(shape(&splits(Some(&marked), None).unwrap()), [("train", 3)]);
        let python = marked.replace("true", "yes");
        assert_eq!(shape(&splits(Some(&python), None).unwrap()), [("train", 3)]);
        let only = "---\nconfigs:\n- config_name: x\n  data_files: en/*\n---\n";
        assert_eq!(shape(&splits(Some(only), None).unwrap()), [("train", 2)]);
    }

    #[test]
    fn faults_of_the_card_are_told() {
        let e = splits(Some("---\nconfigs: {a: 1}\n---\n"), None).unwrap_err();
        assert!(e.message().contains("README.md"), "{e}");
        let gone = "---\nconfigs:\n- config_name: x\n  data_files: fr/*\n---\n";
        assert!(splits(Some(gone), None).unwrap_err().message().contains("fr/*"));
        assert_eq!(shape(&splits(Some("---\n---\n"), Some("de")).unwrap()), [("train", 1)]);
    }
}
