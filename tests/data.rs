//! Datasets, from files to batches: what a recipe relies on.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{fs::File, path::Path, rc::Rc, sync::Arc};

use arrow::{
    array::{ArrayRef, Int32Array, ListArray, RecordBatch, StringArray},
    datatypes::{DataType, Field, Int32Type, Schema},
    ipc::{
        CompressionType,
        writer::{FileWriter, IpcWriteOptions, StreamWriter},
    },
};
use dsr::{
    data::{
        Batch, Dataset, DatasetFiles, Loader, LoaderOptions, OpenOptions, Padding, Row,
        TokenizeOptions, Tokenizer,
    },
    error::{Code, Error, Result},
};
use parquet::{arrow::ArrowWriter, file::properties::WriterProperties};
use serde_json::json;
use tempfile::TempDir;

fn dir(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

fn options(dir: &Path, split: Option<&str>) -> OpenOptions {
    OpenOptions {
        split: split.map(str::to_owned),
        base_dir: dir.to_owned(),
        ..OpenOptions::default()
    }
}

fn open(dir: &TempDir, spec: &str) -> Result<Dataset> {
    Dataset::open(spec, &options(dir.path(), None))
}

fn open_split(dir: &TempDir, spec: &str, split: &str) -> Result<Dataset> {
    Dataset::open(spec, &options(dir.path(), Some(split)))
}

fn texts(dataset: &Dataset) -> Vec<String> {
    dataset.rows().unwrap().map(|row| row.unwrap()["text"].as_str().unwrap().to_owned()).collect()
}

fn gpt2() -> Rc<Tokenizer> {
    Rc::new(Tokenizer::open("dsr:gpt2", Path::new("")).unwrap())
}

/// `rows` numbered lines, `row 0`, `row 1` and so on.
fn numbered(rows: usize) -> String {
    (0..rows).map(|i| format!("row {i}\n")).collect()
}

fn text_batch(from: usize, to: usize) -> RecordBatch {
    let column: ArrayRef =
        Arc::new(StringArray::from_iter_values((from..to).map(|i| format!("row {i}"))));
    RecordBatch::try_from_iter([("text", column)]).unwrap()
}

fn write_parquet(path: &Path, batch: &RecordBatch, rows_per_group: usize) {
    let properties =
        WriterProperties::builder().set_max_row_group_row_count(Some(rows_per_group)).build();
    let file = File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
}

/// A dataset of `rows` rows of `len` tokens: row i holds i, i, i, ...
fn token_rows(dir: &TempDir, rows: i32, len: usize) -> Dataset {
    let data = (0..rows).map(|i| Some(vec![Some(i); len]));
    let column: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(data));
    let batch = RecordBatch::try_from_iter([("input_ids", column)]).unwrap();
    write_parquet(&dir.path().join("tokens.parquet"), &batch, 7);
    open(dir, "tokens.parquet").unwrap()
}

fn ids(batch: &Batch) -> Vec<Vec<i64>> {
    Vec::try_from(&batch.input_ids).unwrap()
}

fn labels(batch: &Batch) -> Vec<Vec<i64>> {
    Vec::try_from(&batch.labels).unwrap()
}

fn mask(batch: &Batch) -> Vec<Vec<i64>> {
    Vec::try_from(&batch.attention_mask).unwrap()
}

/// The first token of every row of a batch: which rows they are.
fn which(batch: &Batch) -> Vec<i64> {
    ids(batch).iter().map(|row| row[0]).collect()
}

fn all(loader: Loader) -> Vec<Vec<i64>> {
    loader.map(|batch| which(&batch.unwrap())).collect()
}

fn micro(micro_batch_size: usize) -> LoaderOptions {
    LoaderOptions { micro_batch_size, ..LoaderOptions::default() }
}

mod sources {
    use super::*;

