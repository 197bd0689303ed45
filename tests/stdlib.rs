//! The standard library: modules that are recipes themselves.

use crate::support::{
    files::golden,
    numbers::floats,
    program::{dsr, out, two_ranks},
    recipe::{Recipe, places},
};

/// An engine and a loader that are there in no time, and a validation set.
const WORLD: &str = r#"
import "dsr:trainer" as trainer;
let tok = tokenizer("dsr:gpt2");
let model = new_model("gpt2", #{ n_layer: 1, n_head: 1, n_embd: 8, n_positions: 16 });
let engine = init_engine(model, #{ micro_batch_size: 2, optimizer: #{ type: "AdamW", lr: 1e-3 } });
let rows = dataset("dsr:austen").tokenize(tok).pack(16);
let loader = rows.loader(#{ micro_batch_size: 2 });
let validation = rows.take(4);
"#;

fn numbers(lines: &[String]) -> Vec<f64> {
    lines.iter().map(|line| line.parse().unwrap()).collect()
}

/// To 1e-12, as the formulas are computed in another order.
#[test]
fn schedules_follow_their_formulas() {
    let recipe = Recipe::new(
        r#"
import "dsr:schedule" as schedule;
let o = #{ peak: 1e-2, warmup_steps: 3, total_steps: 20 };
let cosine = schedule::cosine(o);
let linear = schedule::linear(o);
let wsd = schedule::warmup_stable_decay(#{ peak: 1e-2, warmup_steps: 4, decay_steps: 5, total_steps: 20 });
let root = schedule::inverse_sqrt(#{ peak: 1e-2, warmup_steps: 4 });
for step in [0, 2, 3, 10, 19, 20, 30] {
    print(cosine.call(step));
    print(linear.call(step));
    print(wsd.call(step));
    print(root.call(step));
}
"#,
    );
    let found = numbers(&recipe.prints());
    let expected = |step: f64| {
        let warm = |n: f64| 1e-2 * (step + 1.0) / n;
        let part = ((step - 3.0) / 17.0).min(1.0);
        let cosine = 1e-2 * (1.0 + (part * std::f64::consts::PI).cos()) / 2.0;
        let wsd = 1e-2 * ((20.0 - step) / 5.0).clamp(0.0, 1.0);
        [
            if step < 3.0 { warm(3.0) } else { cosine },
            if step < 3.0 { warm(3.0) } else { 1e-2 * (1.0 - part) },
            if step < 4.0 { warm(4.0) } else { wsd },
            if step < 4.0 { warm(4.0) } else { 1e-2 * (4.0 / step).sqrt() },
        ]
    };
    let expected: Vec<_> =
        [0.0, 2.0, 3.0, 10.0, 19.0, 20.0, 30.0].into_iter().flat_map(expected).collect();
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!((found - expected).abs() < 1e-12, "{i}: {found} and {expected}");
    }
}

#[test]
fn one_schedule_follows_another() {
    let recipe = Recipe::new(
        r#"
import "dsr:schedule" as schedule;
let rate = schedule::sequence([
    #{ steps: 2, rate: |step| 0.5 },
    #{ steps: 4, rate: schedule::linear(#{ peak: 1, total_steps: 4 }) },
    #{ steps: 1, rate: |step| step.to_float() },
]);
for step in [0, 1, 2, 4, 6, 9] { print(rate.call(step)); }
"#,
    );
    assert_eq!(numbers(&recipe.prints()), [0.5, 0.5, 1.0, 0.5, 0.0, 3.0]);
}

/// What the trainer does is what the loop does that it stands for.
#[test]
fn the_trainer_is_the_explicit_loop() {
    let by_hand = format!(
        "{WORLD}for batch in loader {{
    engine.backward(engine.forward(batch));
    if engine.step() {{ print(engine.loss); if engine.global_step == 5 {{ break; }} }}
}}\n"
    );
    let trained = format!(
        "{WORLD}trainer::fit(engine, loader, #{{
    total_steps: 5,
    callbacks: [#{{ on_step: |state| {{ print(state.loss); }} }}],
}});\n"
    );
    let expected = Recipe::new(&by_hand).prints();
    assert_eq!(Recipe::new(&trained).prints(), expected);
    assert_eq!(expected.len(), 5);
}

#[test]
fn a_callback_ends_the_training_and_sees_evaluations() {
    let recipe = Recipe::new(&format!(
        "{WORLD}let result = trainer::fit(engine, loader, #{{
    total_steps: 50,
    validation: validation,
    eval_every: 2,
    callbacks: [
        #{{ on_evaluate: |state| state.step == 4 && state.evaluation.perplexity > 1.0 }},
        #{{ on_end: |state| {{ print(`end ${{state.step}}`); }} }},
    ],
}});
print(result.steps);
print(result.stopped_early);
print(result.best < 11.0);\n"
    ));
    assert_eq!(recipe.prints(), ["end 4", "4", "true", "true"]);
    let metrics = std::fs::read_to_string(recipe.directory().join("runs/recipe/metrics.jsonl"));
    assert_eq!(metrics.unwrap().matches("eval_loss").count(), 2);
}

