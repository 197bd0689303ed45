//! Meshes that the machines of a launch cannot have.

use std::fs;

use super::Folder;
use crate::support::{
    program::{dsr, text},
    ranks,
};

/// Ranks that share a layer are on one machine, which the launcher sees in a recipe's text and in
/// DeepSpeed's file, and a rank otherwise.
#[test]
fn ranks_that_share_a_layer_are_not_launched_on_two_machines() {
    let recipe = |options: &str| {
        Folder::new(&format!(
            "let model = load_model(\"MODEL\");\nlet sharers = 2;\ninit_engine(model, {options});\n"
        ))
    };
    let written = "#{ micro_batch_size: 1, tensor_parallel: #{ autotp_size: 2 } }";
    let file = recipe("from_deepspeed(\"ds.json\")");
    let settings =
        r#"{ "train_micro_batch_size_per_gpu": 1, "tensor_parallel": { "autotp_size": 2 } }"#;
    fs::write(file.path().join("ds.json"), settings).unwrap();
    let by_hand = ["--nnodes", "2", "--node-rank", "0", "--master-addr", "127.0.0.1"];
    for folder in [&recipe(written), &file] {
        let args = [&by_hand[..], &["--nproc-per-node", "3", "--allow-read=.", "r.rhai"]].concat();
        let output = folder.launch(&args).end();
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{said}");
        assert!(
            said.contains(", 3, is not a multiple of `tensor_parallel.autotp_size` 2"),
            "{said}"
        );
        assert!(said.contains("ranks that share a layer would be on two machines"), "{said}");
        assert!(!said.contains("rank 0"), "no rank was started: {said}");
        let output = folder.launch(&["--nproc-per-node", "3", "--allow-read=.", "r.rhai"]).end();
        let said = text(&output.stderr);
        assert!(said.contains("the number of ranks, 3, is not a multiple"), "{said}");
    }
    let known_to_the_run = recipe(&written.replace(": 2 }", ": sharers }"));
    let ranks = ranks::run(2, || {
        let mut command = dsr(known_to_the_run.path(), &["run", "r.rhai", "--allow-read=."]);
        command.env("LOCAL_WORLD_SIZE", "1");
        command
    });
    for output in ranks {
        let said = text(&output.stderr);
        assert!(said.contains("the number of ranks on this machine, 1, is not"), "{said}");
    }
}
