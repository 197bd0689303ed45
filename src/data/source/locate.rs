//! From a dataset's name to its files, by split.
//!
//! A single file is the split `train`, as with `data_files` in Hugging Face. The files of a
//! directory or a glob belong to splits by Hugging Face's keywords in their names, or in the names
//! of the folders they are in: `train`; `validation`, `valid`, `dev`, `val`; `test`, `eval`; the
//! rest is `train`.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use super::{
    file::{DataFile, Format, KNOWN_EXTENSIONS},
    text::SampleBy,
};
use crate::{
    config::suggest,
    data::embedded,
    error::{Code, Error, IoContext, Result},
};

/// Where datasets are looked for.
#[derive(Clone, Default)]
pub struct OpenOptions {
    /// A split expression such as `train[:1%]`; without one `train`, or the only split.
    pub split: Option<String>,
    /// The directory that relative paths start from.
    pub base_dir: PathBuf,
    /// The branch, tag or commit of a dataset on the hub.
    pub revision: Option<String>,
    /// What of a text file is a row.
    pub sample_by: SampleBy,
    /// The resolver of hub ids; without it they are refused.
    pub hub: Option<Rc<dyn DatasetFiles>>,
    /// Whether the user wants reading to end; it then does with [`Code::Interrupted`].
    pub stop: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
}

/// The files of a dataset on a hub, present on this machine.
pub trait DatasetFiles {
    /// The splits of `repo` (of its configuration `config`) with their files, in order.
    fn dataset_files(
        &self,
        repo: &str,
        config: Option<&str>,
        revision: Option<&str>,
    ) -> Result<Vec<(String, Vec<PathBuf>)>>;
}

impl DatasetFiles for crate::hub::Hub {
    fn dataset_files(
        &self,
        repo: &str,
        config: Option<&str>,
        revision: Option<&str>,
    ) -> Result<Vec<(String, Vec<PathBuf>)>> {
        Self::dataset_files(self, repo, config, revision)
    }
}

/// The splits of a dataset, each with its files.
pub(super) type Splits = Vec<(String, Arc<[DataFile]>)>;

/// Files that Hugging Face writes beside the data, which are not data.
const NOT_DATA: [&str; 4] =
    ["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];

/// Texts about the data, as Markdown.
const ABOUT_DATA: [&str; 6] =
    ["README", "LICENSE", "LICENCE", "CHANGELOG", "CITATION", "CONTRIBUTING"];

const SPLIT_KEYWORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// The splits of the dataset `spec`, each with at least one file.
pub(super) fn locate(spec: &str, options: &OpenOptions) -> Result<Splits> {
    if let Some(name) = spec.strip_prefix("dsr:") {
        let splits = embedded::dataset(name)?.iter();
        let file = |split: &str, bytes| DataFile::embedded(format!("{spec} ({split})"), bytes);
        return Ok(splits
            .map(|&(split, bytes)| (split.to_owned(), [file(split, bytes)].into()))
            .collect());
    }
    let path = options.base_dir.join(spec);
    if spec.is_empty() {
        bail!(Code::Data, "the name of a dataset is empty");
    } else if path.is_dir() {
        directory(&path, options.sample_by)
    } else if path.exists() {
        Ok(vec![("train".to_owned(), [DataFile::at(path, options.sample_by)?].into())])
    } else if spec.contains(['*', '?', '[']) {
        pattern(&path, options.sample_by)
    } else if looks_like_path(spec) {
        Err(missing(&path))
    } else {
        hub(spec, options)
    }
}

/// Whether `spec` names a repository on the hub, `Owner/name`, and no file in `base_dir`.
pub fn is_hub_id(spec: &str, base_dir: &Path) -> bool {
    !spec.starts_with("dsr:") && !base_dir.join(spec).exists() && !looks_like_path(spec)
}

/// Whether `spec`, which does not exist, was meant as a path.
fn looks_like_path(spec: &str) -> bool {
    let extension = Path::new(spec).extension().and_then(|e| e.to_str()).unwrap_or("");
    spec.starts_with(['/', '.', '~'])
        || spec.matches('/').count() != 1
        || Format::of(Path::new(spec)).is_some()
        || (!extension.is_empty() && extension.chars().all(|c| c.is_ascii_lowercase()))
}

fn hub(spec: &str, options: &OpenOptions) -> Result<Splits> {
    let (repo, config) = match spec.split_once(':') {
        Some((repo, config)) => (repo, Some(config)),
        None => (spec, None),
    };
    let Some(hub) = &options.hub else {
        bail!(Code::Data, "{spec} is not a file here, and there is no hub to fetch it from");
    };
    let splits = hub.dataset_files(repo, config, options.revision.as_deref())?;
    let open = |(split, paths): (String, Vec<PathBuf>)| {
        let file = |path| DataFile::at(path, options.sample_by);
        let files = paths.into_iter().map(file).collect::<Result<Vec<_>>>()?;
        Ok((split, files.into()))
    };
    let splits: Splits = splits.into_iter().map(open).collect::<Result<_>>()?;
    if splits.is_empty() || splits.iter().any(|(_, files)| files.is_empty()) {
        bail!(Code::Data, "{spec} has no data files");
    }
    Ok(splits)
}

fn directory(dir: &Path, sample_by: SampleBy) -> Result<Splits> {
    let mut found = Vec::new();
    walk(dir, &mut found)?;
    if found.is_empty() {
        bail!(
            Code::Data,
            "{} holds no data files: expected files with the extensions {KNOWN_EXTENSIONS}",
            dir.display()
        );
    }
    one_format(&found, dir)?;
    by_split(found, dir, sample_by)
}

/// All data files below `dir`, in the order of their names.
fn walk(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(dir).at("read", dir)?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.at("read", dir)?.path());
    }
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(['.', '_']) || is_not_data(&name) {
            continue;
        }
        if path.is_dir() {
            walk(&path, found)?;
        } else if Format::of(&path).is_some() {
            found.push(path);
        } else if Format::is_foreign(&path) {
            let message = format!("{}: dsr does not read such files", path.display());
            return Err(Error::new(Code::Data, message).hint(format!(
                "unpack or convert it, or name the others by a pattern such as \"{}/*.jsonl\"",
                dir.display()
            )));
        }
    }
    Ok(())
}

