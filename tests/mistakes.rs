//! Mistakes of users in training recipes: each is one clear message with its place, a status, and
//! leaves files as they were.

use std::{fs, path::Path, process::Command};

use crate::support::{
    files::golden,
    program::{DEVICE, dsr, text},
};

/// A recipe whose parts can be wrong.
const RECIPE: &str = r#"param("model", "model");
param("data", "rows.jsonl");
let model = load_model(P::model);
let engine = init_engine(model, #{ micro_batch_size: 2 });
for batch in dataset(P::data).loader(#{ micro_batch_size: 2 }) {
    engine.backward(engine.forward(batch));
    engine.step();
}
"#;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.copy_model("model");
        folder.write("rows.jsonl", "{\"input_ids\": [1, 2, 3]}\n");
        folder.write("r.rhai", RECIPE);
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path().join(name), text).unwrap();
    }

    fn copy_model(&self, name: &str) {
        fs::create_dir(self.path().join(name)).unwrap();
        for file in ["config.json", "model.safetensors"] {
            let from = golden("gpt2-tiny-v512").join(file);
            fs::copy(from, self.path().join(name).join(file)).unwrap();
        }
    }

    fn change_config(&self, model: &str, from: &str, to: &str) {
        let path = self.path().join(model).join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replace(from, to)).unwrap();
    }

    /// Runs `r.rhai`, which must fail with this status, and gives what it says.
    fn fails(&self, args: &[&str], status: i32) -> String {
        let output = dsr(self.path(), &[&["run", "r.rhai"], args].concat()).output().unwrap();
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{error}");
        for word in ["panicked", "Exception raised", "frame #", "RUST_BACKTRACE"] {
            assert!(!error.contains(word), "{error}");
        }
        error
    }
}

/// Says that `error` has the first line and the place in `r.rhai`, and each of the other texts.
fn assert_error(error: &str, first: &str, place: &str, others: &[&str]) {
    assert!(error.starts_with(first), "{error}");
    assert!(error.contains(&format!("[ r.rhai:{place} ]")), "{place}: {error}");
    for other in others {
        assert!(error.contains(other), "{other:?}: {error}");
    }
}

