//! Damaged and missing files are errors that name them.

use rand::{RngExt, SeedableRng};

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
    let dir = dir(&[
        ("empty.txt", ""),
        ("a.csv", "x"),
        ("a.doc", "x"),
        ("blank.jsonl", "\n\n"),
        ("b.txt", "x"),
    ]);
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
        ("a.csv", "a.csv: there are no rows in it"),
        ("a.doc", "unknown format; the extension must be one of .parquet"),
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
    let dir = dir(&[("d/1.csv", "text\na\n"), ("d/2.csv", "words\na\n")]);
    let e = open(&dir, "d").unwrap_err();
    assert!(e.message().contains("2.csv has other columns"), "{e}");

    let other: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    let other = RecordBatch::try_from_iter([("text", other)]).unwrap();
    std::fs::create_dir(dir.path().join("p")).unwrap();
    write_parquet(&dir.path().join("p/1.parquet"), &text_batch(0, 2), 10);
    write_parquet(&dir.path().join("p/2.parquet"), &other, 10);
    let e = open(&dir, "p").unwrap_err();
    assert!(e.message().contains("expected text: Utf8; found text: Int32"), "{e}");
}

/// The bytes of files of both formats, with what their readers have code for.
fn whole_files() -> Vec<(&'static str, Vec<u8>)> {
    let texts = text_batch(0, 300);
    let lists =
        ListArray::from_iter_primitive::<Int32Type, _, _>((0..300).map(|i| Some(vec![Some(i); 3])));
    let words = arrow::array::DictionaryArray::<Int32Type>::from_iter(
        (0..300).map(|i| if i % 3 == 0 { "one" } else { "two" }),
    );
    let columns: [(&str, ArrayRef); 3] = [
        ("text", texts.column(0).clone()),
        ("input_ids", Arc::new(lists)),
        ("word", Arc::new(words)),
    ];
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let mut files = Vec::new();
    for compression in [None, Some(CompressionType::LZ4_FRAME), Some(CompressionType::ZSTD)] {
        let options = || IpcWriteOptions::default().try_with_compression(compression).unwrap();
        let (mut file, mut stream) = (Vec::new(), Vec::new());
        let mut writer =
            FileWriter::try_new_with_options(&mut file, &batch.schema(), options()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        drop(writer);
        let mut writer =
            StreamWriter::try_new_with_options(&mut stream, &batch.schema(), options()).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
        drop(writer);
        files.extend([("arrow", file), ("arrow", stream)]);
    }
    for (version, dictionary) in [
        (parquet::file::properties::WriterVersion::PARQUET_1_0, true),
        (parquet::file::properties::WriterVersion::PARQUET_2_0, false),
    ] {
        let properties = WriterProperties::builder()
            .set_writer_version(version)
            .set_dictionary_enabled(dictionary)
            .set_compression(parquet::basic::Compression::SNAPPY)
            .set_max_row_group_row_count(Some(100));
        let mut bytes = Vec::new();
        let mut writer =
            ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties.build())).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        files.push(("parquet", bytes));
    }
    files
}

/// Files with a few bytes changed are read to their end, or are errors that a recipe can catch.
#[test]
fn changed_files_are_errors_that_can_be_caught() {
    const FILES: u64 = 2000;
    let dir = tempfile::tempdir().unwrap();
    let whole = whole_files();
    let mut random = rand_chacha::ChaCha8Rng::from_seed([7; 32]);
    let mut recipe = String::new();
    for i in 0..FILES {
        let (extension, bytes) = &whole[(i % whole.len() as u64) as usize];
        let mut bytes = bytes.clone();
        // Half of the changes are near the end, where the metadata of most formats are.
        let from = if i % 2 == 0 { 0 } else { bytes.len() - bytes.len().min(600) };
        for _ in 0..random.random_range(1..5) {
            let at = random.random_range(from..bytes.len());
            bytes[at] = [0, 1, 0x7f, 0x80, 0xff, random.random()][random.random_range(0..6)];
        }
        let name = format!("{i}.{extension}");
        std::fs::write(dir.path().join(&name), bytes).unwrap();
        recipe += &format!(
            "try {{ for r in dataset(\"{name}\") {{ let x = r; }} dataset(\"{name}\").count(); read += 1; }} \
             catch (e) {{ if e.code != \"E601\" {{ print(`{name} ${{e}}`); }} }}\n"
        );
    }
    std::fs::write(dir.path().join("r.rhai"), format!("let read = 0;\n{recipe}print(read);\n"))
        .unwrap();
    let output = crate::support::program::dsr(dir.path(), &["run", "r.rhai"]).output().unwrap();
    let said = crate::support::program::out(&output);
    let read: u64 = said.trim().parse().unwrap_or_else(|_| panic!("{said}"));
    assert!(read < FILES * 9 / 10, "{read} of {FILES} files were read: nothing was tested");
}

