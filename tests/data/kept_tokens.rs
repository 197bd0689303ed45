//! Tokens that one run makes and the next takes, as the program has them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use tempfile::TempDir;

use crate::support::{
    program::{dsr, out},
    ranks,
};

/// Conversations mixed by weight, whole ones packed into rows, an adapter trained on them.
const RECIPE: &str = r#"
param("steps", 8);
param("is_kept", true);
param("go_on", false);

fn chats(file, tok) {
    dataset(file).chat(tok, #{ apply_chat_template: false, load_from_cache_file: P::is_kept })
}
let tok = tokenizer("dsr:gpt2");
let rows = mix([chats("a.jsonl", tok), chats("b.jsonl", tok)], #{ weights: [0.7, 0.3], seed: 5, stop: "all" })
    .pack(64, #{ documents: "separate" });
let loader = rows.loader(#{ micro_batch_size: 1, endless: true });
let model = load_model("base");
model.lora(#{ r: 2, target_modules: "all-linear", lora_dropout: 0.1 });
let engine = init_engine(model, #{
    train_micro_batch_size_per_gpu: 1,
    optimizer: #{ type: "AdamW", lr: 1e-2 },
});
if P::go_on {
    engine.load_checkpoint("saved", #{ loader: loader });
}
for batch in loader {
    engine.backward(engine.forward(batch));
    engine.step();
    print(`${engine.global_step} ${engine.loss}`);
    if engine.global_step == P::steps { break; }
}
if !P::go_on {
    engine.save_checkpoint("saved", #{ loader: loader });
}
"#;

/// A directory with the recipe, its data, its base and a home of its own.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(tempfile::tempdir().unwrap());
        let rows = |name: &str, n: usize| -> String {
            let row = |i| {
                format!(
                    "{{\"prompt\": \"{name} {i}?\", \"completion\": \" It is {i} of {name}.\"}}\n"
                )
            };
            (0..n).map(row).collect()
        };
        home.write("a.jsonl", &rows("apples", 300));
        home.write("b.jsonl", &rows("pears", 200));
        home.write("r.rhai", RECIPE);
        let base = r#"
let model = new_model("gpt2", #{ n_layer: 1, n_head: 2, n_embd: 16, n_positions: 64, seed: 1 });
model.export_hf("base");
"#;
        home.write("base.rhai", base);
        out(&home.run(1, &["run", "base.rhai", "--allow-write=."])[0]);
        home
    }

    fn write(&self, name: &str, content: &str) {
        fs::write(self.0.path().join(name), content).unwrap();
    }

    /// What each of the ranks says of a run.
    fn run(&self, world_size: usize, args: &[&str]) -> Vec<Output> {
        let caches = self.0.path().join("caches");
        let command = || {
            let mut command = dsr(self.0.path(), args);
            command.env("XDG_CACHE_HOME", &caches);
            command
        };
        match world_size {
            1 => vec![command().output().unwrap()],
            _ => ranks::run(world_size, command),
        }
    }

    /// The losses of the first rank.
    fn losses(&self, world_size: usize, args: &[&str]) -> Vec<String> {
        let args = [&["run", "r.rhai", "--allow-write=."], args].concat();
        let outputs = self.run(world_size, &args);
        let lines = outputs.iter().map(out).next().unwrap();
        lines.lines().filter(|line| line.starts_with(char::is_numeric)).map(str::to_owned).collect()
    }

    /// The parts that are kept, and when they were made.
    fn parts(&self) -> Vec<(PathBuf, std::time::SystemTime)> {
        let Ok(dirs) = fs::read_dir(self.tokens()) else { return Vec::new() };
        let files = dirs.flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap());
        let files = files.map(|file| file.unwrap());
        let parts = files.filter(|file| file.path().extension().is_some());
        let mut parts: Vec<_> =
            parts.map(|part| (part.path(), part.metadata().unwrap().modified().unwrap())).collect();
        parts.sort();
        parts
    }

    fn tokens(&self) -> PathBuf {
        self.0.path().join("caches/dsr/tokens")
    }
}

fn remove(dir: &Path) {
    let _ = fs::remove_dir_all(dir);
}

#[test]
fn a_run_over_kept_tokens_is_the_same_to_the_bit() {
    for world_size in [1, 2] {
        let home = Home::new();
        let whole = home.losses(world_size, &["-p", "steps=8", "-p", "is_kept=false"]);
        assert_eq!(whole.len(), 8);
        assert!(home.parts().is_empty(), "load_from_cache_file: false keeps nothing");

        let first = home.losses(world_size, &["-p", "steps=4"]);
        let parts = home.parts();
        assert_eq!(parts.len(), 4, "rows and the end of two datasets: {parts:?}");
        assert_eq!(first, whole[..4]);

        let go_on = ["-p", "steps=8", "-p", "go_on=true"];
        assert_eq!(home.losses(world_size, &go_on), whole[4..]);
        assert_eq!(home.parts(), parts, "the second run makes no tokens");
        remove(&home.tokens());
        assert_eq!(home.losses(world_size, &go_on), whole[4..], "without what was kept");
    }
}

#[test]
fn other_text_and_other_options_have_tokens_of_their_own() {
    let home = Home::new();
    let count = |options: &str| {
        let recipe = format!(
            "let ds = dataset(\"a.jsonl\").select([\"prompt\"]).tokenize(tokenizer(\"dsr:gpt2\"), \
             #{{ field: \"prompt\", {options} }});\nlet n = 0;\nfor row in ds {{ n += row.input_ids.len; }}\nprint(n);"
        );
        home.write("count.rhai", &recipe);
        let printed = out(&home.run(1, &["run", "count.rhai"])[0]);
        printed.lines().last().unwrap().parse::<usize>().unwrap()
    };
    let tokens = count("");
    assert_eq!(count(""), tokens);
    assert_eq!(home.parts().len(), 2);
    assert_eq!(count("append_eos: true"), tokens + 300);
    assert_eq!(home.parts().len(), 4);
    home.write("a.jsonl", "{\"prompt\": \"one two three\"}\n");
    assert_eq!(count(""), 3);
}

/// Text that a function of the recipe makes may be another each time.
#[test]
fn rows_of_a_function_are_not_kept() {
    let home = Home::new();
    let recipe = r#"
let made = dataset("a.jsonl").map(|row| #{ text: row.prompt });
print(made.tokenize(tokenizer("dsr:gpt2"))[0].input_ids.len);
"#;
    home.write("made.rhai", recipe);
    let printed = out(&home.run(1, &["run", "made.rhai"])[0]);
    assert_eq!(printed.trim(), "4");
    assert!(home.parts().is_empty());
}
