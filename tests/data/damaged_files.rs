//! Damaged and missing files are errors that name them.

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
    let dir = dir(&[("empty.txt", ""), ("a.csv", "x"), ("blank.jsonl", "\n\n"), ("b.txt", "x")]);
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
