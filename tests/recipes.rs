//! The recipes and the program around them, run as a user runs them.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::Value;

use crate::support::{
    files::{golden, repository},
    program::{dsr, out, text, two_ranks},
};

fn recipe(name: &str) -> String {
    repository().join("recipes").join(name).display().to_string()
}

fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Step and loss of each training step that a run wrote down.
fn losses(run: &Path) -> Vec<(u64, f64)> {
    let step = |value: &Value| Some((value["step"].as_u64()?, value["loss"].as_f64()?));
    metrics(run).iter().filter_map(step).collect()
}

/// The recipe of the golden values, as it stands in their folder, prints PyTorch's losses (2e-5
/// relative) and gradient norms (2e-4): float32 with other kernels.
#[test]
fn the_golden_recipe_prints_pytorchs_losses() {
    let dir = tempfile::tempdir().unwrap();
    let model = format!("model={}", golden("gpt2-tiny-v512").display());
    let data = format!("data={}", golden("tokens-v512.parquet").display());
    let script = golden("gpt2_golden.rhai").display().to_string();
    let output = dsr(dir.path(), &["run", &script, "-p", &model, "-p", &data]).output().unwrap();
    let expected: Value =
        serde_json::from_str(&fs::read_to_string(golden("gpt2-tiny-v512.fp32.json")).unwrap())
            .unwrap();
    let lines: Vec<Value> =
        out(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 30);
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(line["step"], i as u64 + 1);
        for (key, series, tolerance) in
            [("loss", "losses", 2e-5), ("grad_norm", "grad_norms", 2e-4)]
        {
            let expected = expected[series][i].as_f64().unwrap();
            let relative = (line[key].as_f64().unwrap() / expected - 1.0).abs();
            assert!(relative <= tolerance, "step {}: {key} is off by {relative:.1e}", i + 1);
        }
    }
}

/// `make run`: the defaults with half of the steps, offline. The perplexity falls from that of a
/// uniform guess over the vocabulary (about 50,000) to less than a hundredth, and the sample is made
/// of words.
#[test]
fn the_default_recipe_learns_to_write_words() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = recipe("gpt2_wikitext.rhai");
    let half = ["steps=200", "eval_every=100", "save_every=100"].map(|given| ["-p", given]);
    let args = [&["run", &recipe, "-p", "export_dir=exported"], half.as_flattened()].concat();
    let output = dsr(dir.path(), &args).env("HF_HUB_OFFLINE", "1").output().unwrap();
    let printed = out(&output);
    let perplexity = |begins: &str| {
        let line = printed.lines().find(|line| line.starts_with(begins)).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let (before, after) = (perplexity("before training"), perplexity("after training"));
    assert!(before > 40_000.0 && after < before / 100.0, "{before} to {after}");

    let sample = &printed[printed.find("It is a truth").unwrap()..];
    let words: Vec<&str> = sample.split(|c: char| !c.is_alphabetic()).collect();
    let common = words.iter().filter(|word| COMMON_WORDS.contains(&&*word.to_lowercase())).count();
    assert!(words.len() > 40 && common * 4 > words.len(), "{common} of {}: {sample}", words.len());

    let run = dir.path().join("runs/gpt2_wikitext");
    let steps = losses(&run);
    assert_eq!(steps.last().unwrap().0 as usize, steps.len());
    for file in ["recipe.rhai", "params.json", "command.txt", "loss.svg", "checkpoints/latest"] {
        assert!(run.join(file).exists(), "{file}");
    }
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        assert!(dir.path().join("exported").join(file).exists(), "{file}");
    }
    let progress = text(&output.stderr);
    for part in ["step 1/", "loss", "lr", "|g|", "tok/s", "FLOP/s", "MiB", "left"] {
        assert!(progress.contains(part), "{part}: {progress}");
    }
}

/// Words of which every English text is full.
const COMMON_WORDS: &[&str] = &[
    "the", "to", "and", "of", "a", "i", "her", "was", "it", "in", "she", "not", "be", "that", "he",
    "had", "as", "you", "for", "have", "is", "with", "his", "but", "my", "at", "all", "so", "him",
    "on", "very", "been", "by", "could", "would", "they", "no", "were", "from", "what", "which",
];

#[test]
fn the_loop_recipe_runs_and_saves() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["run", &recipe("gpt2_loop.rhai"), "-p", "steps=3", "-p", "checkpoints=saved"];
    let printed = out(&dsr(dir.path(), &args).output().unwrap());
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 4, "{printed}");
    assert!(lines[0].starts_with("step 1  grad_norm "), "{printed}");
    assert!(lines[3].ends_with("saved/step-00000003"), "{printed}");
}

