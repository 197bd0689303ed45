//! Models and losses that a recipe writes itself, on several ranks and in plans. What one process
//! shows stands in tests/script/models.

use std::fs;

use crate::support::program::{dsr, out, two_ranks};

/// A model of four layers over 11 tokens; its values depend on the seed before.
fn model() -> &'static str {
    include_str!("script/models/own_layers.rhai").split("//#").next().unwrap()
}

/// Eight rows of six tokens.
const ROWS: &str = include_str!("script/models/rows.jsonl");

/// What stands behind a name in the lines of a recipe.
fn numbers(lines: &[String], name: &str) -> Vec<f64> {
    let of = |line: &String| line.strip_prefix(name)?.trim().parse().ok();
    lines.iter().filter_map(of).collect()
}

/// Every stage on two ranks, with recomputed layers, has the losses of one rank: 2e-5 relative.
#[test]
fn an_own_model_is_shared_out_among_ranks() {
    let text = format!(
        r#"{}
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
"#,
        model()
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
        r#"{}
manual_seed((timestamp().elapsed * 1e9).to_int());
let drawn = made();
let engine = init_engine(nn::sequential(drawn), #{{ micro_batch_size: 4 }});
let used = engine.model.logits(tensor([[1, 2, 3]])).to_array();
throw `rank ${{engine.rank}}: ${{drawn.layers[0].params.weight[0].to_array()}} | ${{used}}`;
"#,
        model()
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

/// At stage 3 a unit's memory goes when its layer has run. Whatever a layer kept of a parameter is then an
/// error, or has the values; nothing reads or writes where nothing is.
#[test]
fn parts_that_a_layer_keeps_are_values_or_errors() {
    const PARTS: [&str; 22] = [
        "p.w",
        "p.w[0..4]",
        "p.w[1..3, 2]",
        "p.w[.., 0]",
        "p.w[5]",
        "p.w[[0, 3]]",
        "p.w[-1]",
        "p.w.transpose(0, 1)",
        "p.w.detach()",
        "p.w.detach()[0..2]",
        "p.w.chunk(2, 0)[1]",
        "p.w.reshape([32, 128])",
        "p.w.unsqueeze(0)",
        "p.w.clone()",
        "p.w.detach().clone()",
        "p.w * 1.0",
        "p.w.to(\"float32\")",
        "p.w.squeeze()",
        "p.w.expand([2, 64, 64])",
        "p.w.narrow(0, 1, 3)",
        "p.w.permute([1, 0])",
        "p.w.split(16, 0)[3]",
    ];
    const USES: [&str; 16] = [
        "t.sum().item()",
        "no_grad(|| { t += 1.0; })",
        "t.clone()",
        "t.to_string()",
        "t[0]",
        "t + t",
        "t.matmul(t)",
        "t.contiguous()",
        "t.to_array()",
        "t.is_finite()",
        "cat([t, t])",
        "t.max()",
        "nn::linear(t, t)",
        "no_grad(|| { t.fill_(3.0) })",
        "(t * 2.0).sum().backward()",
        "t == t",
    ];
    let keep: String = PARTS
        .iter()
        .map(|part| format!("    try {{ kept.list.push({part}); }} catch {{ }}\n"))
        .collect();
    let uses: String = USES
        .iter()
        .map(|used| {
            format!("    try {{ let y = {used}; done += 1; }} catch (e) {{ wrong += 1; }}\n")
        })
        .collect();
    let text = format!(
        r#"
let kept = #{{ list: [] }};
let mid = |p, x| {{
    kept.list.clear();
{keep}    nn::linear(x, p.w)
}};
let model = nn::sequential(#{{ vocab_size: 100, n_positions: 32, layers: [
    #{{ params: #{{ weight: randn([100, 64]) * 0.02 }}, forward: |p, ids| nn::embedding(ids, p.weight) }},
    #{{ params: #{{ w: randn([64, 64]) * 0.02 }}, forward: mid }},
    #{{ params: #{{ weight: randn([100, 64]) * 0.02 }}, forward: |p, x| nn::linear(x, p.weight) }},
] }});
let zero = #{{
    stage: 3, stage3_param_persistence_threshold: 0, offload_param: "nvme", offload_optimizer: "nvme",
    nvme_path: ".",
}};
let e = init_engine(model, #{{ micro_batch_size: 2, zero: zero }});
for b in dataset("rows.jsonl").loader(#{{ micro_batch_size: 2, endless: true }}) {{
    e.backward(e.forward(b)); e.step();
    if e.global_step == 2 {{ break; }}
}}
let done = 0;
let wrong = 0;
for t in kept.list {{
{uses}}}
print(`${{kept.list.len}} ${{done > 0}} ${{wrong > 0}}`);
"#
    );
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("rows.jsonl"), ROWS).unwrap();
    fs::write(dir.path().join("kept.rhai"), text).unwrap();
    let said = out(&dsr(dir.path(), &["run", "kept.rhai"]).output().unwrap());
    let kept: usize = said.split(' ').next().unwrap().parse().unwrap();
    assert!(kept > PARTS.len() / 2, "{said}");
    assert!(said.ends_with(" true true\n"), "{said}");
}
