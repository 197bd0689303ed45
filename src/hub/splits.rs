//! The splits of files by their names: the rules of Python's `datasets`.
//!
//! In order, the first that finds anything wins: sharded names in `data/`
//! (`data/train-00000-of-00004.parquet`), a directory with a split's keyword in its name, a file with
//! a keyword in its name, and else every file is `train`. Files that a winning rule does not
//! match belong to no split.

/// The splits that have keywords, in the order in which they are listed.
const KEYWORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// The formats that hold rows, the most telling first.
const FORMATS: [&[&str]; 5] =
    [&["parquet"], &["arrow"], &["jsonl", "ndjson", "json"], &["csv", "tsv"], &["txt"]];

/// Files that are about the data, not the data.
const NOT_DATA: [&str; 4] =
    ["config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json"];

/// A split with its files, by path in the repository.
pub(super) type Split = (String, Vec<String>);

/// The splits of `files`, whose paths begin with `base` (empty, or ending in a slash).
pub(super) fn by_name(files: &[&str], base: &str) -> Vec<Split> {
    let files = one_format(files);
    let below: Vec<(&str, &str)> =
        files.iter().filter_map(|f| Some((*f, f.strip_prefix(base)?))).collect();
    let sharded = sharded(&below);
    if !sharded.is_empty() {
        return sharded;
    }
    let in_directory = |path: &str, word: &str| {
        path.rsplit_once('/').is_some_and(|(dirs, _)| dirs.split('/').any(|d| names(d, word, true)))
    };
    let in_file_name =
        |path: &str, word: &str| names(path.rsplit('/').next().unwrap_or(path), word, false);
    for rule in [&in_directory as &dyn Fn(&str, &str) -> bool, &in_file_name] {
        let splits: Vec<Split> = KEYWORDS
            .iter()
            .map(|(split, words)| {
                let own = below.iter().filter(|(_, path)| words.iter().any(|w| rule(path, w)));
                ((*split).to_owned(), own.map(|(file, _)| (*file).to_owned()).collect())
            })
            .filter(|(_, files): &Split| !files.is_empty())
            .collect();
        if !splits.is_empty() {
            return splits;
        }
    }
    match below.as_slice() {
        [] => Vec::new(),
        all => vec![("train".to_owned(), all.iter().map(|(file, _)| (*file).to_owned()).collect())],
    }
}

/// True for a file of a format that holds rows, compressed or not.
pub(super) fn is_data(path: &str) -> bool {
    format(path).is_some()
}

fn format(path: &str) -> Option<usize> {
    let name = path.rsplit('/').next().unwrap_or(path);
    let hidden = path.split('/').any(|part| part.starts_with('.') || part.starts_with("__"));
    if hidden || NOT_DATA.contains(&name) {
        return None;
    }
    let plain = ["gz", "zst", "bz2", "xz", "lz4"]
        .iter()
        .find_map(|ending| name.strip_suffix(ending)?.strip_suffix('.'))
        .unwrap_or(name);
    let extension = plain.rsplit_once('.')?.1.to_ascii_lowercase();
    FORMATS.iter().position(|endings| endings.contains(&extension.as_str()))
}

/// The files of the commonest format: a dataset is read by one reader.
fn one_format<'a>(files: &[&'a str]) -> Vec<&'a str> {
    let count = |kind| files.iter().filter(|f| format(f) == Some(kind)).count();
    // `max_by_key` takes the last of equals, hence the reversed order.
    let Some(commonest) = (0..FORMATS.len()).rev().max_by_key(|kind| count(*kind)) else {
        return Vec::new();
    };
    files.iter().copied().filter(|f| format(f) == Some(commonest)).collect()
}

fn sharded(files: &[(&str, &str)]) -> Vec<Split> {
    let mut splits: Vec<Split> = Vec::new();
    for (file, path) in files {
        let Some(split) = shard(path.strip_prefix("data/").unwrap_or_default()) else { continue };
        match splits.iter_mut().find(|(name, _)| name == split.0) {
            Some((_, files)) => files.push((*file).to_owned()),
            None => splits.push((split.0.to_owned(), vec![(*file).to_owned()])),
        }
    }
    let rank = |name: &str| KEYWORDS.iter().position(|(k, _)| *k == name).unwrap_or(KEYWORDS.len());
    splits.sort_by(|(a, _), (b, _)| rank(a).cmp(&rank(b)).then_with(|| a.cmp(b)));
    splits
}

/// The parts of `name-00003-of-00010.ext` or `name-00003-of-00010-hash.ext`: the name, and how many
/// shards there are.
pub(super) fn shard(file: &str) -> Option<(&str, usize)> {
    if file.contains('/') {
        return None;
    }
    let at = file.find("-of-")?;
    let (before, after) = (&file[..at], &file[at + 4..]);
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    let (name, index) = before.rsplit_once('-')?;
    let total = after.get(..5)?;
    (digits(index) && digits(total) && after.contains('.') && !name.is_empty())
        .then(|| Some((name, total.parse().ok()?)))?
}

/// True when `word` stands in `name` as a word of its own: between the ends and `- . _`, blanks or
/// digits. In a file's name something must follow it (`train.csv`, not `data.train`).
fn names(name: &str, word: &str, may_end: bool) -> bool {
    let separator = |b: u8| b"-._ ".contains(&b) || b.is_ascii_digit();
    let bytes = name.as_bytes();
    name.match_indices(word).any(|(at, _)| {
        let end = at + word.len();
        let begins = at == 0 || separator(bytes[at - 1]);
        let ends = bytes.get(end).map_or(may_end, |b| separator(*b));
        begins && ends
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn splits(files: &[&str]) -> Vec<(String, Vec<String>)> {
        by_name(files, "")
    }

    fn names_of(files: &[&str]) -> Vec<String> {
        splits(files).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn sharded_names_win() {
        let files = [
            "data/extra-00000-of-00001.parquet",
            "data/test-00000-of-00001-9ab3.parquet",
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "validation.parquet",
        ];
        assert_eq!(names_of(&files), ["train", "test", "extra"]);
        assert_eq!(splits(&files)[0].1.len(), 2);
    }

    #[test]
    fn a_directory_names_a_split_before_a_file_does() {
        assert_eq!(names_of(&["train/a.csv", "my_dev_set/train.csv"]), ["train", "validation"]);
        assert_eq!(names_of(&["x/train.csv", "x/val.csv", "x/eval1.csv"]).len(), 3);
    }

    #[test]
    fn a_keyword_is_a_whole_word() {
        assert_eq!(names_of(&["trainer.csv", "contest.csv"]), ["train"]);
        assert_eq!(splits(&["trainer.csv", "contest.csv"])[0].1.len(), 2);
        assert_eq!(names_of(&["a-valid.2.csv", "b.test.csv"]), ["validation", "test"]);
    }

    #[test]
    fn only_the_commonest_format_is_data() {
        let files =
            ["README.md", "a.csv", "b.parquet", "c.parquet", "dataset_infos.json", ".x/d.csv"];
        assert_eq!(
            splits(&files),
            [("train".to_owned(), vec!["b.parquet".into(), "c.parquet".into()])]
        );
        assert_eq!(splits(&["README.md", "load.py"]), []);
        assert!(is_data("a/b.jsonl.zst"));
    }

    #[test]
    fn a_directory_can_be_the_base() {
        let files = ["en/train.jsonl", "en/test.jsonl", "de/train.jsonl"];
        assert_eq!(by_name(&files, "en/")[0], ("train".to_owned(), vec!["en/train.jsonl".into()]));
    }
}