    #[test]
    fn every_format_gives_the_same_rows() {
        let dir = dir(&[("a.txt", &numbered(3000))]);
        let batch = text_batch(0, 3000);
        let json: String = (0..3000).map(|i| format!("{{\"text\":\"row {i}\"}}\n\n")).collect();
        std::fs::write(dir.path().join("a.jsonl"), json).unwrap();
        write_parquet(&dir.path().join("a.parquet"), &batch, 500);
        let lz4 = IpcWriteOptions::default()
            .try_with_compression(Some(CompressionType::LZ4_FRAME))
            .unwrap();
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

    struct FakeHub(Vec<(String, Vec<std::path::PathBuf>)>);

    impl DatasetFiles for FakeHub {
        fn dataset_files(
            &self,
            repo: &str,
            config: Option<&str>,
            revision: Option<&str>,
        ) -> Result<Vec<(String, Vec<std::path::PathBuf>)>> {
            assert_eq!((repo, config, revision), ("Owner/name", Some("small"), None));
            Ok(self.0.clone())
        }
    }

    #[test]
    fn a_hub_id_is_resolved_by_the_hub() {
        let dir = dir(&[("x.txt", "from the hub\n")]);
        let files = vec![("train".to_owned(), vec![dir.path().join("x.txt")])];
        let options =
            OpenOptions { hub: Some(Rc::new(FakeHub(files))), ..options(dir.path(), None) };
        let dataset = Dataset::open("Owner/name:small", &options).unwrap();
        assert_eq!(texts(&dataset), ["from the hub"]);
    }
}

mod damaged_files {
    use super::*;

    fn error(dir: &TempDir, spec: &str) -> Error {
        match open(dir, spec) {
            Err(e) => e,
            Ok(dataset) => dataset.rows().unwrap().find_map(Result::err).expect("an error"),
        }
    }

    #[test]
    fn a_missing_file_names_the_nearest() {
        let dir = dir(&[("train.jsonl", "{}")]);
        let e = error(&dir, "trian.jsonl");
        assert!(e.message().starts_with("no file "), "{e}");
        assert!(e.hints()[0].contains("train.jsonl"), "{e:?}");
        assert!(error(&dir, "nowhere/a.txt").message().contains("there is no directory"));
    }

    #[test]
    fn truncated_empty_and_unknown_files_are_named() {
        let dir =
            dir(&[("empty.txt", ""), ("a.csv", "x"), ("blank.jsonl", "\n\n"), ("b.txt", "x")]);
        let whole = dir.path().join("whole.parquet");
        write_parquet(&whole, &text_batch(0, 1000), 100);
        let bytes = std::fs::read(&whole).unwrap();
        std::fs::write(dir.path().join("cut.parquet"), &bytes[..bytes.len() / 2]).unwrap();
        std::fs::write(dir.path().join("cut.arrow"), b"ARROW1\0\0garbage-and-no-footer").unwrap();
        let table = [
            ("cut.parquet", "cut.parquet: damaged or truncated Parquet file"),
            ("cut.arrow", "cut.arrow: damaged or truncated Arrow file"),
            ("empty.txt", "empty.txt is empty"),
            ("blank.jsonl", "blank.jsonl: there are no rows in it"),
            ("a.csv", "unknown format; the extension must be one of .parquet"),
            (".", "several formats"),
        ];
        for (spec, expected) in table {
            let e = error(&dir, spec);
            assert!(e.message().contains(expected), "{spec}: {e}");
            assert_eq!(e.code(), Code::Data, "{spec}");
        }
        let e = open_split(&dir, "b.txt", "train[:1%]").unwrap_err();
        assert!(e.message().contains("has no rows"), "{e}");
    }

    #[test]
    fn bad_json_names_its_line() {
        let good = "{\"text\": \"a\", \"n\": 1}\n";
        let table = [
            ("{\"text\": ", "line 3 is not JSON: EOF while parsing a value at column 9"),
            ("[1, 2]", "line 3 is not a JSON object"),
            ("{\"text\": \"a\", \"n\": \"x\"}", "line 1502 does not fit the columns"),
            ("{\"text\": \"a\", \"m\": 1}", "line 1502 does not fit the columns"),
        ];
        for (line, expected) in table {
            let before = if expected.contains("1502") { 1500 } else { 1 };
            let text = format!("{}\n{line}\n{good}", good.repeat(before));
            let dir = dir(&[("a.jsonl", &text)]);
            let e = error(&dir, "a.jsonl");
            assert!(e.message().contains(expected), "{line}: {e}");
        }
    }

