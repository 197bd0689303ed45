//! `dsr generate`, `chat` and `score`: a model without a recipe.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use serde_json::Value;

use crate::support::{files::golden, program::command};

/// A directory with a small LLaMA, whose tokenizer has a chat template.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let model = folder.path("model");
        std::fs::create_dir(&model).unwrap();
        for from in [golden("families").join("llama-gqa"), golden("chat").join("chat-llama3")] {
            for file in std::fs::read_dir(from).unwrap() {
                let file = file.unwrap();
                std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
            }
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn dsr(&self, args: &[&str], input: &str) -> Output {
        let mut command = command();
        command.args(args).current_dir(self.0.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A program that reads no input may have ended.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    }

    fn lines(&self, args: &[&str], input: &str) -> Vec<Value> {
        let output = self.dsr(args, input);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn error(&self, args: &[&str]) -> (String, Option<i32>) {
        let output = self.dsr(args, "");
        (String::from_utf8(output.stderr).unwrap(), output.status.code())
    }
}

const GREEDY: [&str; 4] = ["--max-new-tokens", "6", "--temperature", "0"];

#[test]
fn each_text_is_a_line_of_json() {
    let folder = Folder::new();
    let args = [&["generate", "model", "What is", "the capital"][..], &GREEDY].concat();
    let lines = folder.lines(&args, "");
    assert_eq!(lines.len(), 2);
    for (line, prompt) in lines.iter().zip(["What is", "the capital"]) {
        assert_eq!((&line["prompt"], &line["finish_reason"]), (&prompt.into(), &"length".into()));
        assert_eq!(line["token_ids"].as_array().unwrap().len(), 6);
        let text = format!("{prompt}{}", line["completion"].as_str().unwrap());
        assert_eq!(line["text"], text);
    }
    let args = [&["generate", "model"][..], &GREEDY].concat();
    assert_eq!(folder.lines(&args, "What is\n\nthe capital\n"), lines, "from standard input");
    std::fs::write(folder.path("p.jsonl"), "{\"prompt\": \"What is\"}\n\"the capital\"\n").unwrap();
    let args = [&["generate", "model", "--prompts", "p.jsonl"][..], &GREEDY].concat();
    assert_eq!(folder.lines(&args, ""), lines, "from a file");
    let two = ["generate", "model", "What is", "--num-return-sequences", "2", "--logprobs"];
    let two =
        folder.lines(&[&two[..], &["--seed", "5", "--stop", "e", "--stop", "a"]].concat(), "");
    let sequences: Vec<_> = two.iter().filter_map(|line| line["sequence"].as_u64()).collect();
    assert!(sequences == [0, 1] || sequences == [1, 0], "in the order of their ends");
    for line in &two {
        let lengths = ["token_ids", "logprobs"].map(|key| line[key].as_array().unwrap().len());
        assert_eq!(lengths[0], lengths[1]);
        assert!(!line["completion"].as_str().unwrap().contains(['a', 'e']), "{line}");
    }
}

#[test]
fn a_conversation_goes_by_the_template() {
    let folder = Folder::new();
    let input = "hello\n/save a.jsonl\n/save a.jsonl\n/nothing\n/system be kind\nhow are you\n\
                 and now\n/save b.jsonl\n/quit\nunheard\n";
    let output = folder.dsr(&[&["chat", "model"][..], &GREEDY].concat(), input);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    // The conversation went on after it.
    assert_eq!(output.status.code(), Some(4), "{errors}");
    assert!(errors.contains("a.jsonl is there already"), "{errors}");
    assert!(errors.contains("there is no command /nothing"), "{errors}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).matches('\n').count(), 3, "three answers");
    let roles = |file: &str| {
        let text = std::fs::read_to_string(folder.path(file)).unwrap();
        let line: Value = serde_json::from_str(&text).unwrap();
        let messages = line["messages"].as_array().unwrap().clone();
        let role = |message: &Value| message["role"].as_str().unwrap().to_owned();
        messages.iter().map(role).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(roles("a.jsonl"), "user assistant");
    assert_eq!(roles("b.jsonl"), "system user assistant user assistant");
}

/// The loss of a text in windows is that of each token with the context that its window gives.
#[test]
fn a_text_has_a_score() {
    let folder = Folder::new();
    let text = "It is a truth universally acknowledged. ".repeat(20);
    std::fs::write(folder.path("t.txt"), &text).unwrap();
    let score = |args: &[&str]| {
        folder.lines(&[&["score", "model", "t.txt", "--json"], args].concat(), "").remove(0)
    };
    let whole = score(&[]);
    assert_eq!(whole["bytes"], text.len());
    assert_eq!(whole["predicted"].as_u64().unwrap() + 1, whole["tokens"].as_u64().unwrap());
    let (loss, bits) = (whole["loss"].as_f64().unwrap(), whole["bits_per_byte"].as_f64().unwrap());
    let expected = loss * whole["predicted"].as_f64().unwrap() / 2f64.ln() / text.len() as f64;
    assert!((bits - expected).abs() < 1e-9, "{bits} {expected}");
    let windows = score(&["--max-length", "16", "--stride", "4"]);
    assert_eq!(windows["predicted"], whole["predicted"], "each token once");
    assert_ne!(windows["loss"], whole["loss"]);
    let shown = folder.dsr(&["score", "model", "t.txt"], "");
    let shown = String::from_utf8(shown.stdout).unwrap();
    for word in ["tokens", "loss", "perplexity", "bits per byte"] {
        assert!(shown.contains(word), "{shown}");
    }
}

#[test]
fn a_run_is_a_model_too() {
    let folder = Folder::new();
    let recipe = r#"
        let tok = tokenizer("dsr:gpt2");
        let model = new_model("gpt2", #{ n_layer: 1, n_head: 2, n_embd: 16, n_positions: 32 });
        let engine = init_engine(model, #{ micro_batch_size: 1 });
        let loader = dataset("dsr:austen").tokenize(tok).pack(32).loader(#{ micro_batch_size: 1 });
        let run = start_run(engine, loader, #{ total_steps: 1, name: "r" });
        for batch in run {
            engine.backward(engine.forward(batch));
            if engine.step() { run.after_step(); }
        }
        run.finish();
    "#;
    std::fs::write(folder.path("r.rhai"), recipe).unwrap();
    let output = folder.dsr(&["run", "r.rhai"], "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let run = std::fs::read_dir(folder.path("runs")).unwrap().next().unwrap().unwrap().path();
    let run = run.strip_prefix(folder.0.path()).map(Path::to_str).unwrap().unwrap().to_owned();
    // Its checkpoint has the tokenizer of its rows.
    let args = [&["generate", &run, "It"][..], &GREEDY].concat();
    let own = folder.lines(&args, "");
    assert_eq!(own[0]["token_ids"].as_array().unwrap().len(), 6);
    std::fs::remove_file(folder.path(&run).join("checkpoints/step-00000001/tokenizer.json"))
        .unwrap();
    let (said, status) = folder.error(&["generate", &run, "It"]);
    assert!(said.contains("--tokenizer"), "{said}");
    assert_ne!(status, Some(0));
    let args = [&args[..], &["--tokenizer", "dsr:gpt2"]].concat();
    assert_eq!(folder.lines(&args, ""), own);
}

/// Characters that a terminal would not show are JSON's escapes, which say the same.
#[test]
fn json_has_every_character_of_a_text() {
    let folder = Folder::new();
    let prompt = "family \u{1f468}\u{200d}\u{1f469} \u{ad}\u{feff}\u{e0001}\u{7f}";
    let found = folder.lines(&["generate", "model", "--max-new-tokens", "1", "--", prompt], "");
    assert_eq!(found[0]["prompt"], prompt);
}

/// A script sees that an answer failed, and the next one is given.
#[test]
fn a_piped_chat_ends_with_the_first_failure() {
    let folder = Folder::new();
    std::fs::write(folder.path("model/chat_template.jinja"), "{{ raise_exception('no') }}")
        .unwrap();
    let output = folder.dsr(&["chat", "model"], "hello\nagain\n");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), text.matches("error[E602]").count()), (Some(4), 2), "{text}");
}

/// The files are in float32.
#[test]
fn a_model_computes_in_the_format_that_is_asked_for() {
    let folder = Folder::new();
    let generate = |dtype: &[&str]| {
        folder.lines(&[&["generate", "model", "--logprobs"], dtype, &["--", "It"]].concat(), "")
    };
    let usual = generate(&[]);
    assert_eq!(usual, generate(&["--dtype", "auto"]));
    assert_ne!(usual, generate(&["--dtype", "bf16"]));
}

/// Of a run, of a checkpoint and of peft's directory: each names its base, and a run's says how it was
/// quantized.
#[test]
fn an_adapter_is_a_model_with_the_base_that_it_names() {
    let folder = Folder::new();
    let recipe = r#"
        let model = load_model("model", #{ quantize: "nf4" });
        model.lora(#{ r: 2 });
        let engine = init_engine(model, #{ micro_batch_size: 1, optimizer: #{ lr: 0.1 } });
        let rows = dataset("dsr:austen").tokenize(tokenizer("model")).pack(8);
        let loader = rows.loader(#{ micro_batch_size: 1 });
        let run = start_run(engine, loader, #{ total_steps: 2, name: "r", keep_best: "eval_loss" });
        while run.train_batch() {}
        run.evaluate(rows.take(1));
        run.finish();
        engine.model.export_adapter("adapter");
    "#;
    std::fs::write(folder.path("r.rhai"), recipe).unwrap();
    let output = folder.dsr(&["run", "r.rhai", "--name", "a"], "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let generate = |model: &[&str]| {
        folder.lines(&[&["generate", "--logprobs"], model, &["--", "It"]].concat(), "")
    };
    let of_run = generate(&["runs/a"]);
    assert_eq!(of_run, generate(&["model", "--adapter", "runs/a", "--quantize", "nf4"]));
    assert_eq!(of_run, generate(&["runs/a/checkpoints/step-00000002"]));
    for mark in ["best", "latest"] {
        assert_eq!(of_run, generate(&[&format!("runs/a/checkpoints/{mark}")]));
    }
    assert_ne!(of_run, generate(&["model", "--quantize", "nf4"]));
    assert_eq!(generate(&["adapter"]), generate(&["model", "--adapter", "adapter"]));

    std::fs::create_dir(folder.path("other")).unwrap();
    for file in ["config.json", "model.safetensors"] {
        let from = golden("families").join("mistral").join(file);
        std::fs::copy(from, folder.path("other").join(file)).unwrap();
    }
    let (said, status) = folder.error(&["generate", "other", "It", "--adapter", "runs/a"]);
    assert!(said.contains("is of an adapter of another base, model"), "{said}");
    assert_eq!(status, Some(4));
    let (said, _) = folder.error(&["generate", "runs/a", "It", "--adapter", "adapter"]);
    assert!(said.contains("is an adapter already"), "{said}");
    std::fs::rename(folder.path("model"), folder.path("moved")).unwrap();
    let (said, _) = folder.error(&["generate", "runs/a", "It"]);
    assert!(said.contains("it is the base that the adapter"), "{said}");
}

#[test]
fn mistakes_are_told_before_anything_is_loaded() {
    let folder = Folder::new();
    let cases: [(&[&str], &str); 6] = [
        (&["generate", "model", "It", "--top-p", "2"], "`top_p` must be above 0 and at most 1"),
        (&["generate", "model", "It", "--top-k", "many"], "`top_k` must be a whole number"),
        (&["generate", "absent", "It"], "there is no directory absent"),
        (&["generate", ".", "It"], "no checkpoint in ."),
        (&["chat", "model", "--num-return-sequences", "2"], "one answer to each message"),
        (&["score", "model", "absent.txt"], "absent.txt"),
    ];
    for (args, expected) in cases {
        let (said, status) = folder.error(args);
        assert!(said.contains(expected), "{args:?}: {said}");
        assert_ne!(status, Some(0));
    }
    std::fs::remove_file(folder.path("model/tokenizer_config.json")).unwrap();
    let (said, _) = folder.error(&["chat", "model"]);
    assert!(said.contains("has no chat template"), "{said}");
}
