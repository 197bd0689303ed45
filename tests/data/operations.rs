//! Operations on datasets: tokenize, pack, filter, map, shuffle.

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
    assert_eq!(lists(&tokens.pack(5).unwrap(), "input_ids"), [[15496, 995, 50256, 15496, 50256]]);

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
    let e = text.tokenize(gpt2(), TokenizeOptions { field: "txet".into(), ..base() }).unwrap_err();
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