    #[test]
    fn files_with_other_columns_are_refused() {
        let dir = dir(&[("d/1.jsonl", "{\"text\": \"a\"}\n")]);
        let dataset = |second: &str| {
            std::fs::write(dir.path().join("d/2.jsonl"), second).unwrap();
            error(&dir, "d")
        };
        let e = dataset("{\"words\": \"a\"}\n");
        assert!(e.message().contains("2.jsonl: line 1 does not fit"), "{e}");

        let other: ArrayRef = Arc::new(Int32Array::from(vec![1]));
        let other = RecordBatch::try_from_iter([("text", other)]).unwrap();
        std::fs::create_dir(dir.path().join("p")).unwrap();
        write_parquet(&dir.path().join("p/1.parquet"), &text_batch(0, 2), 10);
        write_parquet(&dir.path().join("p/2.parquet"), &other, 10);
        let e = open(&dir, "p").unwrap().rows().unwrap().find_map(Result::err).unwrap();
        assert!(e.message().contains("expected text: Utf8; found text: Int32"), "{e}");
    }
}

mod tokenizers {
    use super::*;

    #[test]
    fn gpt2_gives_the_ids_of_hugging_face() {
        let tokenizer = gpt2();
        assert_eq!(tokenizer.encode("Hello world!").unwrap(), [15496, 995, 0]);
        assert_eq!(tokenizer.vocab_size(), 50257);
        assert_eq!(tokenizer.eos_id(), Some(50256));
        assert_eq!(tokenizer.token(995).as_deref(), Some("\u{120}world"));
        assert_eq!(tokenizer.decode(&[15496, 995, 0, 50256]).unwrap(), "Hello world!");
        assert_eq!(
            tokenizer.decode_with_special_tokens(&[15496, 50256]).unwrap(),
            "Hello<|endoftext|>"
        );
    }

    #[test]
    fn vocab_and_merges_read_as_gpt2_wrote_them() {
        let json: serde_json::Value =
            serde_json::from_slice(include_bytes!("../recipes/data/gpt2/tokenizer.json")).unwrap();
        let merges: Vec<String> = json["model"]["merges"]
            .as_array()
            .unwrap()
            .iter()
            .map(|merge| match merge {
                serde_json::Value::String(pair) => pair.clone(),
                pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
            })
            .collect();
        let dir = dir(&[
            ("vocab.json", &json["model"]["vocab"].to_string()),
            ("merges.txt", &format!("#version: 0.2\n{}\n", merges.join("\n"))),
        ]);
        let tokenizer = Tokenizer::from_path(dir.path()).unwrap();
        let text = "It is a truth universally acknowledged, that caf\u{e9}s \u{1f600} open  late.";
        assert_eq!(tokenizer.encode(text).unwrap(), gpt2().encode(text).unwrap());
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
        assert_eq!(tokenizer.eos_id(), Some(50256));
    }

    #[test]
    fn mistakes_are_named() {
        let dir = dir(&[("bad/tokenizer.json", "{"), ("none/x", "")]);
        let error = |spec: &str| Tokenizer::open(spec, dir.path()).unwrap_err();
        assert!(error("bad").message().contains("tokenizer.json is not a tokenizer.json"));
        assert!(error("none").message().contains("expected tokenizer.json, or vocab.json and"));
        assert!(error("absent").message().contains("no such file or directory"));
        assert!(error("dsr:gpt").message().contains("there is dsr:gpt2"));
    }
}

mod operations {
    use super::*;

    fn lists(dataset: &Dataset, column: &str) -> Vec<Vec<i64>> {
        let row = |row: Result<Row>| serde_json::from_value(row.unwrap()[column].clone()).unwrap();
        dataset.rows().unwrap().map(row).collect()
    }

    #[test]
    fn tokenize_and_pack_lose_only_the_remainder() {
        let dir = dir(&[("a.txt", "Hello world!\n\nHello\n")]);
        let text = open(&dir, "a.txt").unwrap();
        let options = TokenizeOptions { append_eos: true, ..TokenizeOptions::default() };
        let tokens = text.tokenize(gpt2(), options).unwrap();
        assert_eq!(tokens.columns(), ["input_ids"]);
        let expected = [vec![15496, 995, 0, 50256], vec![50256], vec![15496, 50256]];
        assert_eq!(lists(&tokens, "input_ids"), expected);
        let packed = tokens.pack(3).unwrap();
        assert_eq!(lists(&packed, "input_ids"), [[15496, 995, 0], [50256, 50256, 15496]]);
        assert_eq!(packed.skip(1).unwrap().count().unwrap(), 1);
    }