/// With a difference that no evaluation can reach, the training ends after the first and `patience`
/// more.
#[test]
fn a_training_that_gets_no_better_ends_early() {
    let recipe = Recipe::new(&format!(
        "{WORLD}let result = trainer::fit(engine, loader, #{{
    total_steps: 50,
    validation: validation,
    eval_every: 1,
    early_stopping: #{{ patience: 2, min_delta: 100.0 }},
}});
print(result.steps);\n"
    ));
    assert_eq!(recipe.prints(), ["3"]);
}

/// The checkpoint of a step is saved before the step is evaluated. A run that ended in between evaluates
/// when it goes on, as one that was never interrupted.
#[test]
fn an_evaluation_that_was_cut_off_is_made_up_for() {
    let train = |steps: u32| {
        format!(
            "{WORLD}let result = trainer::fit(engine, loader, #{{
    total_steps: {steps}, save_every: 2, validation: validation, eval_every: 2, name: \"cut\",
}});
print(engine.global_step);\n"
        )
    };
    let dir = tempfile::tempdir().unwrap();
    let metrics = dir.path().join("runs/cut/metrics.jsonl");
    let evaluations = || {
        let text = std::fs::read_to_string(&metrics).unwrap();
        text.lines()
            .filter(|line| line.contains("eval_loss"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    std::fs::write(dir.path().join("r.rhai"), train(4)).unwrap();
    out(&dsr(dir.path(), &["run", "r.rhai"]).output().unwrap());
    let whole = evaluations();
    assert_eq!(whole.len(), 2);
    let text = std::fs::read_to_string(&metrics).unwrap();
    std::fs::write(&metrics, text.replace(&format!("{}\n", whole[1]), "")).unwrap();
    assert_eq!(evaluations().len(), 1);
    out(&dsr(dir.path(), &["run", "r.rhai", "--resume", "runs/cut"]).output().unwrap());
    let loss = |line: &str| line.split("eval_loss").nth(1).unwrap().to_owned();
    assert_eq!(
        evaluations().iter().map(|l| loss(l)).collect::<Vec<_>>(),
        whole.iter().map(|l| loss(l)).collect::<Vec<_>>()
    );
}

#[test]
fn samples_are_printed_and_written_down_on_the_way() {
    let recipe = Recipe::new(&format!(
        "{WORLD}trainer::fit(engine, loader, #{{
    total_steps: 2,
    tokenizer: tok,
    prompts: [\"It is\"],
    sample_every: 1,
    max_new_tokens: 1,
}});\n"
    ));
    let printed = recipe.prints();
    assert!(printed[0].starts_with("step 1: It is"), "{printed:?}");
    assert!(printed[1].starts_with("step 2: It is"), "{printed:?}");
    let file = recipe.directory().join("runs/recipe/samples.jsonl");
    let samples = std::fs::read_to_string(file).unwrap();
    for (line, step) in samples.lines().zip([1, 2]) {
        let beginning = format!("{{\"step\":{step},\"prompt\":\"It is\",\"text\":\"It is");
        assert!(line.starts_with(&beginning), "{line}");
    }
    assert_eq!(samples.lines().count(), 2);
}

/// The recipe that shows the trainer, in a few steps.
#[test]
fn the_recipe_of_the_trainer_runs() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["run", "gpt2_trainer", "-p", "steps=4", "-p", "eval_every=2"];
    let printed = out(&dsr(dir.path(), &args).output().unwrap());
    assert_eq!(printed.matches("validation perplexity").count(), 2, "{printed}");
    assert!(printed.contains("\nbest validation loss ") && printed.ends_with(" in 4 steps\n"));
}

/// Mistakes in the options of a module are shown where the recipe has them.
#[test]
fn wrong_options_are_shown_in_the_recipe() {
    let recipe = Recipe::new(&format!(
        "{WORLD}trainer::fit(engine, loader, #{{\n    total_stesp: 3,\n    keep: \"all\",\n    early_stopping: #{{ patiense: 1 }},\n}});\n"
    ));
    let failure = recipe.fails();
    let found: Vec<_> = places(&failure)
        .into_iter()
        .zip(&failure.faults)
        .map(|((code, place), fault)| {
            format!("{} {place} {}", code.number(), fault.error.message())
        })
        .collect();
    assert_eq!(
        found,
        [
            "E104 recipe.rhai:9:10 `total_steps` is required and missing",
            "E101 recipe.rhai:10:5 `trainer::fit` has no option `total_stesp`",
            "E102 recipe.rhai:11:11 `keep` must be a whole number, found string \"all\"",
            "E101 recipe.rhai:12:24 `early_stopping` has no option `patiense`",
        ]
    );
}

