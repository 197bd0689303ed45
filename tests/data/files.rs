//! What people have: text files, CSV, JSON arrays, packed files, files of other programs.

use std::io::Write;

use super::*;

fn open_by(dir: &TempDir, name: &str, sample_by: SampleBy) -> Dataset {
    Dataset::open(source(dir, name), &OpenOptions { sample_by, ..options(None) }).unwrap()
}

#[test]
fn a_text_file_is_a_document_or_paragraphs_or_lines() {
    let dir = dir(&[("a.txt", "\u{feff}one\r\ntwo\r\n\r\n\r\nthree\r\n"), ("b.md", "# b")]);
    let by = |name, sample_by| texts(&open_by(&dir, name, sample_by));
    assert_eq!(by("a.txt", SampleBy::Document), ["one\ntwo\n\n\nthree\n"]);
    assert_eq!(by("a.txt", SampleBy::Paragraph), ["one\ntwo", "three"]);
    assert_eq!(by("a.txt", SampleBy::Line), ["one", "two", "", "", "three"]);
    assert_eq!(by("b.md", SampleBy::default()), ["# b"]);
}

#[test]
fn csv_and_tsv_have_a_header_and_types() {
    let dir = dir(&[
        ("a.csv", "\u{feff}text,n\n\"one, \"\"two\"\"\nlines\",1\nthree,2\n"),
        ("a.tsv", "text\tn\none\t1.5\n"),
    ]);
    let a = open(&dir, "a.csv").unwrap();
    assert_eq!(a.row(0).unwrap()["text"], "one, \"two\"\nlines");
    assert_eq!((a.count().unwrap(), a.row(1).unwrap()["n"].clone()), (2, json!(2)));
    assert_eq!(open(&dir, "a.tsv").unwrap().row(0).unwrap()["n"], json!(1.5));
}

#[test]
fn a_value_of_csv_is_the_one_that_is_written() {
    let text = "zip,id,price,day,ok,none\n007,12,1.50,2024-01-31,true,\n10115,-3,2e3,x,False,\n";
    let dir = dir(&[
        ("a.csv", text),
        ("late.csv", &format!("n\n{}007\n", "5\n".repeat(1500))),
        ("twice.csv", "a,a\n1,2\n"),
        ("short.csv", "a,b\n1,2\n3\n"),
    ]);
    let a = open(&dir, "a.csv").unwrap();
    let row = |i| serde_json::Value::Object(a.row(i).unwrap());
    let (day, none) = ("2024-01-31", json!(null));
    assert_eq!(
        row(0),
        json!({"zip": "007", "id": 12, "price": 1.5, "day": day, "ok": true, "none": none})
    );
    assert_eq!(
        row(1),
        json!({"zip": "10115", "id": -3, "price": 2000.0, "day": "x", "ok": false, "none": none})
    );
    let refusal = |name| {
        let rows = open(&dir, name).and_then(|d| d.rows()?.collect::<Result<Vec<_>>>());
        rows.unwrap_err().message().to_owned()
    };
    let late = "row 1500 does not fit the columns: n: \"007\" is no Int64";
    assert!(refusal("late.csv").ends_with(late), "{}", refusal("late.csv"));
    assert!(refusal("twice.csv").ends_with("two of its columns are called \"a\""));
    let short = "line 3: 1 values, where the header has 2 names";
    assert!(refusal("short.csv").ends_with(short), "{}", refusal("short.csv"));
}

/// Lines are counted through values of several lines; an open quote does not swallow the rest in silence.
#[test]
fn a_damaged_csv_file_is_refused_with_the_line() {
    let rows = "\"two\nlines\",1\n".repeat(3000);
    let dir = dir(&[
        ("wide.csv", &format!("text,n\n{rows}\"a\",1,2\n{rows}")),
        ("open.csv", &format!("text,n\n{rows}\"a,1\n{}", rows.replace('"', ""))),
    ]);
    let refusal = |name| {
        let rows = open(&dir, name).and_then(|d| d.rows()?.collect::<Result<Vec<_>>>());
        rows.unwrap_err().message().to_owned()
    };
    let wide = "wide.csv: line 6002: 3 values, where the header has 2 names";
    assert!(refusal("wide.csv").ends_with(wide), "{}", refusal("wide.csv"));
    let open = "open.csv: line 6002: a quote is opened and not closed";
    assert!(refusal("open.csv").ends_with(open), "{}", refusal("open.csv"));
}

/// A reading that begins in the middle has the rows of the whole, over groups of rows and all cores.
#[test]
fn csv_is_read_from_any_row_on() {
    let rows: String = (0..5000).map(|i| format!("\"row \"\"{i}\"\"\r\n\",{i}\r\n")).collect();
    let dir = dir(&[("a.csv", &format!("text,n\r\n{rows}"))]);
    let dataset = open(&dir, "a.csv").unwrap();
    assert_eq!(dataset.count().unwrap(), 5000);
    for from in [0, 1, 1023, 1024, 1025, 4999] {
        let texts = texts(&dataset.skip(from).unwrap());
        let expected = (from..5000).map(|i| format!("row \"{i}\"\r\n"));
        assert!(texts.into_iter().eq(expected), "from row {from}");
    }
}