    #[test]
    fn padding_and_truncation_follow_max_length() {
        let dir = dir(&[("a.txt", "Hello world!\nHello\n")]);
        let text = open(&dir, "a.txt").unwrap();
        let options = TokenizeOptions {
            append_eos: true,
            max_length: Some(3),
            padding: Padding::MaxLength,
            truncation: true,
            ..TokenizeOptions::default()
        };
        let tokens = text.tokenize(gpt2(), options.clone()).unwrap();
        assert_eq!(lists(&tokens, "input_ids"), [[15496, 995, 50256], [15496, 50256, 50256]]);
        assert_eq!(lists(&tokens, "attention_mask"), [[1, 1, 1], [1, 1, 0]]);
        let mut loader = tokens.loader(micro(2)).unwrap();
        let batch = loader.next_batch().unwrap().unwrap();
        assert_eq!(labels(&batch), [[15496, 995, 50256], [15496, 50256, -100]]);
        // Packing leaves the padding out.
        assert_eq!(
            lists(&tokens.pack(5).unwrap(), "input_ids"),
            [[15496, 995, 50256, 15496, 50256]]
        );

        let whole = TokenizeOptions { truncation: false, ..options };
        let e = text.tokenize(gpt2(), whole).unwrap().row(0).unwrap_err();
        assert_eq!(e.message(), "row 0 has 4 tokens, more than max_length 3");
    }

    #[test]
    fn options_without_effect_are_refused() {
        let dir = dir(&[("a.txt", "Hello\n")]);
        let text = open(&dir, "a.txt").unwrap();
        let base = TokenizeOptions::default;
        let table = [
            (TokenizeOptions { max_length: Some(4), ..base() }, "has no effect"),
            (TokenizeOptions { truncation: true, ..base() }, "needs max_length"),
            (TokenizeOptions { padding: Padding::MaxLength, ..base() }, "needs max_length"),
            (TokenizeOptions { field: "txet".into(), ..base() }, "no column \"txet\""),
        ];
        for (options, expected) in table {
            let e = text.tokenize(gpt2(), options).unwrap_err();
            assert!(e.message().contains(expected), "{e}");
        }
        let e =
            text.tokenize(gpt2(), TokenizeOptions { field: "txet".into(), ..base() }).unwrap_err();
        assert_eq!(e.message(), "no column \"txet\": the columns are text");
        assert_eq!(e.hints(), ["did you mean \"text\"?"]);
    }

    #[test]
    fn filter_and_map_see_rows_as_objects() {
        let dir = dir(&[("a.txt", &numbered(3000))]);
        let text = open(&dir, "a.txt").unwrap();
        let even = text
            .filter(Rc::new(|row| {
                let number: u64 = row["text"].as_str().unwrap()[4..].parse().unwrap();
                Ok(number.is_multiple_of(2))
            }))
            .unwrap();
        assert_eq!(even.count().unwrap(), 1500);
        let changed = even
            .map(Rc::new(|mut row| {
                row.insert("len".into(), json!(row["text"].as_str().unwrap().len()));
                Ok(row)
            }))
            .unwrap();
        assert_eq!(changed.columns(), ["text", "len"]);
        let last = changed.row(1499).unwrap();
        assert_eq!(serde_json::Value::Object(last), json!({ "text": "row 2998", "len": 8 }));
    }

    #[test]
    fn map_rows_must_fit_the_first_ones() {
        let dir = dir(&[("a.txt", &numbered(3000))]);
        let changed = open(&dir, "a.txt")
            .unwrap()
            .map(Rc::new(|row| {
                let number: i64 = row["text"].as_str().unwrap()[4..].parse().unwrap();
                let value = if number < 2000 { json!(number) } else { json!("many") };
                Ok(Row::from_iter([("n".to_owned(), value)]))
            }))
            .unwrap();
        let e = changed.rows().unwrap().find_map(Result::err).unwrap();
        let start = "map: row 2000 does not fit the columns of the first rows (n: Int64)";
        assert!(e.message().starts_with(start), "{e}");
        let failing = open(&dir, "a.txt").unwrap().map(Rc::new(|_| bail_out())).unwrap_err();
        assert_eq!(failing.message(), "the recipe says no");
    }

    fn bail_out() -> Result<Row> {
        Err(Error::new(Code::Recipe, "the recipe says no"))
    }

