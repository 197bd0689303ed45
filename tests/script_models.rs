//! Models and losses that a recipe writes itself, trained by the engine.

use std::fs;

use super::{
    recipes::{dsr, out, two_ranks},
    support::recipe::Recipe,
};

/// A model of four layers over 11 tokens; its values depend on the seed before.
const MODEL: &str = r#"
fn made() {
    #{
        vocab_size: 11,
        n_positions: 8,
        layers: [
            #{ name: "wte", params: #{ weight: randn([11, 8]) * 0.5 },
               forward: |p, ids| nn::embedding(ids, p.weight) },
            #{ params: #{ weight: randn([16, 8]) * 0.3, bias: zeros([16]) },
               forward: |p, x| nn::gelu(nn::linear(x, p.weight, p.bias)) },
            #{ params: #{ weight: randn([8, 16]) * 0.3 },
               forward: |p, x| nn::linear(x, p.weight) },
            #{ name: "head", params: #{ norm: ones([8]), weight: randn([11, 8]) * 0.5 },
               forward: |p, x| nn::linear(
                   nn::layer_norm(x, [8], #{ weight: p.norm, bias: zeros_like(p.norm) }), p.weight) },
        ],
    }
}
"#;

/// Eight rows of six tokens.
const ROWS: &str = r#"{"input_ids": [1, 2, 3, 4, 5, 6]}
{"input_ids": [2, 4, 6, 8, 10, 1]}
{"input_ids": [3, 3, 3, 1, 1, 1]}
{"input_ids": [10, 9, 8, 7, 6, 5]}
{"input_ids": [1, 3, 5, 7, 9, 0]}
{"input_ids": [0, 1, 0, 1, 0, 1]}
{"input_ids": [4, 4, 2, 2, 9, 9]}
{"input_ids": [7, 1, 7, 2, 7, 3]}
"#;

fn recipe(text: &str) -> Recipe {
    let recipe = Recipe::new(&format!("{MODEL}{text}"));
    recipe.file("rows.jsonl", ROWS);
    recipe
}

/// What stands behind a name in the lines of a recipe.
fn numbers(lines: &[String], name: &str) -> Vec<f64> {
    let of = |line: &String| line.strip_prefix(name)?.trim().parse().ok();
    lines.iter().filter_map(of).collect()
}

/// The engine's walk over the layers gives the losses of autograd over the whole graph and the same
/// AdamW by hand: 1e-5 relative, as float32 sums in another order.
#[test]
fn an_own_model_trains_as_its_loop_by_hand_does() {
    let lines = recipe(
        r#"
manual_seed(3);
let spec = made();
let model = nn::sequential(spec);
print(model.num_params);
let engine = init_engine(model, #{
    micro_batch_size: 2, gradient_clipping: 0, optimizer: #{ type: "AdamW", lr: 0.01 },
});

// The same values, as leaves of one graph.
let params = #{};
for (layer, i) in spec.layers {
    for name in layer.params.keys() {
        params[`${i}.${name}`] = layer.params[name].clone().requires_grad_();
    }
}
let adam = optimizer(params, #{ type: "AdamW", lr: 0.01 });
let by_hand = |ids| {
    let x = ids;
    for (layer, i) in spec.layers {
        let own = #{};
        for name in layer.params.keys() { own[name] = params[`${i}.${name}`]; }
        x = layer.forward.call(own, x);
    }
    x
};

for batch in dataset("rows.jsonl").loader(#{ micro_batch_size: 2, epochs: 2 }) {
    let loss = engine.forward(batch);
    engine.backward(loss);
    engine.step();
    print(`engine ${loss.item()}`);
    let logits = by_hand.call(batch.input_ids);
    let loss = nn::cross_entropy(
        logits[.., 0..5].flatten(0, 1), batch.labels[.., 1..6].flatten());
    loss.backward();
    adam.step();
    adam.zero_grad();
    print(`hand ${loss.item()}`);
}
"#,
    )
    .prints();
    assert_eq!(lines[0], (11 * 8 + 16 * 8 + 16 + 8 * 16 + 8 + 11 * 8).to_string());
    let (engine, hand) = (numbers(&lines, "engine"), numbers(&lines, "hand"));
    assert_eq!((engine.len(), hand.len()), (8, 8));
    for (a, b) in engine.iter().zip(&hand) {
        assert!((a / b - 1.0).abs() < 1e-5, "{engine:?} and {hand:?}");
    }
    assert!(engine[7] < engine[0], "{engine:?}");
}

