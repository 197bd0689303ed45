//! Sources: files, directories, globs and what names them.

use super::*;

#[test]
fn every_format_gives_the_same_rows() {
    let dir = dir(&[("a.txt", &numbered(3000))]);
    let batch = text_batch(0, 3000);
    let json: String = (0..3000).map(|i| format!("{{\"text\":\"row {i}\"}}\n\n")).collect();
    std::fs::write(dir.path().join("a.jsonl"), json).unwrap();
    write_parquet(&dir.path().join("a.parquet"), &batch, 500);
    let lz4 =
        IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME)).unwrap();
    let feather = File::create(dir.path().join("a.feather")).unwrap();
    let mut writer = FileWriter::try_new_with_options(feather, &batch.schema(), lz4).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    let stream = File::create(dir.path().join("a.arrow")).unwrap();
    let mut writer = StreamWriter::try_new(stream, &batch.schema()).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();

    let expected: Vec<String> = (0..3000).map(|i| format!("row {i}")).collect();
    for name in ["a.txt", "a.jsonl", "a.parquet", "a.feather", "a.arrow"] {
        let dataset = open(&dir, name).unwrap();
        assert_eq!(dataset.columns(), ["text"], "{name}");
        assert_eq!(texts(&dataset), expected, "{name}");
        assert_eq!(dataset.count().unwrap(), 3000, "{name}");
        let part = open_split(&dir, name, "train[1990:2010]").unwrap();
        assert_eq!(texts(&part), expected[1990..2010], "{name}");
        assert_eq!(dataset.row(2999).unwrap()["text"], "row 2999", "{name}");
        let beyond = dataset.row(3000).unwrap_err();
        assert!(beyond.message().contains("has 3000 rows"), "{name}: {beyond}");
    }
    assert_eq!(open(&dir, "a.parquet").unwrap().num_rows().unwrap(), Some(3000));
}

#[test]
fn text_keeps_empty_lines_and_needs_no_last_newline() {
    let dir = dir(&[("a.txt", "one\r\n\ntwo")]);
    assert_eq!(texts(&open(&dir, "a.txt").unwrap()), ["one", "", "two"]);
}

#[test]
fn a_directory_has_splits_by_name() {
    let dir = dir(&[
        ("d/train-1.txt", "a\nb\n"),
        ("d/train-2.txt", "c\n"),
        ("d/val.txt", "v\n"),
        ("d/sub/test/x.txt", "t\n"),
        ("d/README.md", "# words\n"),
    ]);
    assert_eq!(texts(&open(&dir, "d").unwrap()), ["a", "b", "c"]);
    assert_eq!(texts(&open_split(&dir, "d", "validation").unwrap()), ["v"]);
    assert_eq!(texts(&open_split(&dir, "d", "test+train[-2:]").unwrap()), ["t", "b", "c"]);
    assert_eq!(texts(&open_split(&dir, "d/t*.txt", "train[1:]").unwrap()), ["b", "c"]);
    let e = open_split(&dir, "d", "valid").unwrap_err();
    assert_eq!(e.message(), "no split \"valid\": the splits are train, validation, test");
    assert_eq!(e.option_path(), Some("split"));
}

#[test]
fn slices_cross_files_and_skip_rows_in_every_part() {
    let dir = dir(&[("d/1.txt", &numbered(5)), ("d/2.txt", &numbered(5))]);
    let dataset = open_split(&dir, "d", "train[3:7]+train[-1:]").unwrap();
    assert_eq!(texts(&dataset), ["row 3", "row 4", "row 0", "row 1", "row 4"]);
    for skip in 0..=5 {
        assert_eq!(texts(&dataset.skip(skip).unwrap()), texts(&dataset)[skip as usize..]);
    }
}

/// A hub with one file, which is of the split train.
struct FakeHub(std::path::PathBuf);

const NAMED: DatasetId<'_> =
    DatasetId { repo: "Owner/name", config: Some("small"), revision: None };

impl DatasetFiles for FakeHub {
    fn dataset_splits(&self, dataset: DatasetId<'_>) -> Result<Vec<String>> {
        assert_eq!(dataset, NAMED);
        Ok(vec!["train".to_owned(), "test".to_owned()])
    }

    fn dataset_files(
        &self,
        dataset: DatasetId<'_>,
        split: &str,
        _is_streamed: bool,
    ) -> Result<Vec<DatasetFile>> {
        assert_eq!(dataset, NAMED);
        assert_eq!(split, "train", "only files of the wanted split are fetched");
        Ok(vec![DatasetFile::Here(self.0.clone())])
    }

    fn place(&self, path: std::path::PathBuf) -> Place {
        Place::unguarded(path)
    }
}

#[test]
fn a_hub_id_is_resolved_by_the_hub() {
    let dir = dir(&[("x.txt", "from the hub\n")]);
    let hub = FakeHub(dir.path().join("x.txt"));
    let options = OpenOptions { hub: Some(Rc::new(hub)), ..options(None) };
    let dataset = Dataset::open("Owner/name:small", &options).unwrap();
    assert_eq!(texts(&dataset), ["from the hub"]);
    assert_eq!(Dataset::splits("Owner/name:small", &options).unwrap(), ["train", "test"]);
}