    #[test]
    fn take_and_skip_are_windows() {
        let dir = dir(&[("a.txt", &numbered(3000))]);
        let text = open(&dir, "a.txt").unwrap();
        let window = text.skip(1000).unwrap().take(3).unwrap();
        assert_eq!(texts(&window), ["row 1000", "row 1001", "row 1002"]);
        assert_eq!(texts(&window.skip(2).unwrap()), ["row 1002"]);
        assert_eq!(text.skip(2999).unwrap().take(5).unwrap().count().unwrap(), 1);
        assert_eq!(window.describe(), "a.txt [train] -> skip(1000) -> take(3)");
    }

    #[test]
    fn shuffle_is_a_permutation_drawn_from_the_seed() {
        let dir = dir(&[("a.txt", &numbered(3000))]);
        let text = open(&dir, "a.txt").unwrap();
        let shuffled = texts(&text.shuffle(1).unwrap());
        assert_ne!(shuffled, texts(&text));
        assert_eq!(shuffled, texts(&text.shuffle(1).unwrap()));
        assert_ne!(shuffled, texts(&text.shuffle(2).unwrap()));
        let mut sorted = shuffled.clone();
        let mut expected = texts(&text);
        sorted.sort();
        expected.sort();
        assert_eq!(sorted, expected);
        // Far rows meet: a window of nearby rows would leave the first rows in front.
        let first = |row: &String| row[4..].parse::<usize>().unwrap();
        assert!(shuffled[..10].iter().map(first).max() > Some(1500));
    }

    #[test]
    fn a_cache_is_filled_once() {
        let calls = Rc::new(std::cell::Cell::new(0));
        let dir = dir(&[("a.txt", &numbered(10))]);
        let counter = calls.clone();
        let counted = open(&dir, "a.txt")
            .unwrap()
            .filter(Rc::new(move |_| {
                counter.set(counter.get() + 1);
                Ok(true)
            }))
            .unwrap()
            .cache()
            .unwrap();
        let clone = counted.clone();
        assert_eq!(counted.num_rows().unwrap(), None);
        assert_eq!(texts(&counted), texts(&clone));
        assert_eq!((calls.get(), clone.num_rows().unwrap()), (10, Some(10)));
    }
}

mod loading {
    use super::*;

    #[test]
    fn batches_hold_the_rows_in_order() {
        let dir = dir(&[]);
        let dataset = token_rows(&dir, 10, 4);
        let mut loader = dataset.loader(micro(4)).unwrap();
        assert_eq!(loader.batches_per_epoch().unwrap(), Some(3));
        let batch = loader.next_batch().unwrap().unwrap();
        assert_eq!(batch.input_ids.size(), [4, 4]);
        assert_eq!(ids(&batch), labels(&batch));
        assert_eq!(mask(&batch), [[1; 4]; 4]);
        assert_eq!(batch.first_row, 0);
        assert_eq!(batch.rows().unwrap()[3]["input_ids"], json!([3, 3, 3, 3]));
        assert_eq!(all(loader), [vec![4, 5, 6, 7], vec![8, 9]]);
        let drop_last = LoaderOptions { drop_last: true, ..micro(4) };
        assert_eq!(all(dataset.loader(drop_last).unwrap()).len(), 2);
    }

    #[test]
    fn ranks_share_each_block_and_yield_equally_many_batches() {
        let dir = dir(&[]);
        let dataset = token_rows(&dir, 9, 4);
        let rank = |rank, world_size| {
            let options = LoaderOptions { rank, world_size, ..micro(2) };
            dataset.loader(options).unwrap()
        };
        assert_eq!(rank(0, 2).batches_per_epoch().unwrap(), Some(3));
        assert_eq!(all(rank(0, 2))[..2], [[0, 1], [4, 5]]);
        assert_eq!(all(rank(1, 2))[..2], [[2, 3], [6, 7]]);
        // The last block holds row 8 alone: what fills it up has no target.
        let last = |r| rank(r, 2).nth(2).unwrap().unwrap();
        assert_eq!(labels(&last(0)), [vec![8; 4], vec![-100; 4]]);
        assert_eq!(labels(&last(1)), [[-100; 4]; 2]);
        assert_eq!(last(1).input_ids.size(), [2, 4]);
        assert_eq!(last(1).rows().unwrap().len(), 0);
    }