/// The cross-entropy as a function of the recipe is the one that the engine has: 1e-5 relative,
/// whole logits against slices.
#[test]
fn a_loss_of_the_recipe_takes_the_place_of_the_engines() {
    let lines = Recipe::new(
        r#"
let rows = dataset("rows.jsonl");
let cross_entropy = |logits, targets| nn::cross_entropy(logits.flatten(0, 1), targets.flatten());
for tied in [true, false] {
    for own in [false, true] {
        let model = new_model("gpt2", #{
            n_layer: 2, n_head: 2, n_embd: 8, n_positions: 8, vocab_size: 11, resid_pdrop: 0,
            embd_pdrop: 0, attn_pdrop: 0, tie_word_embeddings: tied,
        });
        let options = #{
            micro_batch_size: 2, gradient_accumulation_steps: 2, optimizer: #{ lr: 0.01 },
        };
        if own { options.loss = cross_entropy; }
        let engine = init_engine(model, options);
        for batch in rows.loader(#{ micro_batch_size: 2, epochs: 2 }) {
            engine.backward(engine.forward(batch));
            if engine.step() { print(`${own} ${engine.loss}`); print(`${own} ${engine.grad_norm}`); }
        }
        print(`${own} ${engine.evaluate(rows).loss}`);
    }
}
"#,
    )
    .file("rows.jsonl", ROWS)
    .prints();
    let (engine, own) = (numbers(&lines, "false"), numbers(&lines, "true"));
    assert_eq!((engine.len(), own.len()), (18, 18));
    for (a, b) in engine.iter().zip(&own) {
        assert!((a / b - 1.0).abs() < 1e-5, "{engine:?} and {own:?}");
    }
}

/// A loss that is three times as large has gradients three times as large.
#[test]
fn the_gradient_is_that_of_the_recipes_loss() {
    let lines = recipe(
        r#"
for factor in [1, 3] {
    manual_seed(3);
    let engine = init_engine(nn::sequential(made()), #{
        micro_batch_size: 8, gradient_clipping: 0, optimizer: #{ type: "SGD", lr: 0 },
        loss: |logits, targets| {
            print(`shapes ${logits.shape} ${targets.shape} ${targets[0].to_array()}`);
            nn::cross_entropy(logits.flatten(0, 1), targets.flatten()) * factor
        },
    });
    for batch in dataset("rows.jsonl").loader(#{ micro_batch_size: 8 }) {
        engine.backward(engine.forward(batch));
        engine.step();
        print(`loss ${engine.loss}`);
        print(`norm ${engine.grad_norm}`);
    }
}
"#,
    )
    .prints();
    assert_eq!(lines[0], "shapes [8, 6, 11] [8, 6] [2, 3, 4, 5, 6, -100]");
    for name in ["loss", "norm"] {
        let of = numbers(&lines, name);
        assert!((of[1] / of[0] - 3.0).abs() < 1e-5, "{name} {of:?}");
    }
}

/// Every stage on two ranks, with recomputed layers, has the losses of one rank: 2e-5 relative.
#[test]
fn an_own_model_is_shared_out_among_ranks() {
    let text = format!(
        r#"{MODEL}
param("stage", 0);
param("every", 0);
manual_seed(3);
let loader = dataset("rows.jsonl").loader(#{{ micro_batch_size: 4, epochs: 4 }});
let options = #{{
    micro_batch_size: 4, optimizer: #{{ type: "AdamW", lr: 0.01 }}, zero: #{{ stage: P::stage }},
}};
if P::every > 0 {{ options.activation_checkpointing = #{{ every: P::every }}; }}
let engine = init_engine(nn::sequential(made()), options);
for batch in loader {{
    engine.backward(engine.forward(batch));
    engine.step();
    print(`loss ${{engine.loss}}`);
}}
print(`eval ${{engine.evaluate(dataset("rows.jsonl")).loss}}`);
"#
    );
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("rows.jsonl"), ROWS).unwrap();
    fs::write(dir.path().join("two.rhai"), &text).unwrap();
    let one = text.replace("micro_batch_size: 4", "micro_batch_size: 8");
    fs::write(dir.path().join("one.rhai"), one).unwrap();
    let losses = |text: &str| -> Vec<f64> {
        let lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
        [numbers(&lines, "loss"), numbers(&lines, "eval")].concat()
    };
    let expected = losses(&out(&dsr(dir.path(), &["run", "one.rhai"]).output().unwrap()));
    assert_eq!(expected.len(), 5);
    for (stage, every) in [(0, 0), (1, 1), (2, 0), (3, 1)] {
        let (stage, every) = (format!("stage={stage}"), format!("every={every}"));
        let args = ["run", "two.rhai", "-p", &stage, "-p", &every];
        let found = losses(&out(&two_ranks(dir.path(), &args)[0]));
        assert_eq!(found.len(), 5);
        for (a, b) in expected.iter().zip(&found) {
            assert!((a / b - 1.0).abs() < 2e-5, "{stage}: {expected:?} and {found:?}");
        }
    }
}