#[test]
fn the_llama_recipe_trains_other_shapes_and_exports() {
    let dir = tempfile::tempdir().unwrap();
    let shape = ["hidden_size=32", "intermediate_size=64", "num_hidden_layers=1"];
    let few = ["steps=4", "eval_every=2", "eval_rows=4", "seq_len=32", "export_dir=exported"];
    let file = recipe("llama_pretrain.rhai");
    let mut args = vec!["run", &file];
    shape.iter().chain(&few).for_each(|param| args.extend(["-p", param]));
    let printed = out(&dsr(dir.path(), &args).output().unwrap());
    for words in ["Model llama", "step 4: It is a truth", "best validation loss 10."] {
        assert!(printed.contains(words), "no `{words}` in:\n{printed}");
    }
    let config = fs::read_to_string(dir.path().join("exported/config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["num_key_value_heads"], 2);
    assert_eq!(config["eos_token_id"], 50256);
}

#[test]
fn the_recipe_of_long_rows_tells_its_layout_and_trains() {
    let dir = tempfile::tempdir().unwrap();
    let file = recipe("long_context.rhai");
    let shape = ["hidden_size=32", "intermediate_size=64", "num_hidden_layers=1", "seq_len=256"];
    let few =
        ["steps=4", "eval_every=2", "eval_rows=2", "warmup_steps=1", "block=16", "local_blocks=2"];
    for mode in ["mode=fixed", "mode=bslongformer"] {
        let mut args = vec!["run", &file, "-p", mode];
        shape.iter().chain(&few).for_each(|param| args.extend(["-p", param]));
        let printed = out(&dsr(dir.path(), &args).output().unwrap());
        for words in ["Model llama", "best validation loss 10."] {
            assert!(printed.contains(words), "no `{words}` in:\n{printed}");
        }
        args[0] = "plan";
        let planned = out(&dsr(dir.path(), &args).output().unwrap());
        assert!(planned.contains("at 256 tokens"), "{planned}");
    }
}

/// The recipe of pairs, on its own and then from its export on a file with other columns.
#[test]
fn the_t5_recipe_trains_and_goes_on_with_pairs_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = recipe("t5_summarize.rhai");
    let few = ["-p", "eval_every=2", "-p", "eval_rows=4", "-p", "warmup_steps=1"];
    let mut args = vec!["run", &file, "-p", "steps=4", "-p", "answers=1", "-p", "export_dir=t5"];
    args.extend(few);
    let printed = out(&dsr(dir.path(), &args).output().unwrap());
    for words in ["Model t5", "summarize: It was ", "  answer:    ", "  reference: "] {
        assert!(printed.contains(words), "no `{words}` in:\n{printed}");
    }

    let pair = r#"{"article": "The council met.", "headline": "Council meets"}"#;
    fs::write(dir.path().join("news.jsonl"), format!("{pair}\n").repeat(40)).unwrap();
    let mut args = vec!["run", &file, "-p", "model=./t5", "-p", "tokenizer=./t5", "-p", "steps=2"];
    args.extend(["-p", "data=news.jsonl", "-p", "field=article", "-p", "target=headline"]);
    args.extend(["-p", "micro_batch_size=4"]);
    args.extend(few);
    let printed = out(&dsr(dir.path(), &args).output().unwrap());
    assert!(printed.contains("  reference: Council meets"), "{printed}");
}

/// Conversations and preferences, each on its own; adapters and the merged model are loaded again.
#[test]
fn the_recipes_of_adapters_train_and_export() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, more: &[&str]| {
        let file = recipe(name);
        let mut args = vec!["run", &file, "-p", "warmup_steps=1", "-p", "eval_rows=8"];
        args.extend(more);
        out(&dsr(dir.path(), &args).output().unwrap())
    };
    let few = [
        "-p",
        "steps=4",
        "-p",
        "eval_every=2",
        "-p",
        "adapter_dir=chat",
        "-p",
        "export_dir=merged",
    ];
    let printed = run("lora_chat.rhai", &few);
    for words in ["Model llama", "[[", "best validation loss 10."] {
        assert!(printed.contains(words), "no `{words}` in:\n{printed}");
    }
    let preferences = ["-p", "model=./merged", "-p", "steps=3", "-p", "adapter_dir=preferring"];
    let printed = run("dpo.rhai", &preferences);
    for words in ["step 3  accuracy ", "validation loss 0.", ", margin 0.", ", accuracy "] {
        assert!(printed.contains(words), "no `{words}` in:\n{printed}");
    }
    let few = ["-p", "steps=4", "-p", "eval_every=2", "-p", "r=4", "-p", "adapter_dir=quantized"];
    let printed = run("qlora.rhai", &few);
    for words in ["tied head, nf4, double_quant)", "[[", "best validation loss 10."] {
        assert!(printed.contains(words), "no `{words}` in:\n{printed}");
    }
    for adapter in ["chat", "preferring", "quantized"] {
        let config =
            fs::read_to_string(dir.path().join(adapter).join("adapter_config.json")).unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&config).unwrap()["peft_type"],
            "LORA",
            "{adapter}"
        );
    }
}