    #[test]
    fn going_on_gives_the_rest_exactly() {
        let dir = dir(&[]);
        let data = token_rows(&dir, 23, 4);
        let plans = [
            data.clone(),
            data.shuffle(5).unwrap(),
            data.shuffle(5).unwrap().pack(6).unwrap(),
            data.filter(Rc::new(|row| Ok(row["input_ids"][0] != json!(3)))).unwrap(),
            data.shuffle(5).unwrap().skip(2).unwrap().take(20).unwrap(),
        ];
        for plan in plans {
            let options = LoaderOptions { epochs: Some(2), ..micro(3) };
            let whole: Vec<_> =
                plan.loader(options.clone()).unwrap().map(|b| ids(&b.unwrap())).collect();
            for stop in 0..=whole.len() {
                let mut first = plan.loader(options.clone()).unwrap();
                let mut seen: Vec<_> =
                    first.by_ref().take(stop).map(|b| ids(&b.unwrap())).collect();
                let state = serde_json::to_string(&first.state()).unwrap();
                let mut second = plan.loader(options.clone()).unwrap();
                second.restore(serde_json::from_str(&state).unwrap()).unwrap();
                seen.extend(second.map(|b| ids(&b.unwrap())));
                assert!(seen == whole, "{} after {stop} batches", plan.describe());
            }
        }
    }

    #[test]
    fn a_shuffled_epoch_differs_from_the_one_before() {
        let dir = dir(&[]);
        let shuffled = token_rows(&dir, 50, 1).shuffle(0).unwrap();
        let options = LoaderOptions { epochs: Some(2), ..micro(50) };
        let epochs = all(shuffled.loader(options).unwrap());
        assert_ne!(epochs[0], epochs[1]);
        let sorted = |mut rows: Vec<i64>| {
            rows.sort_unstable();
            rows
        };
        assert_eq!(sorted(epochs[0].clone()), sorted(epochs[1].clone()));
    }

    #[test]
    fn the_same_rows_whatever_the_number_of_ranks() {
        let dir = dir(&[]);
        let shuffled = token_rows(&dir, 24, 1).shuffle(3).unwrap();
        let global = |world_size: usize, micro_batch_size: usize| {
            let rank = |rank| {
                let options = LoaderOptions {
                    rank,
                    world_size,
                    micro_batch_size,
                    ..LoaderOptions::default()
                };
                all(shuffled.loader(options).unwrap())
            };
            let ranks: Vec<_> = (0..world_size).map(rank).collect();
            (0..ranks[0].len()).flat_map(|b| ranks.iter().flat_map(move |r| r[b].clone())).collect()
        };
        let one: Vec<i64> = global(1, 8);
        assert_eq!(one, global(2, 4));
        assert_eq!(one, global(4, 2));
    }

    #[test]
    fn rows_of_different_length_need_padding() {
        let dir = dir(&[("a.txt", "Hello world!\nHello\n")]);
        let text = open(&dir, "a.txt").unwrap();
        let ragged = text.tokenize(gpt2(), TokenizeOptions::default()).unwrap();
        let e = ragged.loader(micro(2)).unwrap().next_batch().unwrap_err();
        assert!(
            e.message().starts_with("row 1 has 1 tokens, and another of its batch has 3"),
            "{e}"
        );
        assert!(e.hints()[0].contains("padding: \"longest\""));

        let options = TokenizeOptions { padding: Padding::Longest, ..TokenizeOptions::default() };
        // The choice survives what happens between tokenizing and loading.
        let padded = text.tokenize(gpt2(), options).unwrap();
        let padded = padded.map(Rc::new(Ok)).unwrap().cache().unwrap();
        let batch = padded.loader(micro(2)).unwrap().next_batch().unwrap().unwrap();
        assert_eq!(ids(&batch), [[15496, 995, 0], [15496, 50256, 50256]]);
        assert_eq!(labels(&batch), [[15496, 995, 0], [15496, -100, -100]]);
        assert_eq!(mask(&batch), [[1, 1, 1], [1, 0, 0]]);
    }

