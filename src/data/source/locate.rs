//! From a dataset's name to its files, by split.
//!
//! A single file is the split `train`, as with `data_files` in Hugging Face. The files of a
//! directory or a glob belong to splits by Hugging Face's keywords in their names, or in the names
//! of the folders they are in: `train`; `validation`, `valid`, `dev`, `val`; `test`, `eval`; the
//! rest is `train`.

use std::{
    path::{Component, Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use super::{
    file::{DataFile, Format, KNOWN_EXTENSIONS},
    text::SampleBy,
};
use crate::{
    config::suggest,
    data::{
        embedded,
        hub_names::{hub_hint, no_path_hint},
        source_name::{DataSource, WILD},
    },
    error::{Code, Error, Result, StopWhen},
    fs::Place,
    hub::{DatasetFile, DatasetId},
};

/// Where datasets are looked for.
#[derive(Clone, Default)]
pub struct OpenOptions {
    /// A split expression such as `train[:1%]`; without one `train`, or the only split.
    pub split: Option<String>,
    /// The branch, tag or commit of a dataset on the hub.
    pub revision: Option<String>,
    /// What of a text file is a row.
    pub sample_by: SampleBy,
    /// The resolver of hub ids; without it they are refused.
    pub hub: Option<Rc<dyn DatasetFiles>>,
    /// Whether files of the hub are fetched when they are read, and removed then.
    pub streaming: bool,
    /// The directory where tokens are kept from one run to the next; without it none are.
    pub token_cache: Option<PathBuf>,
    /// Whether the user wants reading to end; it then does with [`Code::Interrupted`].
    pub stop: Option<StopWhen>,
}

/// The files of a dataset on a hub.
pub trait DatasetFiles {
    /// The names of the splits, in order.
    fn dataset_splits(&self, dataset: DatasetId<'_>) -> Result<Vec<String>>;

    /// The files of one of them; large ones are fetched when they are read, where they are to be
    /// streamed.
    fn dataset_files(
        &self,
        dataset: DatasetId<'_>,
        split: &str,
        is_streamed: bool,
    ) -> Result<Vec<DatasetFile>>;

    /// A file of the cache, with the guard that judges where links of the cache lead.
    fn place(&self, path: PathBuf) -> Place;
}

impl DatasetFiles for crate::hub::Hub {
    fn dataset_splits(&self, dataset: DatasetId<'_>) -> Result<Vec<String>> {
        Self::dataset_splits(self, dataset)
    }

    fn dataset_files(
        &self,
        dataset: DatasetId<'_>,
        split: &str,
        _is_streamed: bool,
    ) -> Result<Vec<DatasetFile>> {
        // No host judges later requests here, so that all files are fetched at once.
        Self::dataset_files(self, dataset, split, None)
    }

    /// The hub of a program's user.
    fn place(&self, path: PathBuf) -> Place {
        Place::unguarded(path)
    }
}

/// The files of a split.
type Files = Arc<[DataFile]>;

/// Opens the files of the split of a name.
type OpenSplit<'a> = dyn Fn(&str) -> Result<Files> + 'a;

/// Splits with their files.
type Named = Vec<(String, Files)>;

/// The splits of a dataset. The files of one are fetched and opened when they are asked for.
pub(super) struct Splits<'a> {
    pub(super) names: Vec<String>,
    files: Box<OpenSplit<'a>>,
}

impl Splits<'_> {
    /// Files that are here.
    fn of(splits: Named) -> Self {
        let names = splits.iter().map(|(name, _)| name.clone()).collect();
        let files = move |split: &str| match splits.iter().find(|(name, _)| name == split) {
            Some((_, files)) => Ok(files.clone()),
            None => bail!(Code::Internal, "there is no split {split}"),
        };
        Self { names, files: Box::new(files) }
    }

    /// The files of the split of this name.
    pub(super) fn files(&self, split: &str) -> Result<Files> {
        (self.files)(split)
    }
}

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

/// The splits of a dataset, of which each that is here has at least one file.
pub(super) fn locate<'a>(source: &'a DataSource, options: &'a OpenOptions) -> Result<Splits<'a>> {
    Ok(Splits::of(match source {
        DataSource::Nothing => bail!(Code::Data, "the name of a dataset is empty"),
        DataSource::Embedded(name) => {
            let splits = embedded::dataset(name)?.iter();
            let file =
                |split: &str, bytes| DataFile::embedded(format!("{source} ({split})"), bytes);
            splits.map(|&(split, bytes)| (split.to_owned(), [file(split, bytes)].into())).collect()
        }
        DataSource::Path(place, _) if place.is_dir() => directory(place, options.sample_by)?,
        DataSource::Path(place, _) if place.exists() => {
            let file = DataFile::at(place.clone(), options.sample_by)?;
            vec![("train".to_owned(), [file].into())]
        }
        DataSource::Path(place, written) => {
            return Err(missing(place).hint_if(hub_hint(&written.to_string_lossy())));
        }
        DataSource::Pattern(place, _) => pattern(place, options.sample_by)?,
        DataSource::Hub { repo, config } => return hub(source, repo, config.as_deref(), options),
    }))
}

fn hub<'a>(
    spec: &'a DataSource,
    repo: &'a str,
    config: Option<&'a str>,
    options: &'a OpenOptions,
) -> Result<Splits<'a>> {
    let Some(hub) = &options.hub else {
        bail!(Code::Data, "{spec} is not a file here, and there is no hub to fetch it from");
    };
    let dataset = DatasetId { repo, config, revision: options.revision.as_deref() };
    let hint = |e: Error| e.hint(no_path_hint(&spec.to_string()));
    let names = hub.dataset_splits(dataset).map_err(hint)?;
    if names.is_empty() {
        return Err(no_data(spec));
    }
    let open = |file: DatasetFile| match file {
        DatasetFile::Here(path) => DataFile::at(hub.place(path), options.sample_by),
        DatasetFile::Remote(remote) => {
            DataFile::streamed(remote, options.sample_by, options.stop.clone())
        }
    };
    let files = move |split: &str| {
        let files = hub.dataset_files(dataset, split, options.streaming);
        let files = files.map_err(hint)?;
        match files.is_empty() {
            true => Err(no_data(spec)),
            false => files.into_iter().map(open).collect(),
        }
    };
    Ok(Splits { names, files: Box::new(files) })
}

