//! Recipes in the words and the habits of transformers, DeepSpeed and Python: one look answers each with
//! the right form, at its line.

use crate::support::program::command;

/// Each fault of the recipe: its line, its message, and what it is told to do.
fn told(recipe: &str) -> Vec<(u64, String)> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("r.rhai"), recipe).unwrap();
    let run = command().args(["check", "--json", "r.rhai"]).current_dir(&dir).output().unwrap();
    let faults: Vec<serde_json::Value> = serde_json::from_slice(&run.stdout).unwrap();
    let text = |fault: &serde_json::Value| {
        let hints = fault["hints"].as_array().into_iter().flatten();
        let all = hints.chain([&fault["message"]]).map(|text| text.as_str().unwrap());
        (fault["line"].as_u64().unwrap(), all.collect::<Vec<_>>().join("; "))
    };
    faults.iter().map(text).collect()
}

/// Each line of the recipe with what is said of it; nothing is said of any other line.
fn answers(lines: &[(&str, &str)]) {
    let recipe: String = lines.iter().map(|(line, _)| format!("{line}\n")).collect();
    let told = told(&recipe);
    for (at, (line, expected)) in (1..).zip(lines) {
        let of_line = told.iter().filter(|(number, _)| *number == at);
        let of_line: Vec<_> = of_line.map(|(_, text)| text.as_str()).collect();
        match expected.is_empty() {
            true => assert!(of_line.is_empty(), "{line}: {of_line:?}"),
            false => assert!(of_line.iter().any(|t| t.contains(expected)), "{line}: {told:#?}"),
        }
    }
}

#[test]
fn pythons_habits_are_answered_in_one_look() {
    answers(&[
        ("# A comment.", "a comment begins with //"),
        ("from dsr import trainer", "import \"dsr:trainer\" as trainer"),
        ("let xs = [1, 2, 3];", ""),
        ("let y = xs[0:2];", "a[1..2]"),
        ("let name = 'hi';", "double quotes"),
        ("if y == 1 and true { print(1); }", "write a && b"),
        ("def f(x):", "a function is fn name(x)"),
        ("let g = |x| x + 1;", ""),
        ("print(g(2));", "write g.call(...)"),
        ("for i in range(3) { print(i); }", "range(0, 3)"),
        ("xs.append(4);", ".push(value)"),
        ("let s = f\"{xs}\";", "backquotes"),
        ("let m = {\"a\": 1};", "#{ key: value }"),
        ("print(None);", "write ()"),
        ("print(absent);", "unknown variable `absent`"),
    ]);
    answers(&[
        ("let a = 7 // 2;", "the quotient of whole numbers"),
        ("let b = 1", "has no `;` at its end"),
        ("let t = tensor([1.0]);", ""),
        ("t.cuda();", "dsr run --device"),
        ("print(t.tolist());", ".to_array()"),
        ("t.eval();", "evaluates without dropout"),
    ]);
}

#[test]
fn words_of_transformers_and_deepspeed_are_answered_in_one_look() {
    answers(&[
        ("let tok = tokenizer(\"dsr:gpt2\");", ""),
        ("let data = dataset(\"dsr:austen\")", ""),
        ("    .tokenize(tok, #{ max_seq_length: 128 });", ".pack(seq_len)"),
        ("let model = new_model(\"gpt2\", #{});", ""),
        ("let engine = init_engine(model, #{", ""),
        ("    train_micro_batch_size_per_gpu: 2,", ""),
        ("    zero_optimization: #{ stage: 1 },", ""),
        ("    bf16: true,", "precision: \"bf16\""),
        ("    max_grad_norm: 1.0,", "gradient_clipping"),
        ("    learning_rate: 1e-4,", "write lr in the optimizer's map"),
        ("    warmup_steps: 10,", "warmup_num_steps"),
        ("    gradient_checkpointing: true,", "activation_checkpointing"),
        ("    optimizer: #{ type: \"AdamW\", params: #{ lr: 1e-4 } },", "stand beside its type"),
        ("});", ""),
        ("print(model.num_parameters());", "model.num_params"),
        ("engine.train();", "leave it out"),
        ("let rows = data.remove_columns([\"a\"]);", ".remove([\"name\"])"),
    ]);
}

#[test]
fn the_list_of_options_is_printed_once() {
    let told = told("init_engine(new_model(\"gpt2\", #{}), #{ micro_batch_size: 1, a: 1, b: 2 });");
    let lists = told.iter().filter(|(_, text)| text.contains("init_engine takes:")).count();
    assert_eq!((told.len(), lists), (2, 1), "{told:#?}");
}

#[test]
fn one_option_has_one_spelling_in_a_map() {
    let model = "new_model(\"gpt2\", #{})";
    let both = "#{ micro_batch_size: 1, train_micro_batch_size_per_gpu: 1 }";
    let told = told(&format!("init_engine({model}, {both});"));
    assert!(told[0].1.contains("is DeepSpeed's word for `micro_batch_size`"), "{told:#?}");
}