#[test]
fn the_recipe_itself_is_right() {
    let folder = Folder::new();
    let output = dsr(folder.path(), &["run", "r.rhai"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_missing_model_or_data_file() {
    let folder = Folder::new();
    let error = folder.fails(&["-p", "model=./nowhere"], 4);
    assert_error(&error, "error[E802]: the model directory ./nowhere does not exist", "3:13", &[]);
    let error = folder.fails(&["-p", "data=rows.parquet"], 4);
    assert_error(&error, "error[E601]: no file rows.parquet", "5:14", &[]);
}

#[test]
fn a_truncated_weights_file() {
    let folder = Folder::new();
    let path = folder.path().join("model/model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let first = "error[E702]: model/model.safetensors is truncated: its header promises";
    assert_error(&folder.fails(&[], 4), first, "3:13", &["copy or download the file again"]);
}

#[test]
fn a_bad_config() {
    let folder = Folder::new();
    folder.change_config("model", "\"n_head\": 4", "\"n_head\": 3");
    let error = folder.fails(&[], 4);
    assert_error(
        &error,
        "error[E701]: model/config.json: n_embd 128 must be divisible by n_head 3",
        "3:13",
        &[],
    );
    folder.change_config("model", "\"n_layer\"", "\"n_layr\"");
    let error = folder.fails(&[], 4);
    assert!(error.contains("did you mean n_layer?"), "{error}");
    folder.write("model/config.json", "{\"model_type\": \"gpt2\",");
    assert_error(&folder.fails(&[], 4), "error[E701]: model/config.json", "3:13", &[]);
}

#[test]
fn weights_that_do_not_fit_are_listed_together() {
    let folder = Folder::new();
    folder.change_config("model", "\"n_layer\": 4", "\"n_layer\": 5");
    folder.change_config("model", "\"vocab_size\": 512", "\"vocab_size\": 500");
    let error = folder.fails(&[], 4);
    let others = [
        "transformer.h.4.ln_1.weight",
        "transformer.wte.weight is [512, 128], expected [500, 128]",
    ];
    assert_error(&error, "error[E702]: model lacks", "3:13", &others);
}

#[test]
fn a_missing_column() {
    let folder = Folder::new();
    folder.write("rows.jsonl", "{\"body\": \"a\", \"title\": \"b\"}\n");
    let first = "error[E601]: no column \"input_ids\": the columns are body, title";
    assert_error(&folder.fails(&[], 4), first, "5:31", &["call .tokenize(tokenizer"]);
}

#[test]
fn a_token_id_outside_the_vocabulary_and_a_row_that_is_too_long() {
    let folder = Folder::new();
    folder.write("rows.jsonl", "{\"input_ids\": [1, 2, 512]}\n");
    let first =
        "error[E202]: token id 512 is outside the model's vocabulary (512 rows: ids 0..=511)";
    assert_error(&folder.fails(&[], 2), first, "6:28", &["row 0 of epoch 0"]);
    let ids = vec!["1"; 129].join(", ");
    folder.write("rows.jsonl", format!("{{\"input_ids\": [{ids}]}}\n"));
    let first = "error[E201]: 129 tokens are more than the model's 128 positions";
    assert_error(&folder.fails(&[], 2), first, "6:28", &[]);
}

#[test]
fn wrong_options_are_all_shown_where_they_are_written() {
    let folder = Folder::new();
    folder.write(
        "r.rhai",
        r#"let engine = init_engine(load_model("model"), #{
    micro_batch_size: "2",
    gradient_acumulation_steps: 2,
    precision: "int8",
    optimizer: #{ type: "AdamW", lr: -1, wieght_decay: 0.1 },
});
"#,
    );
    let error = folder.fails(&[], 2);
    for (place, says) in [
        (
            "2:23",
            "`micro_batch_size` must be a whole number, 1 or more, or \"auto\", found string \"2\"",
        ),
        ("3:5", "`init_engine` has no option `gradient_acumulation_steps`"),
        (
            "4:16",
            "`precision` must be one of \"fp32\", \"bf16\", \"fp16\", \"auto\", found string \"int8\"",
        ),
        ("5:38", "`optimizer.lr` must be 0 or more, found -1"),
        ("5:42", "`optimizer` has no option `wieght_decay`"),
    ] {
        assert!(error.contains(says), "{says}: {error}");
        assert!(error.contains(&format!("[ r.rhai:{place} ]")), "{place}: {error}");
    }
    assert!(error.contains("did you mean `weight_decay`?"), "{error}");
}

#[test]
fn a_wrong_type_of_argument_and_calls_out_of_order() {
    let folder = Folder::new();
    folder.write("r.rhai", "let engine = init_engine(\"model\", #{ micro_batch_size: 1 });");
    assert_error(&folder.fails(&[], 2), "error[E1", "1:14", &["init_engine"]);
    folder.write(
        "r.rhai",
        "let engine = init_engine(load_model(\"model\"), #{ micro_batch_size: 1 });\nengine.step();",
    );
    let first = "error[E112]: step without a backward before it";
    assert_error(&folder.fails(&[], 2), first, "2:8", &["forward, backward, step"]);
}

#[test]
fn an_export_with_a_tokenizer_that_is_too_large() {
    let folder = Folder::new();
    folder.write(
        "r.rhai",
        "load_model(\"model\").export_hf(\"out\", #{ tokenizer: tokenizer(\"dsr:gpt2\") });",
    );
    let first = "error[E202]: the tokenizer has 50257 tokens, the model's vocabulary 512 rows";
    assert_error(&folder.fails(&[], 2), first, "1:52", &[]);
    assert!(!folder.path().join("out").exists());
}

#[test]
fn a_model_that_cannot_fit_in_memory() {
    let folder = Folder::new();
    let make = "let model = new_model(\"gpt2\", #{ n_layer: 1000, n_embd: 16000, n_head: 10 });";
    for (used, what) in [
        ("init_engine(model, #{ micro_batch_size: 1 });", "training the model"),
        ("generate(model, tokenizer(\"dsr:gpt2\"), \"It\");", "the model"),
    ] {
        folder.write("r.rhai", format!("{make}\n{used}"));
        let error = folder.fails(&[], 5);
        let expected = format!("error[E301]: {what} needs");
        assert_error(&error, &expected, "2:1", &["are available"]);
    }
}

/// Needs the right to mount a small filesystem.
#[test]
fn a_full_disk_leaves_the_checkpoint_that_there_is() {
    let folder = Folder::new();
    let disk = folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    folder.write(
        "r.rhai",
        r#"
let model = new_model("gpt2", #{ vocab_size: 512, n_positions: 8, n_embd: 128, n_layer: 1, n_head: 1 });
let engine = init_engine(model, #{ micro_batch_size: 2 });
for i in 0..2 {
    for batch in dataset("rows.jsonl").loader(#{ micro_batch_size: 2 }) {
        engine.backward(engine.forward(batch));
        engine.step();
    }
    print(engine.save_checkpoint("disk/checkpoints"));
}
"#,
    );
    // A checkpoint of this model takes 3 MiB and is asked to have 4 MiB more.
    let script = format!(
        "mount -t tmpfs -o size=9m tmpfs disk || exit 77\n{} run r.rhai; status=$?\n\
         ls disk/checkpoints; cat disk/checkpoints/latest; exit $status",
        env!("CARGO_BIN_EXE_dsr")
    );
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", &script])
        .env(DEVICE.0, &DEVICE.1)
        .current_dir(folder.path())
        .output();
    let output = match output {
        Ok(output)
            if output.status.code() != Some(77) && !text(&output.stderr).contains("unshare") =>
        {
            output
        }
        _ => return println!("skipped: a filesystem cannot be mounted here"),
    };
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{error}");
    assert!(error.starts_with("error[E302]: a checkpoint needs"), "{error}");
    assert!(error.contains("[ r.rhai:9:18 ]"), "{error}");
    let listed = text(&output.stdout);
    let expected = "disk/checkpoints/step-00000001\nlatest\nstep-00000001\nstep-00000001\n";
    assert_eq!(listed, expected, "{error}");
}
