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

const GPT2: &[u8] = include_bytes!("../../recipes/data/gpt2/tokenizer.json");

/// GPT-2's `vocab.json` and `merges.txt`.
fn vocab_and_merges() -> [(&'static str, String); 2] {
    let json: serde_json::Value = serde_json::from_slice(GPT2).unwrap();
    let merges: Vec<String> = json["model"]["merges"]
        .as_array()
        .unwrap()
        .iter()
        .map(|merge| match merge {
            serde_json::Value::String(pair) => pair.clone(),
            pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        })
        .collect();
    [
        ("vocab.json", json["model"]["vocab"].to_string()),
        ("merges.txt", format!("#version: 0.2\n{}\n", merges.join("\n"))),
    ]
}

#[test]
fn vocab_and_merges_read_as_gpt2_wrote_them() {
    let dir = dir(&vocab_and_merges().each_ref().map(|(name, text)| (*name, &text[..])));
    let tokenizer = Tokenizer::from_path(Place::unguarded(dir.path())).unwrap();
    let text = "It is a truth universally acknowledged, that caf\u{e9}s \u{1f600} open  late.";
    assert_eq!(tokenizer.encode(text).unwrap(), gpt2().encode(text).unwrap());
    assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), text);
    assert_eq!(tokenizer.eos_id(), Some(50256));
}

/// As transformers' `AutoTokenizer`: the class of GPT-2 goes by the settings alone.
#[test]
fn gpt2s_class_puts_a_blank_before_texts_where_its_settings_say_so() {
    let rules = std::str::from_utf8(GPT2).unwrap();
    let [(_, vocab), (_, merges)] = &vocab_and_merges();
    let json = [("tokenizer.json", rules)];
    let two = [("vocab.json", &vocab[..]), ("merges.txt", &merges[..])];
    let cases = [
        (two.as_slice(), "GPT2Tokenizer", true, " Hello world!"),
        (&two, "GPT2Tokenizer", false, "Hello world!"),
        (&json, "GPT2Tokenizer", true, " Hello world!"),
        (&json, "GPT2Tokenizer", false, "Hello world!"),
        (&json, "PreTrainedTokenizerFast", true, "Hello world!"),
    ];
    for (files, class, adds, text) in cases {
        let config = json!({ "tokenizer_class": class, "add_prefix_space": adds }).to_string();
        let dir = dir(&[files, &[("tokenizer_config.json", &config)]].concat());
        let tokenizer = Tokenizer::from_path(Place::unguarded(dir.path())).unwrap();
        let ids = tokenizer.encode("Hello world!").unwrap();
        assert_eq!(ids, gpt2().encode(text).unwrap(), "{} {config}", files.len());
    }
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

/// The rules of a few letters with these parts replaced.
fn rules(parts: &serde_json::Value) -> String {
    let mut whole = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "!": 2}, "merges": []},
    });
    for (key, value) in parts.as_object().unwrap() {
        whole[key] = value.clone();
    }
    whole.to_string()
}

fn with_rules(parts: &serde_json::Value) -> Result<Tokenizer> {
    Tokenizer::from_bytes(rules(parts).as_bytes())
}

/// The tokenizer of a few letters, of which "!" is a token that was added, with a file beside its rules.
fn beside(name: &str, content: &serde_json::Value) -> Result<Tokenizer> {
    let added = json!({ "added_tokens": [token(2, "!", false)] });
    let dir = dir(&[("tokenizer.json", &rules(&added)), (name, &content.to_string())]);
    Tokenizer::from_path(Place::unguarded(dir.path()))
}

fn token(id: u32, content: &str, special: bool) -> serde_json::Value {
    json!({
        "id": id, "content": content, "special": special, "normalized": false,
        "lstrip": false, "rstrip": false, "single_word": false,
    })
}

/// Ids and texts are those of transformers 5.23.
#[test]
fn tokens_that_stand_beside_the_rules_are_added() {
    let config = "tokenizer_config.json";
    let listed = json!({ "3": token(3, "<x>", true), "4": token(4, "<y>", false) });
    let cases = [
        (config, json!({ "added_tokens_decoder": listed }), [3, 4], "a b <y> !"),
        (config, json!({ "added_tokens_decoder": listed, "mask_token": "<y>" }), [3, 4], "a b !"),
        ("added_tokens.json", json!({ "<y>": 4, "<x>": 3 }), [3, 4], "a <x> b <y> !"),
        (config, json!({ "additional_special_tokens": ["<y>", "<x>"] }), [4, 3], "a b !"),
        (config, json!({ "extra_special_tokens": ["<x>", "<y>"] }), [3, 4], "a b !"),
        (
            config,
            json!({ "extra_special_tokens": { "image": "<y>" }, "x_token": "<x>" }),
            [3, 4],
            "a b !",
        ),
        (
            "special_tokens_map.json",
            json!({ "cls_token": token(3, "<x>", true), "additional_special_tokens": ["<y>"] }),
            [3, 4],
            "a b !",
        ),
    ];
    for (name, content, [x, y], text) in cases {
        let tokenizer = beside(name, &content).unwrap();
        let ids = tokenizer.encode("a<x>b<y>!").unwrap();
        assert_eq!(ids, [0, x, 1, y, 2], "{content}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{content}");
        assert_eq!(tokenizer.vocab_size(), 5, "{content}");
    }
}

#[test]
fn a_token_that_is_named_is_special() {
    for (eos, special) in [(json!("!"), "a"), (serde_json::Value::Null, "a !")] {
        let tokenizer = beside("tokenizer_config.json", &json!({ "eos_token": eos })).unwrap();
        assert_eq!(tokenizer.encode("a!").unwrap(), [0, 2]);
        assert_eq!(tokenizer.decode(&[0, 2]).unwrap(), special);
    }
}

#[test]
fn tokens_that_cannot_be_added_are_errors() {
    let cases = [
        (json!({ "added_tokens_decoder": { "9": token(9, "<x>", true) } }), "cannot have the id 9"),
        (json!({ "added_tokens_decoder": { "x": token(3, "<x>", true) } }), "is no token id"),
        (json!({ "added_tokens_decoder": { "3": {} } }), "has a token without content"),
        (json!({ "eos_token": "<x>" }), "name \"<x>\" as eos_token, which is no token"),
    ];
    for (content, expected) in cases {
        let e = beside("tokenizer_config.json", &content).unwrap_err();
        assert!(e.code() == Code::Tokenizer && e.message().contains(expected), "{e}");
    }
}

#[test]
fn an_added_token_that_the_rules_make_too_long_is_an_error() {
    let long = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(1000)});
    let bomb = json!({"normalizer": {"type": "Sequence", "normalizers": [long, long, long, long]}});
    let config =
        json!({ "added_tokens_decoder": { "3": { "content": "aa", "normalized": true } } });
    let files = [("tokenizer.json", rules(&bomb)), ("tokenizer_config.json", config.to_string())];
    let dir = dir(&files.each_ref().map(|(name, text)| (*name, &text[..])));
    let e = Tokenizer::from_path(Place::unguarded(dir.path())).unwrap_err();
    assert!(e.message().starts_with("the tokenizer's rules can make"), "{e}");
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
