//! The name of a dataset, a model or a tokenizer, read once: a part of dsr, files here, or a repository on
//! the hub. What was read is what is judged and what is opened.

use std::path::{Path, PathBuf};

use crate::fs::Place;

/// The prefix of what is part of dsr.
const EMBEDDED: &str = "dsr:";

/// The characters that make a path a pattern.
pub const WILD: [char; 3] = ['*', '?', '['];

/// The endings of files that are data, weights or settings; a name on the hub may have another dot.
const FILE_ENDINGS: [&str; 9] =
    ["parquet", "arrow", "ipc", "feather", "jsonl", "ndjson", "json", "txt", "text"];

/// The source that a text names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceName {
    /// A part of dsr, by its name behind `dsr:`.
    Embedded(String),
    /// A file or a directory, which need not exist.
    Path(PathBuf),
    /// Files by a pattern.
    Pattern(PathBuf),
    /// `Owner/name` on the hub, and for a dataset `Owner/name:config`.
    Hub {
        /// `Owner/name`.
        repo: String,
        /// The configuration.
        config: Option<String>,
    },
}

impl SourceName {
    /// Reads a text. What exists below `work_dir` under this name is a path.
    pub fn parse(text: &str, work_dir: &Path) -> Self {
        if let Some(name) = text.strip_prefix(EMBEDDED) {
            return Self::Embedded(name.to_owned());
        }
        let exists = !text.is_empty() && work_dir.join(text).exists();
        if !exists && text.contains(WILD) {
            return Self::Pattern(text.into());
        }
        let (repo, config) = text.split_once(':').map_or((text, None), |(r, c)| (r, Some(c)));
        match exists || looks_like_path(text) || !is_repo(repo) {
            true => Self::Path(text.into()),
            false => Self::Hub {
                repo: repo.to_owned(),
                config: config.filter(|config| !config.is_empty()).map(str::to_owned),
            },
        }
    }

    /// The source to open, where paths are judged by the guard of `work_dir`.
    pub fn beneath(self, work_dir: &Place) -> DataSource {
        match self {
            Self::Embedded(name) => DataSource::Embedded(name),
            // No path at all would be the directory itself.
            Self::Path(path) if path.as_os_str().is_empty() => DataSource::Nothing,
            Self::Path(path) => DataSource::Path(work_dir.join(&path), path),
            Self::Pattern(path) => DataSource::Pattern(work_dir.join(&path), path),
            Self::Hub { repo, config } => DataSource::Hub { repo, config },
        }
    }
}

/// A source that may be opened.
#[derive(Debug, Clone)]
pub enum DataSource {
    /// An empty text.
    Nothing,
    /// A part of dsr.
    Embedded(String),
    /// A file or a directory, and how it was written.
    Path(Place, PathBuf),
    /// Files by a pattern, and how it was written.
    Pattern(Place, PathBuf),
    /// A repository on the hub.
    Hub {
        /// `Owner/name`.
        repo: String,
        /// The configuration of a dataset.
        config: Option<String>,
    },
}

impl DataSource {
    /// The source that the program or its user names, whose paths nobody judges; relative ones start from the
    /// working directory of the process.
    pub fn unguarded(text: &str) -> Self {
        SourceName::parse(text, Path::new("")).beneath(&Place::unguarded(""))
    }
}

/// A text of the program itself, such as `dsr:fables`.
impl From<&'static str> for DataSource {
    fn from(text: &'static str) -> Self {
        Self::unguarded(text)
    }
}

/// Unit tests name their own files.
#[cfg(test)]
impl From<&String> for DataSource {
    fn from(text: &String) -> Self {
        Self::unguarded(text)
    }
}

impl std::fmt::Display for DataSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("\"\""),
            Self::Embedded(name) => write!(f, "{EMBEDDED}{name}"),
            Self::Path(_, text) | Self::Pattern(_, text) => write!(f, "{}", text.display()),
            Self::Hub { repo, config: None } => f.write_str(repo),
            Self::Hub { repo, config: Some(config) } => write!(f, "{repo}:{config}"),
        }
    }
}

/// Whether a text, which does not exist, was meant as a path.
fn looks_like_path(text: &str) -> bool {
    let extension = Path::new(text).extension().and_then(|e| e.to_str()).unwrap_or("");
    text.starts_with(['/', '.', '~'])
        || text.matches('/').count() != 1
        || FILE_ENDINGS.contains(&extension.to_lowercase().as_str())
        || (!extension.is_empty() && extension.chars().all(|c| c.is_ascii_lowercase()))
}

/// Whether a text is `Owner/name` in the letters that the hub lets names have.
fn is_repo(text: &str) -> bool {
    let is_name = |name: &str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    text.split_once('/').is_some_and(|(owner, name)| is_name(owner) && is_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> SourceName {
        SourceName::parse(text, Path::new(env!("CARGO_MANIFEST_DIR")))
    }

    #[test]
    fn a_name_with_one_slash_and_no_extension_is_on_the_hub() {
        for text in ["Salesforce/wikitext", "Salesforce/wikitext:wikitext-2-raw-v1", "a/b-1.5"] {
            assert!(matches!(read(text), SourceName::Hub { .. }), "{text}");
        }
        for text in ["data/x.parquet", "./data", "/data/x", "data/train.csv", "a/b/c", "words"] {
            assert!(matches!(read(text), SourceName::Path(_)), "{text}");
        }
        assert!(matches!(read("src/absent"), SourceName::Hub { .. }));
        assert!(matches!(read("src/data"), SourceName::Path(_)), "it exists");
        assert!(matches!(read("runs/x y"), SourceName::Path(_)), "no name on the hub has a blank");
    }

    #[test]
    fn a_wildcard_makes_a_pattern_and_the_prefix_a_part_of_dsr() {
        for text in ["data/*", "?x/*", "[.]x/a", "a*/b", "x/y-?"] {
            assert!(matches!(read(text), SourceName::Pattern(_)), "{text}");
        }
        for text in ["dsr:austen", "dsr:/../../out/m", "dsr:a/*", "dsr:a/b"] {
            assert!(matches!(read(text), SourceName::Embedded(_)), "{text}");
        }
    }
}