fn no_data(spec: &DataSource) -> Error {
    Error::new(Code::Data, format!("{spec} has no data files"))
}

fn directory(dir: &Place, sample_by: SampleBy) -> Result<Named> {
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
fn walk(dir: &Place, found: &mut Vec<Place>) -> Result<()> {
    for name in dir.list()? {
        let place = dir.join(&name);
        let name = name.to_string_lossy();
        if name.starts_with(['.', '_']) || is_not_data(&name) {
            continue;
        }
        if place.is_dir() {
            walk(&place, found)?;
        } else if Format::of(place.path()).is_some() {
            found.push(place);
        } else if Format::is_foreign(place.path()) {
            let message = format!("{}: dsr does not read such files", place.display());
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

fn one_format(files: &[Place], dir: &Place) -> Result<()> {
    let first = files[0].path();
    let dir = dir.path();
    match files.iter().map(Place::path).find(|path| Format::of(path) != Format::of(first)) {
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

fn pattern(pattern: &Place, sample_by: SampleBy) -> Result<Named> {
    let mut found = Vec::new();
    let fixed = expand(pattern, &mut |place| found.push(place))?;
    if found.is_empty() {
        bail!(Code::Data, "no file matches {}", pattern.display());
    }
    by_split(found, &fixed, sample_by)
}

/// The files that a pattern matches.
pub fn matches(pattern: &Place) -> Result<Vec<Place>> {
    let mut found = Vec::new();
    expand(pattern, &mut |place| found.push(place))?;
    Ok(found)
}

/// Gives the files that a pattern matches to `take`, in the order of their names; returns the directory
/// before its first wildcard. Each directory on the way is opened and listed; what matches and may not
/// be read is an error.
fn expand(pattern: &Place, take: &mut dyn FnMut(Place)) -> Result<Place> {
    let text = pattern.display().to_string();
    let mut parts = pattern.path().components().peekable();
    let mut fixed = PathBuf::new();
    let is_wild = |part: &Component<'_>| part.as_os_str().to_string_lossy().contains(WILD);
    while let Some(part) = parts.next_if(|part| !is_wild(part)) {
        fixed.push(part);
    }
    let parts: Vec<_> = parts.map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    if parts.iter().any(|part| part == "..") {
        let message = format!("the pattern {text} may not have `..` behind its wildcards");
        return Err(Error::new(Code::Permission, message));
    }
    let patterns = parts.iter().map(|part| {
        let wrong = |e| Error::new(Code::Data, format!("{text} is not a pattern: {e}"));
        glob::Pattern::new(part).map_err(wrong)
    });
    let patterns: Vec<_> = patterns.collect::<Result<_>>()?;
    let fixed = if fixed.as_os_str().is_empty() { PathBuf::from(".") } else { fixed };
    let fixed = pattern.beside(fixed);
    matching(&fixed, &patterns, take)?;
    Ok(fixed)
}

fn matching(dir: &Place, patterns: &[glob::Pattern], take: &mut dyn FnMut(Place)) -> Result<()> {
    let Some((first, rest)) = patterns.split_first() else { return Ok(()) };
    let is_deep = first.as_str() == "**";
    if is_deep && !rest.is_empty() {
        matching(dir, rest, take)?;
    }
    for name in dir.list()? {
        let place = dir.join(&name);
        let name = name.to_string_lossy();
        // As in a shell, a star at the beginning means no hidden file.
        let is_meant = !(first.as_str().starts_with('*') && name.starts_with('.'));
        if !is_meant || !(is_deep || first.matches(&name)) {
            continue;
        }
        let is_dir = place.check_readable()?;
        match (is_dir, is_deep) {
            // A link may lead up again.
            (true, true) if place.is_link()? => {}
            (true, true) => matching(&place, patterns, take)?,
            (true, false) => matching(&place, rest, take)?,
            (false, true) if rest.is_empty() => take(place),
            (false, false) if rest.is_empty() && place.is_file() => take(place),
            (false, _) => {}
        }
    }
    Ok(())
}

/// Sorts files into splits by their names below `root`.
fn by_split(files: Vec<Place>, root: &Place, sample_by: SampleBy) -> Result<Named> {
    let mut splits: Vec<(String, Vec<DataFile>)> = Vec::new();
    for place in files {
        let split = split_of(place.path().strip_prefix(root.path()).unwrap_or(place.path()));
        let file = DataFile::at(place, sample_by)?;
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

fn missing(place: &Place) -> Error {
    let e = |reason: &str| Error::new(Code::Data, format!("no file {}{reason}", place.display()));
    let (Some(parent), Some(wanted)) = (place.parent(), place.name()) else { return e("") };
    if !parent.is_dir() {
        return e(&format!(": there is no directory {}", parent.display()));
    }
    let names = parent.list().unwrap_or_default();
    let names: Vec<_> = names.iter().map(|name| name.to_string_lossy()).collect();
    let near = suggest::nearest(wanted, names.iter().map(|name| &**name));
    e("").hint_if(near.map(|near| format!("did you mean {}?", parent.join(near).display())))
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
}
