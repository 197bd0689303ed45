//! Tokenizers: what they load and what they refuse.

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
        serde_json::from_slice(include_bytes!("../../recipes/data/gpt2/tokenizer.json")).unwrap();
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
    let tokenizer = Tokenizer::from_path(Place::unguarded(dir.path())).unwrap();
    let text = "It is a truth universally acknowledged, that caf\u{e9}s \u{1f600} open  late.";
    assert_eq!(tokenizer.encode(text).unwrap(), gpt2().encode(text).unwrap());
    assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
    assert_eq!(tokenizer.eos_id(), Some(50256));
}

#[test]
fn mistakes_are_named() {
    let dir = dir(&[("bad/tokenizer.json", "{"), ("none/x", "")]);
    let error = |spec: &str| Tokenizer::open(source(&dir, spec)).unwrap_err();
    assert!(error("bad").message().contains("tokenizer.json is not a tokenizer.json"));
    assert!(error("none").message().contains("expected tokenizer.json, or vocab.json and"));
    assert!(error("absent").message().contains("no such file or directory"));
    assert_eq!(error("gpt2").hints(), ["did you mean \"dsr:gpt2\"?"]);
    assert!(error("dsr:gpt").message().contains("there is dsr:gpt2"));
}

/// A tokenizer of a few letters with these parts replaced.
fn with_rules(rules: &serde_json::Value) -> Result<Tokenizer> {
    let mut whole = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "!": 2}, "merges": []},
    });
    for (key, value) in rules.as_object().unwrap() {
        whole[key] = value.clone();
    }
    Tokenizer::from_bytes(whole.to_string().as_bytes())
}

/// What the library would panic at, or ask gigabytes for.
#[test]
fn rules_that_do_not_fit_are_errors() {
    let split = |regex: &str| {
        json!({"pre_tokenizer": {
            "type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false,
        }})
    };
    let long = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(1000)});
    let bpe = |vocab, merges| json!({"model": {"type": "BPE", "vocab": vocab, "merges": merges}});
    let table =
        |table| json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": table}});
    let template = json!({"post_processor": {
        "type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    }});
    let cases = [
        ("backtracking", split("(a+)+$")),
        ("alternatives", split("(a|aa)+$")),
        ("repetition", split(&"\\p{L}+".repeat(200))),
        ("a merge without a product", bpe(json!({"a": 0, "b": 1, "!": 2}), json!([["a", "b"]]))),
        ("ids that two tokens have", bpe(json!({"a": 0, "b": 0, "!": 0}), json!([["a", "b"]]))),
        ("an unknown special token", template),
        (
            "a bomb",
            json!({"normalizer": {"type": "Sequence", "normalizers": [long, long, long, long]}}),
        ),
        ("a table of 4 GiB", table("AAAA////")),
        ("a table of 8 GiB", table("//////////8AAAAAAAAA")),
    ];
    let text = format!("{}!", "a".repeat(3000));
    for (name, rules) in cases {
        let e = with_rules(&rules)
            .and_then(|tokenizer| {
                tokenizer.encode_batch(vec![&text, &text])?;
                tokenizer.encode(&text)
            })
            .err();
        let e = e.unwrap_or_else(|| panic!("{name} is no error"));
        assert_eq!(e.code(), Code::Tokenizer, "{name}: {e}");
    }
    let strip = json!({"decoder": {"type": "Strip", "content": "a", "start": 5, "stop": 5}});
    let e = with_rules(&strip).unwrap().decode(&[0, 1, 2]).unwrap_err();
    assert_eq!(e.code(), Code::Tokenizer, "{e}");
}

#[test]
fn merges_of_two_files_that_do_not_fit_are_errors() {
    let cases = [
        (r#"{"a": 0, "b": 1}"#, "#version: 0.2\na b\n"),
        (r#"{"a": 0}"#, "a\n"),
        (r#"{"a": "x"}"#, ""),
        ("[", ""),
    ];
    for (vocab, merges) in cases {
        let dir = dir(&[("vocab.json", vocab), ("merges.txt", merges)]);
        let e = Tokenizer::from_path(Place::unguarded(dir.path())).unwrap_err();
        assert_eq!(e.code(), Code::Tokenizer, "{vocab} {merges}: {e}");
    }
}

/// Files are read on all cores, and so are their words counted: neither waits for the other's.
#[test]
fn a_tokenizer_learns_from_more_rows_than_are_read_at_once() {
    let row = |i: usize| format!("{{\"text\": \"row {i} of many\"}}\n");
    let dir = dir(&[("rows.jsonl", &(0..8000).map(row).collect::<String>())]);
    let rows = open(&dir, "rows.jsonl").unwrap();
    let training = TokenizerTraining { vocab_size: 300, ..TokenizerTraining::default() };
    let tokenizer = Tokenizer::train(&rows, &training).unwrap();
    assert_eq!(tokenizer.vocab_size(), 300);
}
