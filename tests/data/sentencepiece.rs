//! Tokenizers in the forms that the hub has, with the ids and the texts of transformers.

use super::*;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/tokenizers");
const NAMES: [&str; 10] = [
    "llama",     // BPE with byte fallback; a normalizer sets the blank in front; <s>
    "llama-eos", // the same with </s> behind
    "mistral",   // the same with Metaspace
    "phi3",      // the same without <s>; added tokens that take blanks with them
    "gemma",     // no blank in front; newlines as added tokens
    "t5",        // Unigram with a character map; </s> behind; <extra_id_0>
    "llama3",    // byte-level BPE with words beside its merges
    "qwen",      // byte-level BPE after NFC; added tokens that are no special ones
    "bloom",     // byte-level BPE with its own way to split
    "opt",       // GPT-2's with </s> in front
];

fn golden(name: &str) -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_path(Place::unguarded(Path::new(GOLDEN).join(name))).unwrap())
}

fn expected() -> serde_json::Value {
    let json = std::fs::read(Path::new(GOLDEN).join("expected.json")).unwrap();
    serde_json::from_slice(&json).unwrap()
}

fn strings(value: &serde_json::Value) -> Vec<String> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The rows of the texts "It is a truth", "" and "Hi".
fn rows(name: &str, options: TokenizeOptions) -> Vec<Vec<i64>> {
    let dir = dir(&[("a.txt", "It is a truth\n\nHi\n")]);
    let tokens = open(&dir, "a.txt").unwrap().tokenize(golden(name), options).unwrap();
    column(&tokens, "input_ids")
}

fn column(dataset: &Dataset, name: &str) -> Vec<Vec<i64>> {
    let row = |row: Result<Row>| serde_json::from_value(row.unwrap()[name].clone()).unwrap();
    dataset.rows().unwrap().map(row).collect()
}

#[test]
fn every_form_gives_the_ids_and_texts_of_transformers() {
    let expected = expected();
    let texts = strings(&expected["texts"]);
    for name in NAMES {
        let (tokenizer, expected) = (golden(name), &expected[name]);
        let ids: Vec<Vec<u32>> = serde_json::from_value(expected["ids"].clone()).unwrap();
        let decoded = strings(&expected["decoded"]);
        let with_special = strings(&expected["decoded_with_special_tokens"]);
        assert_eq!(ids.len(), texts.len());
        for (i, text) in texts.iter().enumerate() {
            assert_eq!(tokenizer.encode(text).unwrap(), ids[i], "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids[i]).unwrap(), decoded[i], "{name}: {text:?}");
            let whole = tokenizer.decode_with_special_tokens(&ids[i]).unwrap();
            assert_eq!(whole, with_special[i], "{name}: {text:?}");
        }
        let all = texts.iter().map(String::as_str).collect();
        assert_eq!(tokenizer.encode_batch(all).unwrap(), ids, "{name}");
    }
}

#[test]
fn special_tokens_are_those_of_transformers() {
    let expected = expected();
    for name in NAMES {
        let (tokenizer, expected) = (golden(name), &expected[name]);
        let eos = json!(tokenizer.eos_id());
        assert_eq!(json!(tokenizer.vocab_size()), expected["vocab_size"], "{name}");
        assert_eq!(eos, expected["eos_id"], "{name}");
        // transformers has none to pad with where the files name none.
        let pad = if expected["pad_id"].is_null() { &eos } else { &expected["pad_id"] };
        assert_eq!(json!(tokenizer.pad_id()), *pad, "{name}");
    }
}

#[test]
fn byte_fallback_and_byte_level_give_the_text_back() {
    let texts = strings(&expected()["texts"]);
    let exact = |text: &&String| !text.contains(['\u{2581}', '<']);
    for name in ["llama", "llama-eos", "phi3", "gemma", "llama3", "bloom", "opt"] {
        let tokenizer = golden(name);
        for text in texts.iter().filter(exact) {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), *text, "{name}");
        }
    }
}

#[test]
fn a_tokenizer_that_is_written_reads_the_same() {
    let texts = strings(&expected()["texts"]);
    for name in NAMES {
        let tokenizer = golden(name);
        let again = Tokenizer::from_bytes(&tokenizer.to_json().unwrap()).unwrap();
        assert_eq!(again.vocab_size(), tokenizer.vocab_size(), "{name}");
        for text in &texts {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(again.encode(text).unwrap(), ids, "{name}: {text:?}");
            assert_eq!(again.decode(&ids).unwrap(), tokenizer.decode(&ids).unwrap(), "{name}");
        }
    }
}

#[test]
fn append_eos_ends_rows_once() {
    let options = TokenizeOptions { append_eos: true, ..TokenizeOptions::default() };
    // OPT begins texts with the same token.
    for name in NAMES.into_iter().filter(|&name| name != "opt") {
        let eos = i64::from(golden(name).eos_id().unwrap());
        for row in rows(name, options.clone()) {
            assert_eq!(row.iter().position(|&id| id == eos), Some(row.len() - 1), "{name}");
        }
    }
    assert_eq!(rows("llama", options.clone())[1..], [vec![1, 2], vec![1, 474, 314, 2]]);
    assert_eq!(rows("llama-eos", options.clone()), rows("llama", options.clone()));
    assert_eq!(rows("t5", options), rows("t5", TokenizeOptions::default()));
}

#[test]
fn rows_are_cut_and_padded_with_the_familys_tokens() {
    let options = TokenizeOptions {
        append_eos: true,
        max_length: Some(4),
        padding: Padding::MaxLength,
        truncation: true,
        ..TokenizeOptions::default()
    };
    let table: [(&str, [[i64; 4]; 3]); 4] = [
        // No padding token: the end token is one.
        ("llama", [[1, 381, 325, 2], [1, 2, 2, 2], [1, 474, 314, 2]]),
        ("gemma", [[2, 293, 329, 1], [2, 1, 0, 0], [2, 292, 318, 1]]),
        ("t5", [[38, 5, 3, 1], [1, 0, 0, 0], [3, 213, 10, 1]]),
        ("bloom", [[44, 87, 398, 2], [2, 3, 3, 3], [43, 76, 2, 3]]),
    ];
    for (name, expected) in table {
        assert_eq!(rows(name, options.clone()), expected, "{name}");
    }
}

#[test]
fn packed_rows_hold_the_token_that_begins_each_text() {
    // As transformers' run_clm.py joins them.
    let dir = dir(&[("a.txt", "Hi\n\nHi\n")]);
    let text = open(&dir, "a.txt").unwrap();
    let tokens = text.tokenize(golden("llama"), TokenizeOptions::default()).unwrap();
    let packed = tokens.pack(7).unwrap();
    assert_eq!(column(&packed, "input_ids"), [[1, 474, 314, 1, 1, 474, 314]]);
}