#[test]
fn sizes_that_no_file_has_are_refused_before_they_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    for (extension, whole) in whole_files() {
        let path = dir.path().join(format!("cut.{extension}"));
        for end in [0, 1, 7, 8, 9, 11, 12, 16, 17, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..end]).unwrap();
            let spec = path.display().to_string();
            if let Ok(dataset) = open(&dir, &spec) {
                let _ = dataset.rows().unwrap().find_map(Result::err);
            }
        }
        // The length of the footer or of the first message.
        let at = if extension == "parquet" { whole.len() - 8 } else { whole.len() - 10 };
        let mut huge = whole.clone();
        huge[at..at + 4].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
        std::fs::write(&path, huge).unwrap();
        if let Err(e) = open(&dir, &path.display().to_string()) {
            assert_eq!(e.code(), Code::Data, "{e}");
        }
    }
}

#[test]
fn a_line_without_an_end_is_refused() {
    let dir = dir(&[]);
    let path = dir.path().join("holes.jsonl");
    File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let e = error(&dir, "holes.jsonl");
    assert!(e.message().ends_with("line 1 is longer than 256.0 MiB"), "{e}");
}

/// Rows with other columns each, and columns within a column: without a limit before anything is made
/// of them, the first takes hours and the second gigabytes.
#[test]
fn columns_have_a_limit_however_they_come() {
    let other = |row: usize| {
        let columns: Vec<_> = (0..400).map(|i| format!("\"c{row}_{i}\": 1")).collect();
        format!("{{{}}}\n", columns.join(", "))
    };
    let each: String = (0..1024).map(other).collect();
    let within: Vec<_> = (0..20_000).map(|i| format!("\"c{i}\": 1")).collect();
    let within = format!("{{\"a\": {{{}}}}}\n{}", within.join(", "), "{}\n".repeat(1000));
    let few: String = (0..1000).map(|row| format!("{{\"c{row}\": {row}}}\n")).collect();
    let dir = dir(&[("each.jsonl", &each), ("within.jsonl", &within), ("few.jsonl", &few)]);
    for name in ["each.jsonl", "within.jsonl"] {
        let e = error(&dir, name);
        assert!(e.message().contains("has more than 16384 columns"), "{name}: {e}");
        assert_eq!(e.code(), Code::Data);
    }
    assert_eq!(open(&dir, "few.jsonl").unwrap().columns().len(), 1000);
}

/// Columns within each other, which readers go through by recursion: JSON has 127 around a value.
#[test]
fn columns_are_nested_in_few_levels() {
    use parquet::arrow::arrow_writer::ArrowWriterOptions;

    let dir = dir(&[]);
    let path = dir.path().join("nested.parquet");
    let nested = |levels: usize| {
        let path = path.clone();
        let write = move || {
            let one: ArrayRef = std::sync::Arc::new(arrow::array::Int64Array::from(vec![1]));
            let within = |column: ArrayRef, _| -> ArrayRef {
                let field = arrow::datatypes::Field::new("g", column.data_type().clone(), true);
                std::sync::Arc::new(arrow::array::StructArray::from(vec![(field.into(), column)]))
            };
            let column = (0..levels).fold(one, within);
            let batch = RecordBatch::try_from_iter([("c", column)]).unwrap();
            // Arrow's own schema, which is left out here, has a limit already.
            let options = ArrowWriterOptions::new().with_skip_arrow_metadata(true);
            let file = std::fs::File::create(path).unwrap();
            let mut writer =
                ArrowWriter::try_new_with_options(file, batch.schema(), options).unwrap();
            writer.write(&batch).unwrap();
            writer.close().unwrap();
        };
        // The writer goes deep too.
        let deep = std::thread::Builder::new().stack_size(64 << 20).spawn(write);
        deep.unwrap().join().unwrap();
    };
    nested(100);
    assert_eq!(open(&dir, "nested.parquet").unwrap().columns(), ["c"]);
    nested(140);
    let e = error(&dir, "nested.parquet");
    assert!(e.message().contains("nested in more than 128 levels"), "{e}");
}
