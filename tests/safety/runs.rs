//! What is left of earlier runs and exports: links that a stranger put there, trust, hidden directories of
//! killed writers.

use dsr::permission::{Capability, Grants, TrustFile};

use super::*;
use crate::support::user::{User, has};

const TRAINING: &str = r#"
    param("steps", 2, "steps");
    let m = new_model("gpt2", #{ vocab_size: 8, n_positions: 8, n_embd: 4, n_layer: 1, n_head: 1 });
    let csv = #{ enabled: true, output_path: "logs", job_name: "j" };
    let e = init_engine(m, #{ micro_batch_size: 2, csv_monitor: csv });
    let l = dataset("rows.jsonl").loader(#{ micro_batch_size: 2, endless: true });
    let run = start_run(e, l, #{ total_steps: P::steps, save_every: 1, name: "r" });
    for b in run {
        e.backward(e.forward(b));
        if e.step() { run.after_step(); print("a line"); run.log_sample("a prompt", "a text"); }
    }
    run.finish();
"#;

/// Whatever file of a run is a link, what it leads to stays as it is, and nothing new is made there.
#[test]
fn a_run_that_is_gone_on_with_is_written_through_no_link() {
    let user = User::new();
    let rows: Vec<String> =
        (0..8).map(|i| format!("{{\"input_ids\": [{}, 1, 2, 3]}}", i % 8)).collect();
    user.file("rows.jsonl", &rows.join("\n"));
    user.file("r.rhai", TRAINING);
    user.says(&["run", "r.rhai"]);
    let victim = user.home.path().join("out/victim");
    write(&victim, "victim");
    let files = [
        "metrics.jsonl",
        "samples.jsonl",
        "output.log",
        "command.txt",
        "recipe.rhai",
        "params.json",
        "loss.svg",
        "lock",
    ];
    let files = files.map(|file| format!("runs/r/{file}"));
    for (i, file) in files.iter().map(String::as_str).chain(["logs/j/Train_loss.csv"]).enumerate() {
        let new = user.home.path().join("out/new");
        for to in [&victim, &new] {
            let link = user.work().join(file);
            let kept = fs::read(&link).unwrap_or_default();
            let _ = fs::remove_file(&link);
            symlink(to, &link).unwrap();
            let steps = format!("steps={}", 3 + i);
            // It may go on beside the link, or be refused.
            let output = user.dsr(&["run", "r.rhai", "--resume", "auto", "-p", &steps]);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!said.contains("panicked"), "{said}");
            assert_eq!(fs::read_to_string(&victim).unwrap(), "victim", "{file}: {said}");
            assert!(!new.exists(), "{file}: {said}");
            if link.is_symlink() {
                fs::remove_file(&link).unwrap();
                fs::write(&link, kept).unwrap();
            }
        }
    }
}

/// An old checkpoint with a file of the user's in it is no checkpoint of ours, and each save comes by it.
#[test]
fn an_old_checkpoint_that_stays_is_named_once() {
    let user = User::new();
    user.file("rows.jsonl", &"{\"input_ids\": [1, 2, 3, 1]}\n".repeat(8));
    user.file("r.rhai", &TRAINING.replace("name: \"r\"", "name: \"r\", keep: 2"));
    user.says(&["run", "r.rhai"]);
    user.file("runs/r/checkpoints/step-00000001/thesis.tex", "mine");
    let output = user.dsr(&["run", "r.rhai", "--resume", "auto", "-p", "steps=6"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert_eq!(said.matches("an old checkpoint is not removed: ").count(), 1, "{said}");
    has(&said, &["step-00000001 stays as it is", "thesis.tex"]);
    assert_eq!(user.read("runs/r/checkpoints/step-00000001/thesis.tex"), "mine");
    let mut left: Vec<_> = fs::read_dir(user.work().join("runs/r/checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("step-"))
        .collect();
    left.sort();
    assert_eq!(left, ["step-00000001", "step-00000005", "step-00000006"]);
}

/// A module whose name is made while the recipe runs is not among the texts that the user trusted.
#[test]
fn trust_is_for_the_texts_that_were_there() {
    let user = User::new();
    let out = user.home.path().join("out");
    write(&out.join("rows.txt"), "row\n");
    let count = format!("dataset(\"{}/rows.txt\").count()", out.display());
    user.file("m1.rhai", &format!("fn f() {{ print(\"changed: \" + {count}); }}"));
    user.file(
        "r.rhai",
        &format!("print({count});\nlet name = \"m\" + \"1\";\nimport name as m;\nm::f();"),
    );
    let listed = user.says(&["run", "r.rhai", "--explain-permissions"]);
    let hash = listed.split("sha256 ").nth(1).unwrap().split(')').next().unwrap();
    let file = TrustFile::at(user.home.path().join(".config/dsr/trust.toml"));
    let mut grants = Grants::default();
    grants.add(Capability::Read, out.display().to_string());
    file.trust(hash, "r.rhai", &grants).unwrap();
    let (said, status) = user.error(&["run", "r.rhai"]);
    assert_eq!(status, 3, "{said}");
    has(&said, &["E501", "m1"]);
}

/// The hidden directory of an export that was killed is removed by the next export.
#[test]
fn a_killed_export_leaves_nothing_for_good() {
    let user = User::new();
    user.file(
        "r.rhai",
        "let m = new_model(\"gpt2\", #{ vocab_size: 8, n_positions: 8, n_embd: 4, n_layer: 1, \
         n_head: 1 });\nm.export_hf(\"x\");",
    );
    user.file(".x.dsr-tmp-aBcDeF/model.safetensors", "half of a model");
    user.file(".y.dsr-tmp-aBcDeF/mine", "of something else");
    user.says(&["run", "r.rhai"]);
    assert!(!user.work().join(".x.dsr-tmp-aBcDeF").exists());
    assert_eq!(user.read(".y.dsr-tmp-aBcDeF/mine"), "of something else");
}
