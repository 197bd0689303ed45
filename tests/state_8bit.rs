//! State in 8 bits, between numbers of ranks.

use std::fs;

use crate::support::{
    program::{out, two_ranks},
    tiny_run::Folder,
};

/// A recipe that trains with state in 8 bits and saves, or loads and saves again.
const EIGHT_BIT: &str = r#"
param("stages", 1, "the stages of a pipeline");
param("stage", 0, "the stage of ZeRO");
param("from", "", "the checkpoint to go on from");
param("to", "", "where checkpoints are saved");
let model = new_model("gpt2", #{ vocab_size: 8, n_positions: 4, n_embd: 64, n_layer: 2, n_head: 2 });
let engine = init_engine(model, #{
    train_batch_size: 2,
    micro_batch_size: 1,
    optimizer: #{ type: "AdamW8bit", lr: 1e-3 },
    pipeline: #{ stages: P::stages },
    zero: #{ stage: P::stage },
});
if P::from == "" {
    let loader = dataset("rows.jsonl").loader(#{ micro_batch_size: 1, endless: true });
    for i in 0..3 { engine.train_batch(loader); }
} else {
    engine.load_checkpoint(P::from);
}
engine.save_checkpoint(P::to);
"#;

/// The codes and scales of a checkpoint are the same bytes after other numbers of ranks, other stages of
/// ZeRO and of a pipeline have loaded and saved it.
#[test]
fn state_in_8_bits_goes_from_any_ranks_to_any_others_as_it_is() {
    let folder = Folder::new(EIGHT_BIT);
    let state =
        |of: &str| fs::read(folder.path(of).join("step-00000003/optimizer.safetensors")).unwrap();
    let on_two = |args: &[&str]| {
        let all = [&["run", "tiny.rhai"], args].concat();
        for output in two_ranks(folder.0.path(), &all) {
            out(&output);
        }
    };
    on_two(&["-p", "stage=2", "-p", "to=two"]);
    out(&folder.dsr(&["run", "tiny.rhai", "-p", "from=two", "-p", "to=one"]));
    on_two(&["-p", "stages=2", "-p", "from=one", "-p", "to=staged"]);
    on_two(&["-p", "stage=3", "-p", "from=staged", "-p", "to=sharded"]);
    for of in ["one", "staged", "sharded"] {
        assert_eq!(state("two"), state(of), "{of}");
    }
}
