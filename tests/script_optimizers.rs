//! Optimizers as recipes write them.

use dsr::error::Code;

use crate::support::recipe::{Recipe, places};

/// A recipe that trains a tiny model for two steps with this optimizer and prints the engine.
fn recipe(optimizer: &str) -> Recipe {
    let rows = "{\"input_ids\": [1, 2, 3]}\n".repeat(2);
    let text = format!(
        r#"let model = new_model("gpt2", #{{ vocab_size: 8, n_positions: 4, n_embd: 4, n_layer: 1, n_head: 1 }});
let engine = init_engine(model, #{{
    micro_batch_size: 1,
    optimizer: {optimizer},
}});
for batch in dataset("rows.jsonl").loader(#{{ micro_batch_size: 1 }}) {{
    engine.backward(engine.forward(batch));
    engine.step();
}}
print(engine);
engine.save_checkpoint("checkpoints");
engine.load_checkpoint("checkpoints");
"#
    );
    let recipe = Recipe::new(&text);
    recipe.file("rows.jsonl", &rows);
    recipe
}

#[test]
fn every_type_trains_and_tells_its_name() {
    for (optimizer, name) in [
        (r#"#{ lr: 1e-3 }"#, "AdamW, lr 1e-3"),
        (r#"#{ type: "Adam", lr: 1e-3 }"#, "AdamW, lr 1e-3"),
        (r#"#{ type: "Adam", adam_w_mode: false, lr: 1e-3 }"#, "Adam, lr 1e-3"),
        (r#"#{ type: "Lamb", lr: 1e-3, state_dtype: "bf16" }"#, "Lamb with bf16 state, lr 1e-3"),
        (r#"#{ type: "lion", lr: 1e-4 }"#, "Lion, lr 1e-4"),
        (r#"#{ type: "SGD", lr: 0.1, momentum: 0.9 }"#, "SGD, lr 1e-1"),
        (r#"#{ type: "Adagrad" }"#, "Adagrad, lr 1e-2"),
        (r#"#{ type: "Muon", no_decay: ["*.bias", "*ln_*"] }"#, "Muon, lr 2e-2"),
    ] {
        let lines = recipe(optimizer).prints();
        assert!(lines[0].contains("Engine after step 2"), "{lines:?}");
        assert!(lines[0].ends_with(&format!("{name})")), "{optimizer}: {lines:?}");
    }
}

/// The model decides which names there are: its faults have the places of the patterns.
#[test]
fn groups_that_do_not_fit_the_model_are_shown_at_their_patterns() {
    let failure = recipe(
        r#"#{ no_decay: ["*.bias", "*lnf*"],
        groups: [#{ params: ["*wte*"], weight_decay: 0.1 },
            #{ params: ["*.h.0.*", "*.h.1.*"], lr: 1 },
            #{ params: ["*w?e*"], weight_decay: 0.2 }] }"#,
    )
    .fails();
    assert_eq!(
        places(&failure),
        [
            (Code::BadValue, "recipe.rhai:4:40".to_owned()),
            (Code::BadValue, "recipe.rhai:6:36".to_owned()),
            (Code::BadValue, "recipe.rhai:7:49".to_owned()),
        ]
    );
}

#[test]
fn mistakes_of_an_optimizer_are_shown_together() {
    let failure = recipe(
        r#"#{ type: "SGD", momentum: 1.5, betas: [0.9, 0.99],
        groups: [#{ params: "*.bias", lr: 1 }] }"#,
    )
    .fails();
    assert_eq!(
        places(&failure),
        [
            (Code::BadValue, "recipe.rhai:4:42".to_owned()),
            (Code::WrongType, "recipe.rhai:5:29".to_owned()),
            (Code::UnknownOption, "recipe.rhai:4:47".to_owned()),
        ]
    );
}
