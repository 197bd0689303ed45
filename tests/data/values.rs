//! A value arrives as it is, or its row is refused with its place.

use arrow::array::{
    BinaryArray, Float64Array, Int8Array, LargeStringArray, NullArray, TimestampSecondArray,
};

use super::*;

/// A dataset of one column, written as Parquet.
fn column(dir: &TempDir, name: &str, values: ArrayRef) -> Dataset {
    let batch = RecordBatch::try_from_iter([(name, values)]).unwrap();
    write_parquet(&dir.path().join("column.parquet"), &batch, 100);
    open(dir, "column.parquet").unwrap()
}

fn last_error(dataset: &Dataset) -> Error {
    dataset.rows().unwrap().find_map(Result::err).unwrap()
}

/// 1100 equal lines, and another.
fn lines(first: &str, last: &str) -> String {
    format!("{}{last}\n", format!("{first}\n").repeat(1100))
}

#[test]
fn a_number_that_its_column_cannot_hold_is_refused_with_its_line() {
    let table = [
        (r#"{"x": 1}"#, r#"{"x": 1.5}"#, "1.5 is no whole number"),
        (r#"{"x": [1, 2]}"#, r#"{"x": [1.9, 2]}"#, "1.9 is no whole number"),
        (r#"{"x": {"y": 1}}"#, r#"{"x": {"y": 0.5}}"#, "0.5 is no whole number"),
        (r#"{"x": 1.5}"#, r#"{"x": 9007199254740993}"#, "too many digits"),
    ];
    for (first, last, expected) in table {
        let dir = dir(&[("a.jsonl", &lines(first, last))]);
        let e = last_error(&open(&dir, "a.jsonl").unwrap());
        assert!(e.message().contains("line 1101"), "{e}");
        assert!(e.message().contains(expected), "{e}");
    }
    let whole = dir(&[("a.jsonl", &lines(r#"{"x": 1}"#, r#"{"x": 2.0}"#))]);
    assert_eq!(open(&whole, "a.jsonl").unwrap().row(1100).unwrap()["x"], json!(2));
}

#[test]
fn ids_above_int64_are_not_rounded() {
    let dir = dir(&[("a.jsonl", "{\"id\": 1}\n{\"id\": 18446744073709551615}\n")]);
    assert_eq!(open(&dir, "a.jsonl").unwrap().row(1).unwrap()["id"], json!(u64::MAX));
}

#[test]
fn a_float_that_is_no_number_is_refused_with_its_row() {
    let dir = dir(&[]);
    let values: ArrayRef = Arc::new(Float64Array::from(vec![1.0, f64::NAN, f64::INFINITY]));
    let dataset = column(&dir, "x", values);
    assert_eq!(dataset.row(0).unwrap()["x"], json!(1.0));
    let e = dataset.row(1).unwrap_err();
    assert_eq!(e.message(), "row 1: \"x\" is NaN, which is no number of a row");
    assert_eq!(e.hints(), ["leave the column out with .remove(\"x\")"]);
    assert!(last_error(&dataset).message().starts_with("row 1: "));
}

#[test]
fn bytes_are_text_where_they_are_utf8() {
    let dir = dir(&[]);
    let text: ArrayRef =
        Arc::new(BinaryArray::from_vec(vec![b"It is", "\u{e9}t\u{e9}".as_bytes()]));
    let dataset = column(&dir, "text", text);
    assert_eq!(texts(&dataset), ["It is", "\u{e9}t\u{e9}"]);
    let tokens = dataset.tokenize(gpt2(), TokenizeOptions::default()).unwrap();
    assert_eq!(tokens.row(0).unwrap()["input_ids"], json!([1026, 318]));
    let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"It is", b"\xff"]));
    let e = last_error(&column(&dir, "text", bytes));
    assert_eq!(e.message(), "row 1: \"text\" holds bytes that are no UTF-8 text");
}

#[test]
fn a_time_with_a_named_zone_is_the_same_instant_in_utc() {
    let dir = dir(&[]);
    let times = TimestampSecondArray::from(vec![0]).with_timezone("America/New_York");
    let row = column(&dir, "at", Arc::new(times)).row(0).unwrap();
    assert_eq!(row["at"], json!("1970-01-01T00:00:00Z"));
}

#[test]
fn a_map_may_widen_what_was_stored_narrow() {
    let dir = dir(&[]);
    let narrow = column(&dir, "v", Arc::new(Int8Array::from(vec![1, 2])));
    let wide = narrow
        .map(std::rc::Rc::new(|mut row: Row| {
            let value = row["v"].as_i64().unwrap();
            row["v"] = json!(value * 200 - 300);
            Ok(row)
        }))
        .unwrap();
    assert_eq!(wide.row(0).unwrap()["v"], json!(-100));
    assert_eq!(wide.row(1).unwrap()["v"], json!(100));
}

#[test]
fn files_with_types_that_go_together_are_one_dataset() {
    let dir = dir(&[]);
    std::fs::create_dir(dir.path().join("d")).unwrap();
    let parts: [(&str, ArrayRef); 3] = [
        ("1.parquet", Arc::new(NullArray::new(1))),
        ("2.parquet", Arc::new(StringArray::from(vec!["a"]))),
        ("3.parquet", Arc::new(LargeStringArray::from(vec!["b"]))),
    ];
    for (name, values) in parts {
        let batch = RecordBatch::try_from_iter_with_nullable([("text", values, true)]).unwrap();
        write_parquet(&dir.path().join("d").join(name), &batch, 1);
    }
    let rows = open(&dir, "d").unwrap().rows().unwrap();
    let values: Vec<_> = rows.map(|row| row.unwrap()["text"].clone()).collect();
    assert_eq!(values, [json!(null), json!("a"), json!("b")]);
}

#[test]
fn files_that_do_not_go_together_are_refused_when_the_dataset_is_opened() {
    let dir = dir(&[("d/1.jsonl", "{\"x\": 1}\n"), ("d/2.jsonl", "{\"x\": \"one\"}\n")]);
    let e = open(&dir, "d").unwrap_err();
    assert!(e.message().contains("2.jsonl has other columns"), "{e}");
}

fn one_batch(lines: &str) -> Result<Batch> {
    let dir = dir(&[("a.jsonl", lines)]);
    let options = LoaderOptions { micro_batch_size: 2, ..LoaderOptions::default() };
    open(&dir, "a.jsonl").unwrap().loader(options).unwrap().next().unwrap()
}

#[test]
fn a_label_is_a_token_id_or_the_one_without_a_target() {
    let fine = r#"{"input_ids": [1, 2], "labels": [-100, 2]}"#;
    assert_eq!(labels(&one_batch(fine).unwrap()), [[-100, 2]]);
    let e = one_batch(&format!("{fine}\n{}", fine.replace("-100", "-1"))).unwrap_err();
    assert_eq!(e.code(), Code::TokenId);
    assert_eq!(e.message(), "row 1: -1 is no label: a label is a token id, or -100");
}

#[test]
fn a_mask_holds_zeros_and_ones_alone() {
    for mask in ["[1, 2]", "[2, 2]", "[0, -1]"] {
        let row = format!(r#"{{"input_ids": [1, 2], "attention_mask": {mask}}}"#);
        let e = one_batch(&row).unwrap_err();
        assert!(e.message().starts_with("row 0: attention_mask holds "), "{e}");
        let dir = dir(&[("a.jsonl", &row)]);
        let e = last_error(&open(&dir, "a.jsonl").unwrap().pack(1).unwrap());
        assert!(e.message().starts_with("row 0: attention_mask holds "), "{e}");
    }
}