/// Whether a file of this name stands beside data and is none.
fn is_not_data(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or(name).to_uppercase();
    let is_markdown = name.to_lowercase().ends_with(".md");
    NOT_DATA.contains(&name) || is_markdown && ABOUT_DATA.contains(&stem.as_str())
}

fn one_format(paths: &[PathBuf], dir: &Path) -> Result<()> {
    let first = &paths[0];
    match paths.iter().find(|path| Format::of(path) != Format::of(first)) {
        None => Ok(()),
        Some(other) => {
            let name = |p: &Path| p.strip_prefix(dir).unwrap_or(p).display().to_string();
            let message = format!(
                "{} holds data files of several formats, such as {} and {}",
                dir.display(),
                name(first),
                name(other)
            );
            let extension = first.extension().unwrap_or_default().to_string_lossy();
            let hint =
                format!("name the files by a pattern such as \"{}/*.{extension}\"", dir.display());
            Err(Error::new(Code::Data, message).hint(hint))
        }
    }
}

fn pattern(pattern: &Path, sample_by: SampleBy) -> Result<Splits> {
    let text = pattern.to_string_lossy();
    let paths = glob::glob(&text)
        .map_err(|e| Error::new(Code::Data, format!("{text} is not a pattern: {e}")))?;
    let mut found = Vec::new();
    for path in paths {
        let path = path.map_err(|e| Error::new(Code::Io, format!("cannot read {e}")))?;
        if path.is_file() {
            found.push(path);
        }
    }
    if found.is_empty() {
        bail!(Code::Data, "no file matches {text}");
    }
    let wild = |part: &std::path::Component<'_>| {
        part.as_os_str().to_string_lossy().contains(['*', '?', '['])
    };
    let fixed: PathBuf = pattern.components().take_while(|part| !wild(part)).collect();
    by_split(found, &fixed, sample_by)
}

/// Sorts files into splits by their names below `root`.
fn by_split(paths: Vec<PathBuf>, root: &Path, sample_by: SampleBy) -> Result<Splits> {
    let mut splits: Vec<(String, Vec<DataFile>)> = Vec::new();
    for path in paths {
        let split = split_of(path.strip_prefix(root).unwrap_or(&path));
        let file = DataFile::at(path, sample_by)?;
        match splits.iter_mut().find(|(name, _)| *name == split) {
            Some((_, files)) => files.push(file),
            None => splits.push((split.to_owned(), vec![file])),
        }
    }
    splits.sort_by_key(|(name, _)| SPLIT_KEYWORDS.iter().position(|(known, _)| known == name));
    Ok(splits.into_iter().map(|(name, files)| (name, files.into())).collect())
}

/// The split that a keyword in the path says; the file's own name before its folders'.
fn split_of(path: &Path) -> &'static str {
    for part in path.components().rev() {
        let part = part.as_os_str().to_string_lossy().to_lowercase();
        // Hugging Face's separators around a keyword: anything of "-._ " and digits.
        for word in part.split(|c: char| "-._ ".contains(c) || c.is_ascii_digit()) {
            for (split, keywords) in SPLIT_KEYWORDS {
                if keywords.contains(&word) {
                    return split;
                }
            }
        }
    }
    "train"
}

fn missing(path: &Path) -> Error {
    let e = |reason: &str| Error::new(Code::Data, format!("no file {}{reason}", path.display()));
    let parent = path.parent().unwrap_or(Path::new("."));
    if !parent.as_os_str().is_empty() && !parent.is_dir() {
        return e(&format!(": there is no directory {}", parent.display()));
    }
    let Some(wanted) = path.file_name().map(|n| n.to_string_lossy().into_owned()) else {
        return e("");
    };
    let dir = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let names: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    match suggest::nearest(&wanted, names.iter().map(String::as_str)) {
        Some(near) => e("").hint(format!("did you mean {}?", parent.join(near).display())),
        None => e(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_belong_to_splits_by_their_names() {
        let table = [
            ("train-00000-of-00002.parquet", "train"),
            ("data/validation-00000-of-00001.parquet", "validation"),
            ("dev.jsonl", "validation"),
            ("my_val.txt", "validation"),
            ("test/part1.arrow", "test"),
            ("eval2.jsonl", "test"),
            ("train/test.jsonl", "test"),
            ("contest.txt", "train"),
            ("books.txt", "train"),
        ];
        for (path, split) in table {
            assert_eq!(split_of(Path::new(path)), split, "{path}");
        }
    }

    #[test]
    fn a_name_with_one_slash_and_no_extension_is_a_hub_id() {
        for hub in ["Salesforce/wikitext", "Salesforce/wikitext:wikitext-2-raw-v1", "a/b-1.5"] {
            assert!(!looks_like_path(hub), "{hub}");
        }
        for path in ["data/x.parquet", "./data", "/data/x", "data/train.csv", "a/b/c", "words"] {
            assert!(looks_like_path(path), "{path}");
        }
        let here = |spec| is_hub_id(spec, Path::new(env!("CARGO_MANIFEST_DIR")));
        assert!(here("src/absent") && !here("src/data") && !here("dsr:a/b"));
    }
}