#[test]
fn options_that_need_others_are_refused() {
    for (options, message) in [
        ("eval_every: 2", "trainer::fit: eval_every needs a dataset as validation"),
        ("validation: validation", "trainer::fit: validation is used only with eval_every"),
        (
            "early_stopping: #{ patience: 1 }",
            "trainer::fit: early_stopping needs evaluations: give validation and eval_every",
        ),
        ("sample_every: 1", "trainer::fit: sample_every needs a tokenizer and prompts"),
        (
            "sample_every: -1",
            "trainer::fit: eval_every and sample_every are numbers of steps, 0 for never",
        ),
        (
            "sample_every: 1, tokenizer: tok, prompts: [\"It is\"]",
            "a prompt of 2 tokens and max_new_tokens 40 are more than the model's 16 positions",
        ),
        ("callbacks: [1]", "trainer::fit: a callback is a map: #{ on_step: |state| { ... } }"),
        ("callbacks: [#{ on_stop: 1 }]", "`callbacks` has no option `on_stop`"),
    ] {
        let text =
            format!("{WORLD}trainer::fit(engine, loader, #{{ total_steps: 1, {options} }});\n");
        let failure = Recipe::new(&text).fails();
        assert_eq!(failure.faults[0].error.message(), message);
    }
}

#[test]
fn metrics_are_what_they_say() {
    let recipe = Recipe::new(
        r#"
import "dsr:metrics" as metrics;
print(metrics::perplexity(2.0));
print(metrics::bits_per_token(2.0));
let mean = metrics::moving_average(3);
print(mean.mean() == ());
for value in [1, 2, 3, 4.0] { mean.add(value); }
print(mean.mean());
"#,
    );
    let printed = recipe.prints();
    let number = |i: usize| printed[i].parse::<f64>().unwrap();
    assert!((number(0) - 2f64.exp()).abs() < 1e-12 && (number(1) - 2.0 / 2f64.ln()).abs() < 1e-12);
    assert_eq!(printed[2..], ["true", "3.0"]);
}

/// A closure that a module returns is called with what it takes.
#[test]
fn a_closure_of_a_module_tells_how_it_is_called_wrongly() {
    let recipe = Recipe::new(
        "import \"dsr:schedule\" as schedule;\n\
         schedule::linear(#{ peak: 1, total_steps: 2 }).call(1, 2);\n",
    );
    let failure = recipe.fails();
    let message = failure.faults[0].error.message();
    assert!(message.contains("another number of arguments"), "{message}");
}

/// Ten steps of direct preference optimization against PyTorch's (tests/golden/dpo.py): losses and
/// margins of float32 sums in another order, within 2e-6 of values of up to 1.
#[test]
fn dpo_learns_as_in_pytorch() {
    let recipe = r#"
import "dsr:dpo" as dpo;
param("golden", "", "directory of the golden values");
let model = load_model(P::golden + "/gpt2-tiny-v512");
model.load_adapter(P::golden + "/adapters/gpt2-cattn.init");
let objective = dpo::objective(#{ beta: 0.1 });
let engine = init_engine(model, #{
    micro_batch_size: 4,
    gradient_accumulation_steps: 2,
    optimizer: #{ type: "AdamW", lr: 5e-3, weight_decay: 0.0 },
    loss: objective.loss,
    loss_average: "micro_batches",
});
let rows = dataset(P::golden + "/dpo-pairs.jsonl");
let steps = [];
let last = dpo::fit(engine, rows.loader(#{ micro_batch_size: 4 }), objective, #{
    total_steps: 10,
    on_step: |state| { steps.push(state); },
});
for step in steps {
    print(step.loss);
    print(step.margin);
    print(step.accuracy);
}
let found = dpo::evaluate(engine.model, rows.loader(#{ micro_batch_size: 4 }), objective);
print(found.accuracy > 0.8 && found.margin > last.margin / 2.0);
"#;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("r.rhai"), recipe).unwrap();
    let golden_dir = format!("golden={}", golden("").display());
    let printed = out(&dsr(dir.path(), &["run", "r.rhai", "-p", &golden_dir]).output().unwrap());
    let mut lines: Vec<String> = printed.lines().map(str::to_owned).collect();
    assert_eq!(lines.pop().unwrap(), "true");
    let found = numbers(&lines);
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden("dpo.json")).unwrap()).unwrap();
    let of = |key: &str| floats(&json[key]);
    let (losses, margins, accuracies) = (of("losses"), of("margins"), of("accuracies"));
    assert_eq!(found.len(), 3 * losses.len());
    for (step, found) in found.chunks(3).enumerate() {
        let expected = [losses[step], margins[step], accuracies[step]];
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 2e-6, "step {step}: {found} is not {expected}");
        }
    }
}