/// Ranks that draw their values apart train with those of rank 0, and so stay together.
#[test]
fn all_ranks_start_from_the_values_of_rank_0() {
    let text = format!(
        r#"{MODEL}
manual_seed((timestamp().elapsed * 1e9).to_int());
let drawn = made();
let engine = init_engine(nn::sequential(drawn), #{{ micro_batch_size: 4 }});
let used = engine.model.logits(tensor([[1, 2, 3]])).to_array();
throw `rank ${{engine.rank}}: ${{drawn.layers[0].params.weight[0].to_array()}} | ${{used}}`;
"#
    );
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("apart.rhai"), text).unwrap();
    let ranks = two_ranks(dir.path(), &["run", "apart.rhai"]);
    let said: Vec<_> =
        ranks.iter().map(|rank| String::from_utf8_lossy(&rank.stderr).into_owned()).collect();
    let of = |i: usize| {
        let line = said[i].split_once(&format!("rank {i}: ")).unwrap().1.lines().next().unwrap();
        line.split_once(" | ").map(|(drawn, used)| (drawn.to_owned(), used.to_owned())).unwrap()
    };
    let (first, second) = (of(0), of(1));
    assert_ne!(first.0, second.0);
    assert_eq!(first.1, second.1);
}

/// In bf16, from a checkpoint: the rest of the losses are those of the training that went on.
#[test]
fn an_own_model_goes_on_from_a_checkpoint() {
    let lines = recipe(
        r#"
let options = #{ micro_batch_size: 2, precision: "bf16", optimizer: #{ lr: 0.01 } };
let engine = init_engine(nn::sequential(made()), options);
let loader = dataset("rows.jsonl").loader(#{ micro_batch_size: 2, epochs: 2 });
for batch in loader {
    engine.backward(engine.forward(batch));
    engine.step();
    print(`loss ${engine.loss}`);
    if engine.global_step == 4 { engine.save_checkpoint("kept", #{ loader: loader }); }
}
let again = init_engine(nn::sequential(made()), options);
let loader = dataset("rows.jsonl").loader(#{ micro_batch_size: 2, epochs: 2 });
again.load_checkpoint("kept", #{ loader: loader });
for batch in loader {
    again.backward(again.forward(batch));
    again.step();
    print(`again ${again.loss}`);
}
print(again.model.config);
print(again.model);
try { again.model.export_hf("hf"); } catch (e) { print(e.message); }
"#,
    )
    .prints();
    let (all, again) = (numbers(&lines, "loss"), numbers(&lines, "again"));
    assert_eq!(all.len(), 8);
    assert_eq!(all[4..], again[..]);
    assert_eq!(
        lines[12..],
        [
            r#"#{"layers": ["wte", "1", "2", "head"], "model_type": "dsr_custom", "n_positions": 8, "vocab_size": 11}"#,
            "Model of a recipe, 0.0M parameters (layers wte, 1, 2, head; 8 positions, vocabulary 11)",
            "transformers has no model with layers of your own",
        ]
    );
}

/// `context.training` is true while the engine trains, and false in an evaluation.
#[test]
fn a_layer_knows_whether_it_is_trained() {
    let lines = recipe(
        r#"
let spec = made();
let linear = spec.layers[1].forward;
spec.layers[1].forward = |p, x, context| {
    print(`training ${context.training}, mask ${context.attn_mask}`);
    linear.call(p, x)
};
let model = nn::sequential(spec);
let engine = init_engine(model, #{ micro_batch_size: 8 });
let rows = dataset("rows.jsonl");
for batch in rows.loader(#{ micro_batch_size: 8 }) { engine.forward(batch); }
engine.evaluate(rows);
model.logits(tensor([[1, 2]]));
"#,
    )
    .prints();
    assert_eq!(lines, ["training true, mask ", "training false, mask ", "training false, mask "]);
}

/// What is wrong with a model or a loss, and the error: its message and first hint.
const MISTAKES: &[(&str, &str, &str)] = &[
    (
        "nn::sequential(#{ vocab_size: 11, layers: [1], n_position: 8 });",
        "`n_positions` is required and missing; `layers[0]` must be a map, found 1; `sequential` has \
         no option `n_position`",
        "",
    ),
    (
        "let spec = made(); spec.layers[1].forward = |x| x; nn::sequential(spec);",
        "the function must be |params, x| or |params, x, context|, found one of 1 arguments",
        "",
    ),
    (
        "let spec = made(); spec.layers[1].params.bias = 1; nn::sequential(spec);",
        "`layers[1].params.bias` must be a tensor, found 1",
        "",
    ),
    (
        "let spec = made(); spec.layers[1].params.bias = tensor([1]); nn::sequential(spec);",
        "`layers[1].params.bias` needs floating-point values, found int64",
        "convert them: t.to(\"float32\")",
    ),
    (
        "let spec = made(); spec.layers[1].params = #{}; nn::sequential(spec);",
        "the layer \"1\" has no parameter",
        "let the layer before or after it compute what it does",
    ),
    (
        "let spec = made(); spec.layers[1].name = \"wte\"; nn::sequential(spec);",
        "two layers of the model are called \"wte\"",
        "",
    ),
    (
        "let spec = made(); let w = randn([8, 8], #{ requires_grad: true });
         spec.layers[1].forward = |p, x| nn::linear(x, w); nn::sequential(spec);",
        "the function of a layer uses a tensor with requires_grad from outside, which would not be \
         trained",
        "give it in `params`, or as `t.detach()` where it is to stay as it is",
    ),
    (
        "let spec = made(); spec.layers[1].forward = |p, x| 1; train(spec, #{});",
        "layer \"1\" of the model must give a tensor of floating point numbers, found 1",
        "",
    ),
    (
        "let spec = made(); spec.vocab_size = 12; train(spec, #{});",
        "layer \"head\" of the model must give logits of the shape [batch, tokens, 12], found \
         float32 [8, 6, 11]",
        "",
    ),
    (
        "let spec = made(); spec.layers[1].forward = |p, x| zeros([8, 6, 16]); train(spec, #{});",
        "what layer \"1\" of the model gives does not depend on its parameters",
        "compute it from the parameters that the layer is given, outside of no_grad",
    ),
    ("train(made(), #{ loss: 1 });", "`loss` must be a function |logits, targets|, found 1", ""),
    (
        "train(made(), #{ loss: |logits| logits.mean() });",
        "the function must be |logits, targets|, found one of 1 arguments",
        "",
    ),
    (
        "train(made(), #{ loss: |logits, targets| logits });",
        "the function of `loss` must give a tensor with one floating point number, found float32 \
         [8, 6, 11]",
        "",
    ),
    (
        "train(made(), #{ loss: |logits, targets| tensor(1.0) });",
        "the loss does not depend on the model",
        "it must be computed from the logits, outside of no_grad",
    ),
];

#[test]
fn mistakes_in_models_and_losses_are_told() {
    let mut wrong = Vec::new();
    for (text, message, hint) in MISTAKES {
        let failure = recipe(&format!(
            r#"
fn train(spec, options) {{
    options.micro_batch_size = 8;
    let engine = init_engine(nn::sequential(spec), options);
    for batch in dataset("rows.jsonl").loader(#{{ micro_batch_size: 8 }}) {{
        engine.backward(engine.forward(batch));
    }}
}}
{text}
"#
        ))
        .fails();
        let found: Vec<_> = failure.faults.iter().map(|fault| fault.error.message()).collect();
        let first = failure.faults[0].error.hints().first().map_or("", String::as_str);
        if (found.join("; ").as_str(), first) != (*message, *hint) {
            wrong.push(format!("{text}\n    {}\n    {first}", found.join("; ")));
        }
        assert!(failure.faults[0].place.is_some(), "{text}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The recipe with a model of its own runs, on two ranks at stage 3 too, and learns.
#[test]
fn the_recipe_with_its_own_model_learns() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["run", "own_model", "-p", "steps=6", "-p", "layers=1", "-p", "heads=1"];
    let said = out(&dsr(dir.path(), &args).output().unwrap());
    let losses: Vec<f64> =
        said.lines().filter_map(|line| line.rsplit_once("loss ")?.1.trim().parse().ok()).collect();
    assert_eq!(losses.len(), 6, "{said}");
    assert!(losses[5] < losses[0], "{losses:?}");
    assert!(said.contains("It is a truth"), "{said}");
}

/// A plan of a recipe with its own loss counts the logits that the loss gets: within 3 % of what is
/// then used.
#[test]
fn a_plan_knows_the_memory_of_an_own_loss() {
    let text = r#"
let rows = dataset("dsr:austen").tokenize(tokenizer("dsr:gpt2")).pack(64);
let model = new_model("gpt2", #{ n_layer: 1, n_head: 1, n_embd: 32, n_positions: 64 });
let engine = init_engine(model, #{
    micro_batch_size: 4,
    loss: |logits, targets| nn::cross_entropy(logits.flatten(0, 1), targets.flatten()),
});
for batch in rows.loader(#{ micro_batch_size: 4 }) {
    engine.backward(engine.forward(batch));
    engine.step();
    print(engine.memory().buffers);
    break;
}
"#;
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("loss.rhai"), text).unwrap();
    let said = |args: &[&str]| out(&dsr(dir.path(), args).output().unwrap());
    let used: f64 = said(&["run", "loss.rhai"]).trim().parse().unwrap();
    let plan = said(&["plan", "loss.rhai"]);
    let line = plan.lines().find_map(|line| line.trim().strip_prefix("buffers")).unwrap();
    let planned: f64 = line.trim().strip_suffix(" MiB").unwrap().parse().unwrap();
    assert!((planned * 1048576.0 / used - 1.0).abs() < 0.03, "{used} bytes and {planned} MiB");
}

/// What a recipe's own layers will need is measured on small batches: the plan is within 3 % of what is
/// then used, and the profiler counts their products.
#[test]
fn a_plan_measures_the_layers_of_a_recipe() {
    let text = r#"
let rows = dataset("dsr:austen").tokenize(tokenizer("dsr:gpt2")).pack(96);
fn mlp(p, x) { x + nn::linear(nn::gelu(nn::linear(x, p.up)), p.down) }
fn attend(p, x) {
    let q = nn::linear(x, p.q).view([x.shape[0], x.shape[1], 4, -1]).transpose(1, 2);
    let y = nn::scaled_dot_product_attention(q, q, q, #{ is_causal: true });
    mlp(p, x + y.transpose(1, 2).reshape(x.shape))
}
let weight = |rows, columns| randn([rows, columns]) * 0.05;
let params = || #{ q: weight.call(64, 64), up: weight.call(256, 64), down: weight.call(64, 256) };
let block = || #{ params: params.call(), forward: attend };
let model = nn::sequential(#{
    vocab_size: 50257, n_positions: 96, layers: [
        #{ params: #{ weight: weight.call(50257, 64) }, forward: |p, ids| nn::embedding(ids, p.weight) },
        block.call(), block.call(),
        #{ params: #{ weight: weight.call(50257, 64) }, forward: |p, x| nn::linear(x, p.weight) },
    ],
});
let engine = init_engine(model, #{
    micro_batch_size: 4,
    flops_profiler: #{ enabled: true, output_file: "profile.txt" },
});
for batch in rows.take(8).loader(#{ micro_batch_size: 4 }) {
    engine.backward(engine.forward(batch));
    engine.step();
}
print(engine.memory().peak);
"#;
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("own.rhai"), text).unwrap();
    let said = |args: &[&str]| out(&dsr(dir.path(), args).output().unwrap());
    let used: f64 = said(&["run", "own.rhai"]).trim().parse().unwrap();
    let plan = said(&["plan", "own.rhai"]);
    let line = plan.lines().find_map(|line| line.trim().strip_prefix("all ")).unwrap();
    let planned: f64 = line.trim().strip_suffix(" MiB").unwrap().parse().unwrap();
    assert!((planned * 1048576.0 / used - 1.0).abs() < 0.03, "{used} bytes and {planned} MiB");
    let profile = fs::read_to_string(dir.path().join("profile.txt")).unwrap();
    // A projection and two products of the MLP, and all pairs of tokens twice.
    let macs = 384.0 * (64.0 * 64.0 + 2.0 * 64.0 * 256.0 + 2.0 * 96.0 * 64.0) / 1e6;
    assert!(profile.contains(&format!("{macs:.2} MMACs")), "{macs:.2}: {profile}");
}