/// A run on a tiny model, whose steps take milliseconds.
const TINY: &str = r#"
param("steps", 12, "optimizer steps");
param("lr", 1e-3, "learning rate");
param("dropout", 0.1, "dropout");
param("pause", 0.0, "seconds between steps");
let rows = dataset("rows.jsonl").shuffle(#{ seed: 3 });
let model = new_model("gpt2", #{
    vocab_size: 64, n_positions: 16, n_embd: 16, n_layer: 2, n_head: 2, seed: 1,
    embd_pdrop: P::dropout, attn_pdrop: P::dropout, resid_pdrop: P::dropout,
});
let engine = init_engine(model, #{
    micro_batch_size: 2,
    gradient_accumulation_steps: 2,
    optimizer: #{ type: "AdamW", lr: P::lr },
    scheduler: #{ type: "linear", total_num_steps: 200, warmup_num_steps: 4 },
});
let loader = rows.loader(#{ micro_batch_size: 2, endless: true });
let run = start_run(engine, loader, #{ total_steps: P::steps, save_every: 2 });
for batch in run {
    engine.backward(engine.forward(batch));
    if engine.step() {
        run.after_step();
        print(`step ${engine.global_step}`);
        if P::pause > 0.0 { sleep(P::pause); }
    }
}
run.finish();
"#;

struct Tiny(tempfile::TempDir);

impl Tiny {
    fn new() -> Self {
        let tiny = Self(tempfile::tempdir().unwrap());
        fs::write(tiny.path("tiny.rhai"), TINY).unwrap();
        let row = |i: usize| {
            let ids: Vec<_> = (0..16).map(|t| ((i * 7 + t * t) % 64).to_string()).collect();
            format!("{{\"input_ids\": [{}]}}\n", ids.join(", "))
        };
        fs::write(tiny.path("rows.jsonl"), (0..20).map(row).collect::<String>()).unwrap();
        tiny
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        dsr(self.0.path(), &[&["run", "tiny.rhai"], args].concat()).output().unwrap()
    }

    /// Starts a run, waits until it has printed `lines` lines, and hands it over.
    fn until(&self, args: &[&str], lines: usize) -> std::process::Child {
        let mut child = dsr(self.0.path(), &[&["run", "tiny.rhai"], args].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        for _ in 0..lines {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            assert!(line.starts_with("step"), "{line}");
        }
        // Kept open: a closed pipe would be an error of its own.
        std::thread::spawn(move || stdout.lines().for_each(drop));
        child
    }
}

fn signal(child: &std::process::Child, name: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
}

#[test]
fn ctrl_c_finishes_the_step_saves_and_says_how_to_go_on() {
    let tiny = Tiny::new();
    out(&tiny.run(&["--name", "whole"]));

    let child = tiny.until(&["--name", "cut", "-p", "pause=0.05"], 3);
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{error}");
    let stopped = losses(&tiny.path("runs/cut")).len();
    assert!((3..12).contains(&stopped));
    let saved = format!("stopped after step {stopped}; the checkpoint of step {stopped} is saved");
    assert!(error.contains(&saved), "{error}");
    let how = "run tiny.rhai --name cut -p pause=0.05 --resume auto";
    assert!(error.contains(how), "{error}");

    out(&tiny.run(&["--name", "cut", "--resume", "auto"]));
    assert_eq!(losses(&tiny.path("runs/cut")), losses(&tiny.path("runs/whole")));
}

#[test]
fn a_kill_at_any_instant_leaves_a_checkpoint_to_go_on_from() {
    let tiny = Tiny::new();
    out(&tiny.run(&["--name", "whole"]));
    for (i, delay_ms) in [0, 7, 19, 31, 53].into_iter().enumerate() {
        let name = format!("killed{i}");
        let mut child = tiny.until(&["--name", &name], 2);
        std::thread::sleep(Duration::from_millis(delay_ms));
        // It may have ended already.
        let _ = child.kill();
        child.wait().unwrap();
        out(&tiny.run(&["--name", &name, "--resume", "auto"]));
        let run = tiny.path("runs").join(&name);
        assert_eq!(losses(&run), losses(&tiny.path("runs/whole")), "killed after {delay_ms} ms");
    }
}

/// What a recipe does behind its last step may be killed too.
#[test]
fn a_run_at_its_last_step_is_ended_again() {
    let tiny = Tiny::new();
    out(&tiny.run(&["--name", "whole"]));
    let before = losses(&tiny.path("runs/whole"));
    let again = tiny.run(&["--name", "whole", "--resume", "auto"]);
    assert!(!out(&again).contains("step"), "{again:?}");
    for line in ["is at step 12 already, its last", "done: runs/whole"] {
        assert!(text(&again.stderr).contains(line), "{again:?}");
    }
    assert_eq!(losses(&tiny.path("runs/whole")), before);
    let fewer = tiny.run(&["--name", "whole", "--resume", "auto", "-p", "steps=10"]);
    assert!(text(&fewer.stderr).contains("total_steps is 10"), "{fewer:?}");
}

/// The branch has the steps up to the checkpoint as they were, and then its own, which are the same.
#[test]
fn resuming_from_an_earlier_checkpoint_branches_off() {
    let tiny = Tiny::new();
    out(&tiny.run(&[]));
    let earlier = "runs/tiny/checkpoints/step-00000010";
    let before = fs::read_to_string(tiny.path("runs/tiny/metrics.jsonl")).unwrap();
    out(&tiny.run(&["--resume", earlier]));
    assert_eq!(fs::read_to_string(tiny.path("runs/tiny/metrics.jsonl")).unwrap(), before);
    let branch = losses(&tiny.path("runs/tiny-2"));
    assert_eq!(branch, losses(&tiny.path("runs/tiny")));
}

/// Data that is too short is an error before the run where its length is known, and one that keeps
/// what was trained where it is not.
#[test]
fn data_that_ends_too_early_is_an_error() {
    let tiny = Tiny::new();
    let once = TINY.replace("endless: true", "epochs: 2");
    fs::write(tiny.path("tiny.rhai"), &once).unwrap();
    let output = tiny.run(&[]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    let message = "12 steps of 2 micro batches need 24, and the loader has 20 left";
    assert!(error.starts_with(&format!("error[E103]: {message}")), "{error}");
    assert!(error.contains("[ tiny.rhai:18:53 ]"), "{error}");
    assert!(!tiny.path("runs").exists());

    let unknown = once.replace(".shuffle(#{ seed: 3 })", ".filter(|row| true)");
    fs::write(tiny.path("tiny.rhai"), unknown).unwrap();
    let output = tiny.run(&[]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{error}");
    let message = "error[E601]: the data ended after step 10 of 12, whose checkpoint is saved";
    assert!(error.starts_with("a new run in runs/tiny\n"), "{error}");
    assert!(error.contains(message), "{error}");
    assert!(tiny.path("runs/tiny/checkpoints/step-00000010").exists());
}

#[test]
fn resuming_a_recipe_without_a_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["run", &recipe("gpt2_loop.rhai"), "--resume", "auto"];
    let output = dsr(dir.path(), &args).output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.starts_with("error[E105]: --resume has no meaning for this recipe"), "{error}");
}

#[test]
fn a_damaged_checkpoint_is_an_error_that_names_the_file() {
    let tiny = Tiny::new();
    out(&tiny.run(&["-p", "steps=4"]));
    let file = tiny.path("runs/tiny/checkpoints/step-00000004/model.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let output = tiny.run(&["--resume", "auto"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{error}");
    assert!(error.contains("model.safetensors was altered"), "{error}");
    assert!(error.contains("the previous good checkpoint is runs/tiny/checkpoints/step-00000002"));
    let output = tiny.run(&["--resume", "auto", "--name", "tinny"]);
    assert!(text(&output.stderr).contains("did you mean \"tiny\"?"), "{output:?}");
}

#[test]
fn a_loss_that_diverges_ends_the_run_and_keeps_its_checkpoints() {
    let tiny = Tiny::new();
    let output = tiny.run(&["-p", "lr=1e30"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{error}");
    assert!(error.contains("error[E401]: the loss is"), "{error}");
    assert!(error.contains("tiny.rhai:"), "{error}");
    assert!(error.contains("engine.step()"), "{error}");
}

/// Two processes with torchrun's variables train as one does on the same global batch; sums in
/// another order, hence 1e-5.
#[test]
fn two_ranks_train_as_one() {
    let tiny = Tiny::new();
    let recipe = TINY.replace("gradient_accumulation_steps: 2", "gradient_accumulation_steps: 1");
    out(&tiny.run(&["--name", "one", "-p", "dropout=0"]));
    fs::write(tiny.path("two.rhai"), recipe).unwrap();
    for rank in two_ranks(tiny.0.path(), &["run", "two.rhai", "--name", "two", "-p", "dropout=0"]) {
        out(&rank);
    }
    let (one, two) = (losses(&tiny.path("runs/one")), losses(&tiny.path("runs/two")));
    assert_eq!(one.len(), two.len());
    for ((step, a), (_, b)) in one.iter().zip(&two) {
        assert!((a / b - 1.0).abs() < 1e-5, "step {step}: {a} and {b}");
    }
    assert!(!tiny.path("runs/two-2").exists(), "only one rank writes");
}