/// Two ranks tell the loss, the margin and the accuracy of all their pairs: those of one rank that
/// accumulates the same micro batches, to the rounding of float32 sums in another order.
#[test]
fn dpo_on_two_ranks_judges_the_pairs_of_both() {
    let recipe = r#"
import "dsr:dpo" as dpo;
param("golden", "", "directory of the golden values");
param("accumulation", 1, "micro batches of a step");
let model = load_model(P::golden + "/gpt2-tiny-v512");
model.load_adapter(P::golden + "/adapters/gpt2-cattn.init");
let objective = dpo::objective(#{ beta: 0.1 });
let engine = init_engine(model, #{
    micro_batch_size: 2,
    gradient_accumulation_steps: P::accumulation,
    optimizer: #{ type: "AdamW", lr: 5e-3 },
    loss: objective.loss,
    loss_average: "micro_batches",
});
let loader = || dataset(P::golden + "/dpo-pairs.jsonl").loader(#{ micro_batch_size: 2 });
let last = dpo::fit(engine, loader.call(), objective, #{ total_steps: 3, on_step: |state| () });
let found = dpo::evaluate(engine.model, loader.call(), objective);
for value in [last.loss, last.margin, last.accuracy, found.loss, found.margin, found.accuracy] {
    print(value);
}
"#;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("r.rhai"), recipe).unwrap();
    let golden_dir = format!("golden={}", golden("").display());
    let args = ["run", "r.rhai", "-p", &golden_dir, "-p", "accumulation=2"];
    let read = |text: String| numbers(&text.lines().map(str::to_owned).collect::<Vec<_>>());
    let one = read(out(&dsr(dir.path(), &args).output().unwrap()));
    let two = read(out(&two_ranks(dir.path(), &args[..4])[0]));
    assert_eq!(one.len(), 6);
    for (one, two) in one.iter().zip(&two) {
        assert!((one - two).abs() < 2e-6, "{one} is not {two}");
    }
}

/// Prompts and answers become rows in pairs; what cannot be a pair is refused.
#[test]
fn dpo_takes_rows_in_pairs() {
    const HEAD: &str = r#"
import "dsr:dpo" as dpo;
let tok = tokenizer("dsr:gpt2");
let preferences = dataset("p.jsonl");
let model = new_model("gpt2", #{ n_layer: 1, n_head: 1, n_embd: 8, n_positions: 16 });
model.lora(#{ r: 2 });
let rows = || dpo::pairs(preferences, tok, #{ apply_chat_template: false });
"#;
    let line = |prompt| {
        format!("{{\"prompt\": \"{prompt}\", \"chosen\": \" yes\", \"rejected\": \" no\"}}\n")
    };
    let lines = ["Say", "Tell", "Write", "Whisper"].map(line).concat();
    let run = |code: &str| {
        let recipe = Recipe::new(&format!("{HEAD}{code}"));
        recipe.file("p.jsonl", &lines);
        recipe
    };
    let texts = "for row in rows.call() { print(tok.decode(row.input_ids)); if row.labels[0] != -100 { print(\"?\"); } }";
    let printed = run(texts).prints();
    assert_eq!(printed[..3], ["Say yes", "Say no", "Tell yes"]);
    assert_eq!(printed.len(), 8);

    // An untrained adapter prefers nothing: the loss is log(2).
    let evaluate = "print(dpo::evaluate(model, rows.call().loader(#{ micro_batch_size: 2 }), dpo::objective(#{})).loss);";
    let loss: f64 = run(evaluate).prints()[0].parse().unwrap();
    assert!((loss - 2_f64.ln()).abs() < 1e-6, "{loss}");

    for (code, expected) in [
        (
            "dpo::evaluate(model, rows.call().loader(#{ micro_batch_size: 1 }), dpo::objective(#{}));",
            "micro_batch_size is even",
        ),
        (
            "dpo::evaluate(model, rows.call().shuffle(#{ seed: 3 }).loader(#{ micro_batch_size: 4 }), dpo::objective(#{}));",
            "have not the same prompt",
        ),
        ("dpo::objective(#{ beta: 0.0 });", "beta is above 0"),
        ("dpo::objective(#{ bta: 0.1 });", "bta"),
        ("dpo::objective(#{ label_smoothing: 0.5 });", "below 0.5"),
        ("dpo::pairs(preferences.remove(\"chosen\"), tok, #{});", "no column \"chosen\""),
    ] {
        let said = format!("{:?}", run(code).fails().faults);
        assert!(said.contains(expected), "{code}: {said}");
    }
}