#[test]
fn a_json_array_is_read_an_object_at_a_time() {
    let dir = dir(&[
        ("a.json", "[\n {\"text\": \"a ] \\\" }\", \"m\": [{\"x\": 1}]},\n\n {\"text\": \"b\"}]\n"),
        ("bad.json", "[{\"text\": \"a\"}, {\"text\": \"b\""),
        ("words.json", "[{\"text\": \"a\"},\n 3]"),
    ]);
    assert_eq!(texts(&open(&dir, "a.json").unwrap()), ["a ] \" }", "b"]);
    let refusal = |name| open(&dir, name).and_then(|d| d.count()).unwrap_err().message().to_owned();
    assert!(refusal("bad.json").ends_with("the array does not end: the file is truncated"));
    assert!(refusal("words.json").ends_with("line 2: an element of the array is no JSON object"));
}

#[test]
fn packed_files_are_read_as_they_are() {
    let dir = dir(&[]);
    let text = "{\"text\": \"a\"}\n{\"text\": \"b\"}\n";
    let write = |name: &str, bytes: Vec<u8>| std::fs::write(dir.path().join(name), bytes).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(text.as_bytes()).unwrap();
    write("a.jsonl.gz", gzip.finish().unwrap());
    write("a.jsonl.zst", zstd::encode_all(text.as_bytes(), 1).unwrap());
    for name in ["a.jsonl.gz", "a.jsonl.zst"] {
        let dataset = open(&dir, name).unwrap();
        assert_eq!(texts(&dataset), ["a", "b"], "{name}");
        assert_eq!(texts(&dataset.skip(1).unwrap()), ["b"], "{name}");
    }
    write("cut.jsonl.gz", std::fs::read(dir.path().join("a.jsonl.gz")).unwrap()[..20].to_vec());
    assert!(open(&dir, "cut.jsonl.gz").is_err());
}

#[test]
fn nothing_in_a_directory_is_passed_over_in_silence() {
    let dir = dir(&[
        ("bz/a.jsonl", "{\"text\": \"a\"}\n"),
        ("bz/b.jsonl.bz2", "x"),
        ("two/a.jsonl", "{\"text\": \"a\"}\n"),
        ("two/b.csv", "text\nb\n"),
    ]);
    let refusal = |name| open(&dir, name).unwrap_err().message().to_owned();
    assert!(refusal("bz").ends_with("b.jsonl.bz2: dsr does not read such files"));
    assert!(refusal("two").contains("several formats, such as a.jsonl and b.csv"));
}

#[test]
fn a_pointer_of_git_lfs_is_no_data() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    for name in ["a.txt", "a.jsonl", "a.parquet", "a.arrow", "a.csv"] {
        let dir = dir(&[(name, pointer)]);
        let e = open(&dir, name).unwrap_err();
        assert!(e.message().contains("is a Git LFS pointer"), "{name}: {e}");
    }
}

#[test]
fn datasets_are_put_together_and_taken_apart() {
    let dir = dir(&[(
        "a.jsonl",
        "{\"id\": 1, \"text\": \"a\", \"m\": {\"x\": 5}}\n{\"id\": 2, \"text\": \"b\", \"m\": null}\n",
    )]);
    let a = open(&dir, "a.jsonl").unwrap();
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    assert_eq!(a.select(&names(&["text", "id"])).unwrap().columns(), ["text", "id"]);
    assert_eq!(a.remove(&names(&["id", "m"])).unwrap().columns(), ["text"]);
    let renamed = a.rename(&[("text".to_owned(), "content".to_owned())]).unwrap();
    assert_eq!(renamed.columns(), ["id", "content", "m"]);
    let flat = a.flatten().unwrap();
    assert_eq!(flat.columns(), ["id", "text", "m.x"]);
    assert_eq!(flat.row(0).unwrap()["m.x"], json!(5));
    assert_eq!(flat.row(1).unwrap()["m.x"], json!(null));
    let e = a.remove(&names(&["txt"])).unwrap_err();
    assert_eq!(e.hints(), ["did you mean \"text\"?"]);

    let both = a.concat(&a.take(1).unwrap()).unwrap();
    assert_eq!((texts(&both), both.count().unwrap()), (names(&["a", "b", "a"]), 3));
    assert_eq!(texts(&both.skip(2).unwrap()), ["a"]);
    assert_eq!(texts(&both.sort("text", false).unwrap()), ["a", "a", "b"]);
    assert_eq!(texts(&both.sort("id", true).unwrap()), ["b", "a", "a"]);
    assert_eq!(texts(&both.unique("text").unwrap()), ["a", "b"]);
    let e = a.concat(&renamed).unwrap_err();
    assert!(e.message().contains("has other columns than the first dataset"), "{e}");
}

#[test]
fn the_rows_of_a_split_are_always_the_same() {
    let dir = dir(&[("a.txt", &numbered(20))]);
    let all = open(&dir, "a.txt").unwrap();
    let (train, test) = all.split_at_end(5, Some(7)).unwrap();
    let mut rows = [texts(&train), texts(&test)].concat();
    assert_eq!((train.count().unwrap(), test.count().unwrap()), (15, 5));
    assert_eq!(texts(&test), texts(&all.split_at_end(5, Some(7)).unwrap().1));
    let mut expected = texts(&all);
    rows.sort();
    expected.sort();
    assert_eq!(rows, expected);
    assert!(all.split_at_end(20, None).is_err());
}