    #[test]
    fn labels_of_the_dataset_are_used() {
        let dir = dir(&[("a.jsonl", "{\"input_ids\": [1, 2], \"labels\": [-100, 2]}\n")]);
        let batch =
            open(&dir, "a.jsonl").unwrap().loader(micro(1)).unwrap().next().unwrap().unwrap();
        assert_eq!((ids(&batch), labels(&batch)), (vec![vec![1, 2]], vec![vec![-100, 2]]));
    }

    #[test]
    fn rows_that_make_no_batch_are_named() {
        let row = |text: &str| {
            let dir = dir(&[("a.jsonl", text)]);
            let mut loader = open(&dir, "a.jsonl").unwrap().loader(micro(1)).unwrap();
            loader.find_map(Result::err).unwrap()
        };
        let good = "{\"input_ids\": [1, 2]}\n";
        let e = row(&format!("{good}{}", "{\"input_ids\": [1, -5]}\n"));
        assert_eq!(e.message(), "row 1: input_ids[1] is -5; a token id is 0 or more");
        assert_eq!(e.code(), Code::TokenId);
        let e = row(&format!("{good}{}", "{\"input_ids\": []}\n"));
        assert_eq!(e.message(), "row 1 has no tokens");
    }

    #[test]
    fn text_must_be_tokenized_first() {
        let dir = dir(&[("a.txt", "Hello\n"), ("b.jsonl", "{\"words\": [1.5]}\n")]);
        let e = open(&dir, "a.txt").unwrap().loader(micro(1)).unwrap_err();
        assert_eq!(e.message(), "no column \"input_ids\": the columns are text");
        assert_eq!(e.hints(), ["call .tokenize(tokenizer) before .loader(...)"]);
        let e = open(&dir, "b.jsonl").unwrap().pack(4).unwrap_err();
        assert_eq!(e.message(), "no column \"input_ids\": the columns are words");
    }

    #[test]
    fn an_error_leaves_the_place_and_too_few_rows_are_one() {
        let dir = dir(&[]);
        let dataset = token_rows(&dir, 3, 2);
        let mut loader = dataset.loader(LoaderOptions { drop_last: true, ..micro(4) }).unwrap();
        let e = loader.next_batch().unwrap_err();
        assert!(
            e.message().starts_with("the dataset has 3 rows, too few for one batch of 4"),
            "{e}"
        );
        assert_eq!((loader.state().epoch, loader.state().row), (0, 0));
        let state = dsr::data::LoaderState { epoch: 0, row: 4 };
        assert!(loader.restore(state).unwrap_err().message().contains("has 3 rows"));
        let empty = dataset.filter(Rc::new(|_| Ok(false))).unwrap();
        let e = empty.loader(micro(1)).unwrap().next_batch().unwrap_err();
        assert!(e.message().starts_with("the dataset has no rows"), "{e}");
    }

    #[test]
    fn without_end_the_data_starts_again() {
        let dir = dir(&[]);
        let endless = LoaderOptions { epochs: None, ..micro(2) };
        let mut loader = token_rows(&dir, 4, 1).loader(endless).unwrap();
        let batches: Vec<_> = loader.by_ref().take(5).map(|b| which(&b.unwrap())).collect();
        assert_eq!(batches, [[0, 1], [2, 3], [0, 1], [2, 3], [0, 1]]);
        assert_eq!(loader.state(), dsr::data::LoaderState { epoch: 2, row: 2 });
    }

    #[test]
    fn token_ids_of_any_integer_type_load() {
        let dir = dir(&[]);
        for data_type in [DataType::Int64, DataType::UInt16, DataType::UInt32] {
            let items =
                arrow::compute::cast(&Int32Array::from(vec![1, 2, 3, 4]), &data_type).unwrap();
            let field = Arc::new(Field::new_list_field(data_type.clone(), true));
            let column = arrow::array::FixedSizeListArray::new(field.clone(), 2, items, None);
            let schema =
                Schema::new(vec![Field::new("input_ids", DataType::FixedSizeList(field, 2), true)]);
            let batch = RecordBatch::try_new(Arc::new(schema), vec![Arc::new(column)]).unwrap();
            write_parquet(&dir.path().join("x.parquet"), &batch, 10);
            let mut loader = open(&dir, "x.parquet").unwrap().loader(micro(2)).unwrap();
            let batch = loader.next_batch().unwrap().unwrap();
            assert_eq!(ids(&batch), [[1, 2], [3, 4]], "{data_type}");
        }
    }
}
