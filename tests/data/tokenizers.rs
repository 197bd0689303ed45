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
    let tokenizer = Tokenizer::from_path(dir.path()).unwrap();
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
