//! Poisoned files of models, tokenizers, data and checkpoints.

use super::*;
use crate::support::files::golden;

/// A directory with a good model, one file of which is replaced.
fn model_with(place: &Place, file: &str, content: &[u8]) {
    let dir = place.recipe.directory().join("model");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir(&dir).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden("gpt2-tiny-v512").join(name), dir.join(name)).unwrap();
    }
    if file != "model.safetensors" && file.ends_with("index.json") {
        fs::remove_file(dir.join("model.safetensors")).unwrap();
    }
    write(&dir.join(file), content);
}

/// A safetensors file with this header.
fn tensors(header: &str) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 64]].concat()
}

#[test]
fn a_poisoned_config_is_refused() {
    let place = Place::new();
    let good = fs::read_to_string(golden("gpt2-tiny-v512").join("config.json")).unwrap();
    let changed = |key: &str, value: &str| {
        let mut config: serde_json::Value = serde_json::from_str(&good).unwrap();
        config[key] = serde_json::from_str(value).unwrap();
        config.to_string()
    };
    let configs = [
        String::new(),
        "null".to_owned(),
        "{\"model_type\": \"gpt2\",".to_owned(),
        "[".repeat(100_000),
        changed("n_head", "0"),
        changed("n_head", "-4"),
        changed("n_layer", "1e300"),
        changed("n_layer", "\"4\""),
        changed("n_embd", "9223372036854775807"),
        changed("vocab_size", "-1"),
        changed("model_type", "\"mamba\""),
        changed("activation_function", "\"__import__('os')\""),
        changed("layer_norm_epsilon", "-1"),
    ];
    for config in configs {
        model_with(&place, "config.json", config.as_bytes());
        let shown: String = config.chars().take(80).collect();
        let code = place.run("load_model(\"model\");", |_| ()).unwrap_err().code();
        assert_eq!(code, Code::ModelConfig, "{shown}");
    }
}

#[test]
fn poisoned_weights_are_refused() {
    let place = Place::new();
    let tensor = |dtype: &str, shape: &str, offsets: &str| {
        tensors(&format!(
            "{{\"transformer.wte.weight\":{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":{offsets}}}}}"
        ))
    };
    let files = [
        Vec::new(),
        vec![0xff; 8],
        u64::MAX.to_le_bytes().to_vec(),
        (1_u64 << 40).to_le_bytes().to_vec(),
        tensors("not json"),
        tensors(&"[".repeat(100_000)),
        tensors("{}"),
        tensor("F32", "[4, 4]", "[0, 18446744073709551615]"),
        tensor("F32", "[4, 4]", "[64, 0]"),
        tensor("F32", "[4294967296, 4294967296]", "[0, 64]"),
        tensor("F32", "[9223372036854775807, 2]", "[0, 64]"),
        tensor("PICKLE", "[4, 4]", "[0, 64]"),
        tensor("F32", "[-4, -4]", "[0, 64]"),
    ];
    for (i, file) in files.iter().enumerate() {
        model_with(&place, "model.safetensors", file);
        let code = place.run("load_model(\"model\");", |_| ()).unwrap_err().code();
        assert_eq!(code, Code::Weights, "file {i}");
    }
    for index in [
        "{\"weight_map\":{\"transformer.wte.weight\":\"../../../etc/passwd\"}}",
        "{\"weight_map\":{\"transformer.wte.weight\":\"/etc/passwd\"}}",
        "{\"weight_map\":{\"transformer.wte.weight\":\"pytorch_model.bin\"}}",
        "{\"weight_map\":7}",
    ] {
        model_with(&place, "model.safetensors.index.json", index.as_bytes());
        let code = place.run("load_model(\"model\");", |_| ()).unwrap_err().code();
        assert_eq!(code, Code::Weights, "{index}");
    }
    // A link among the files of a model leads nowhere that the recipe may not go.
    model_with(&place, "x", b"");
    let weights = place.recipe.directory().join("model/model.safetensors");
    fs::remove_file(&weights).unwrap();
    symlink(golden("gpt2-tiny-v512").join("model.safetensors"), &weights).unwrap();
    let code = place.run("load_model(\"model\");", |_| ()).unwrap_err().code();
    assert_eq!(code, Code::Permission);
}

#[test]
fn a_poisoned_tokenizer_is_refused() {
    let place = Place::new();
    let path = place.recipe.directory().join("tokenizer.json");
    let files = [
        String::new(),
        "{}".to_owned(),
        "null".to_owned(),
        "[".repeat(100_000),
        r#"{"version":"1.0","model":{"type":"Pickle"}}"#.to_owned(),
        r#"{"version":"1.0","model":{"type":"BPE","vocab":{"a":-1},"merges":[]}}"#.to_owned(),
        r#"{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":["a b"]}}"#.to_owned(),
        r#"{"version":"1.0","pre_tokenizer":{"type":"Split","pattern":{"Regex":"("},"behavior":"Isolated","invert":false},"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#.to_owned(),
    ];
    for file in files {
        write(&path, &file);
        let shown: String = file.chars().take(80).collect();
        let ended = place.run("tokenizer(\"tokenizer.json\");", |_| ());
        assert_eq!(ended.err().map(|f| f.code()), Some(Code::Tokenizer), "{shown}");
    }
}

#[test]
fn poisoned_data_is_refused() {
    let place = Place::new();
    let good = fs::read(golden("tokens-v512.parquet")).unwrap();
    let mut footer = good.clone();
    let end = footer.len() - 8;
    footer[end..end + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut flipped = good.clone();
    let middle = flipped.len() - 200;
    flipped[middle..middle + 100].fill(0xff);
    let deep = format!("{{\"text\": {}", "[".repeat(100_000));
    let files: [(&str, &[u8]); 11] = [
        ("a.parquet", b""),
        ("a.parquet", b"PAR1PAR1"),
        ("a.parquet", &footer),
        ("a.parquet", &flipped),
        ("a.parquet", &good[..good.len() / 2]),
        ("a.arrow", b"ARROW1\0\0\xff\xff\xff\xff\xff\xff\xff\x7f"),
        ("a.arrow", b"\xff\xff\xff\xff\xff\xff\xff\x7fARROW1"),
        ("a.jsonl", deep.as_bytes()),
        ("a.jsonl", b"{\"text\": \"\xff\xfe\"}"),
        ("a.pkl", b"\x80\x04cos\nsystem\n"),
        ("a.txt", b""),
    ];
    for (i, (name, bytes)) in files.iter().enumerate() {
        write(&place.recipe.directory().join(name), bytes);
        let recipe = format!("for row in dataset(\"{name}\") {{ print(row); }}");
        let ended = place.run(&recipe, |_| ());
        assert_eq!(ended.err().map(|f| f.code()), Some(Code::Data), "file {i}, {name}");
    }
}

/// So many columns took hours, and heard no Ctrl-C.
#[test]
fn a_row_of_very_many_columns_is_refused() {
    let place = Place::new();
    let names = (0..200_000).map(|i| format!("k{i}"));
    let row: Vec<_> = names.clone().map(|name| format!("\"{name}\":1")).collect();
    write(&place.recipe.directory().join("many.jsonl"), format!("{{{}}}\n", row.join(",")));
    let header = names.collect::<Vec<_>>().join(",");
    write(&place.recipe.directory().join("many.csv"), format!("{header}\n1\n"));
    assert_codes(
        &place,
        &[
            ("dataset(\"many.jsonl\").count();", Code::Data),
            ("dataset(\"many.csv\").count();", Code::Data),
        ],
    );
}

#[test]
fn poisoned_checkpoints_and_configs_of_deepspeed_are_refused() {
    let place = Place::new();
    let engine = "let engine = init_engine(new_model(\"gpt2\", #{ vocab_size: 8, n_positions: 8, \
                  n_embd: 4, n_layer: 1, n_head: 1 }), #{ micro_batch_size: 1 });\n";
    let load = format!("{engine}engine.load_checkpoint(\"c\");");
    for latest in ["../../etc\n", "/etc\n", "", "step-1\n", "\0\n"] {
        write(&place.recipe.directory().join("c/latest"), latest);
        let ended = place.run(&load, |_| ());
        assert_eq!(ended.err().map(|f| f.code()), Some(Code::Checkpoint), "{latest:?}");
    }
    for text in ["", "{", "[1]", "\u{0}"] {
        write(&place.recipe.directory().join("ds.json"), text);
        let ended = place.run("from_deepspeed(\"ds.json\");", |_| ());
        let code = ended.err().map(|f| f.code());
        assert!(matches!(code, Some(Code::Syntax | Code::WrongType)), "{text:?}: {code:?}");
    }
}

/// Pipes and files of holes have no end, and are refused.
#[test]
fn what_has_no_end_is_refused() {
    let place = Place::new();
    let dir = place.recipe.directory();
    fs::create_dir_all(dir.join("pipes")).unwrap();
    fs::create_dir_all(dir.join("holes")).unwrap();
    for name in ["a.jsonl", "a.txt", "a.parquet", "a.arrow", "config.json", "tokenizer.json"] {
        let made = std::process::Command::new("mkfifo").arg(dir.join("pipes").join(name)).status();
        assert!(made.unwrap().success());
        fs::File::create(dir.join("holes").join(name)).unwrap().set_len(1 << 40).unwrap();
    }
    let mut endless = Vec::new();
    for from in ["pipes", "holes"] {
        for name in ["a.jsonl", "a.txt", "a.parquet", "a.arrow"] {
            endless.push(format!("for r in dataset(\"{from}/{name}\") {{ print(r); }}"));
        }
        endless.push(format!("load_model(\"{from}\");"));
        endless.push(format!("new_model(\"{from}/config.json\");"));
        endless.push(format!("tokenizer(\"{from}/tokenizer.json\");"));
        endless.push(format!("from_deepspeed(\"{from}/config.json\");"));
    }
    for recipe in endless {
        let failure = place.run(&recipe, |_| ()).unwrap_err();
        let error = &failure.faults[0].error;
        assert_ne!(error.code(), Code::Internal, "{recipe}: {error}");
        assert!(
            failure.code().exit_status() == 4 || failure.code() == Code::BadValue,
            "{recipe}: {error}"
        );
    }
}
