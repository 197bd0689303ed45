//! Every family of models against values that transformers computed (tests/golden/README.md).
//!
//! Trainings run through the program, so that they hold what a user gets. A new model is a
//! folder and two files in tests/golden/families, and a line of [`families`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use dsr::{
    data::{DataSource, Dataset, OpenOptions},
    permission::Scope,
    recipe::{Recipe, params},
    script::Session,
    tensor::{Device, Kind, SafetensorsFile, Tensor},
};
use serde_json::{Map, Value, json};

use crate::support::{
    files::golden,
    numbers::{assert_relative, floats},
    program::{dsr, out},
    recipe::with_host,
};

mod forms;

/// The tests of one model, for each of the models that are listed by the names of their modules.
macro_rules! families {
    ($($module:ident)*) => {$(
        mod $module {
            const NAME: &str = stringify!($module);

            #[test]
            fn has_the_logits_of_transformers() {
                super::logits_are_those_of_transformers(NAME);
            }

            #[test]
            fn trains_as_transformers_does() {
                super::thirty_steps_are_those_of_transformers(NAME);
            }

            #[test]
            fn goes_on_from_a_prompt_as_transformers_does() {
                super::greedy_tokens_are_those_of_transformers(NAME);
            }

            #[test]
            fn is_the_same_to_the_bit_after_an_export() {
                super::an_export_is_the_same_to_the_bit(NAME);
            }
        }
    )*};
}

families! {
    bloom_h4
    bloom_h6
    gemma3
    gpt2_wide
    llama_bias
    llama_gqa
    llama_headdim
    llama_tied_llama3
    mistral
    opt_post
    opt_pre
    phi3
    qwen2
    qwen3
    t5_v10
    t5_v11
}

/// One model of each family, of which ZeRO shares out the parameters.
const SHARED_OUT: &[&str] =
    &["llama-gqa", "mistral", "qwen3", "phi3", "gemma3", "opt-post", "bloom-h6", "t5-v11"];

/// Prints the logits of each of the models for each of the inputs, a line each, and writes the last
/// model as transformers has it.
const LOGITS: &str = r#"
param("models", "[]", "JSON: the directories");
param("inputs", "[]", "JSON: the arguments of each call, by their names");
param("save", "", "where to write the last model");
let model = ();
for directory in parse_json(P::models) {
    model = load_model(directory);
    for input in parse_json(P::inputs) {
        let ids = tensor(input.remove("input_ids"));
        let options = #{};
        for name in input.keys() { options[name] = tensor(input[name]); }
        let logits = if options.is_empty() { model.logits(ids) } else { model.logits(ids, options) };
        print(logits.to_array().to_json());
    }
}
if P::save != "" { model.export_hf(P::save); }
"#;

/// Prints what the model goes on with behind each prompt alone and behind all together, in any slots,
/// with one tokenizer or another; a line each.
const GREEDY: &str = r#"
param("model", "", "directory of the model");
param("prompts", "[]", "JSON: texts");
let model = load_model(P::model);
let prompts = parse_json(P::prompts);
let options = #{ max_new_tokens: 24, temperature: 0, logprobs: true, return_details: true };
for tok in [tokenizer("numbers"), tokenizer("with_eos")] {
    let alone = [];
    for prompt in prompts { alone.push(generate(model, tok, prompt, options)); }
    print(alone.to_json());
    let order = [0, 1, 2, 1, 0, 2, 1, 0, 0];
    for slots in [1, 2, 3, 16] {
        options.batch_size = slots;
        let many = generate(model, tok, order.map(|i| prompts[i]), options);
        for i in 0..order.len {
            if many[i] != alone[order[i]] { throw `text ${i} of ${slots} slots differs`; }
        }
    }
}
"#;

/// The directory of a model, or another file of the families.
fn family(name: &str) -> PathBuf {
    golden("families").join(name)
}

/// The values that were computed for a model.
fn values(name: &str) -> Value {
    let text = fs::read_to_string(family(&format!("{name}.json"))).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The rows that a model is trained on.
fn data(values: &Value) -> PathBuf {
    let name = values["data"].as_str().unwrap();
    [golden(name), family(name)].into_iter().find(|path| path.is_file()).unwrap()
}

fn param(command: &mut Command, name: &str, value: impl std::fmt::Display) {
    command.args(["-p", &format!("{name}={value}")]);
}

/// What a recipe prints that is run in `dir` by this process, which is there already.
fn printed(dir: &Path, text: &str, params: &[(&str, String)]) -> Vec<String> {
    let recipe =
        Recipe { name: "recipe.rhai".to_owned(), text: text.to_owned(), base_dir: dir.to_owned() };
    let (lines, result) = with_host(dir, |mut host| {
        host.workspace.rights.grants.read = Scope::All;
        let given = params.iter().map(|(name, value)| format!("{name}={value}"));
        host.workspace.rights.params =
            given.map(|given| params::parse_assignment(&given).unwrap()).collect();
        Session::new(host).run(&recipe)
    });
    result.unwrap_or_else(|failure| panic!("{:?}", failure.faults));
    lines
}

/// What a recipe prints, whose lines are JSON.
fn lines(command: &mut Command) -> Vec<Value> {
    let printed = out(&command.output().unwrap());
    printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The logits of each of the models for each of the inputs; the last model is written to `saved` in
/// `dir`, where that is given.
fn logits(dir: &Path, models: &[PathBuf], inputs: &[Value], saved: Option<&str>) -> Vec<Value> {
    let params = [
        ("models", json!(models).to_string()),
        ("inputs", json!(inputs).to_string()),
        ("save", saved.unwrap_or_default().to_owned()),
    ];
    let lines = printed(dir, LOGITS, &params);
    let logits: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(logits.len(), models.len() * inputs.len());
    logits
}

/// All tensors of a file, as float32.
fn tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let file = SafetensorsFile::open(dsr::fs::Place::unguarded(path)).unwrap();
    let read = |name: String| {
        let shape = file.shape(&name).unwrap();
        let tensor = Tensor::zeros(shape.as_slice(), (Kind::Float, Device::Cpu));
        file.copy_into(&name, &tensor).unwrap();
        (name, tensor)
    };
    file.names().into_iter().map(read).collect()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(&tensor.to_kind(Kind::Double).reshape([-1])).unwrap()
}

/// What the first two rows of the data are as the first micro batch: padded on the right, the labels
/// of pairs shifted to the right.
fn first_micro_batch(values: &Value) -> Value {
    let source = DataSource::unguarded(data(values).to_str().unwrap());
    let rows = Dataset::open(source, &OpenOptions::default()).unwrap();
    let rows = [0, 1].map(|i| rows.row(i).unwrap());
    let column = |name: &str| -> Option<[Vec<i64>; 2]> {
        let ids = |row: &Map<String, Value>| {
            let ids = row.get(name)?.as_array().unwrap();
            Some(ids.iter().map(|id| id.as_i64().unwrap()).collect::<Vec<_>>())
        };
        Some([ids(&rows[0])?, ids(&rows[1])?])
    };
    let padded = |columns: [Vec<i64>; 2]| {
        let longest = columns[0].len().max(columns[1].len());
        columns.map(|ids| [ids.clone(), vec![0; longest - ids.len()]].concat())
    };
    let ids = column("input_ids").unwrap();
    let Some(labels) = column("labels") else { return json!({ "input_ids": ids }) };
    let mask = ids.clone().map(|ids| vec![1; ids.len()]);
    let shifted = padded(labels).map(|labels| [&[0][..], &labels[..labels.len() - 1]].concat());
    json!({
        "input_ids": padded(ids),
        "attention_mask": padded(mask),
        "decoder_input_ids": shifted,
    })
}

/// Within 5e-5, where the logits have a standard deviation of 1: PyTorch's own kernels differ by
/// 4e-6, the smallest change of the arithmetic (another gelu) is 6e-4.
fn assert_close(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let most = off.fold(0.0, |most: f64, off| if off.is_nan() { off } else { most.max(off) });
    assert!(most <= 5e-5, "{what} is off by {most:.1e}");
}

/// The numbers of nested arrays.
fn flat(value: &Value) -> Vec<f64> {
    match value.as_array() {
        Some(items) => items.iter().flat_map(flat).collect(),
        None => vec![value.as_f64().unwrap_or(f64::NAN)],
    }
}

/// The first micro batch, and two rows that are padded on the left and on the right.
fn logits_are_those_of_transformers(module: &str) {
    let name = &module.replace('_', "-");
    let values = values(name);
    let padded = &values["padded"];
    let mut padded_input = Map::new();
    for key in ["input_ids", "attention_mask", "decoder_input_ids"] {
        if let Some(ids) = padded.get(key) {
            padded_input.insert(key.to_owned(), ids.clone());
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let inputs = [first_micro_batch(&values), padded_input.into()];
    let found = logits(dir.path(), &[family(name)], &inputs, None);

    let (first, expected) = (&found[0], &values["logits_first_micro"]);
    let rows = first.as_array().unwrap();
    assert_eq!(json!([2, rows[0].as_array().unwrap().len(), 512]), expected["shape"]);
    let head: Vec<f64> = (0..4usize).flat_map(|t| flat(&first[0][t])[..8].to_vec()).collect();
    assert_close("the first logits", &head, &flat(&expected["head"]));
    let last = flat(rows[0].as_array().unwrap().last().unwrap());
    assert_close("the last logits of row 0", &last[last.len() - 8..], &floats(&expected["last"]));
    let all = flat(first);
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    assert_close("the mean", &[mean], &[expected["mean"].as_f64().unwrap()]);

    // Of pairs those of the targets.
    let real = padded.get("decoder_real_positions").unwrap_or(&padded["real_positions"]);
    let expected = tensors(&family(&format!("{name}.logits.safetensors")));
    for row in 0..2usize {
        let [from, to] = [0usize, 1].map(|end| real[row][end].as_u64().unwrap() as usize);
        let found = &found[1][row].as_array().unwrap()[from..to];
        let found: Vec<f64> = found.iter().flat_map(flat).collect();
        let expected = numbers(&expected[&format!("default.row{row}")]);
        assert_close(&format!("padded row {row}"), &found, &expected);
    }
}

/// Steps of `tests/golden/family_steps.rhai` under these arguments of dsr; what it saves is in `dir`.
fn train(dir: &Path, dsr_args: &[&str], model: &str, data: &Path, params: &[&str]) -> Vec<Value> {
    let script = golden("family_steps.rhai").display().to_string();
    let mut command = dsr(dir, dsr_args);
    command.arg(script).env("OMP_NUM_THREADS", "1");
    param(&mut command, "model", family(model).display());
    param(&mut command, "data", data.display());
    for given in params {
        command.args(["-p", given]);
    }
    lines(&mut command)
}

/// By how much tolerances grow at a step, which counts from 0: in a model with ReLU one unit that
/// rounding switches moves later losses and norms ten times as far.
fn room(model: &str, step: usize) -> f64 {
    let is_relu = model.starts_with("opt") || model == "t5-v10";
    if is_relu && step >= 10 { 10.0 } else { 1.0 }
}

/// Losses within 1e-5 and gradient norms within 1e-4, relative: PyTorch's own kernels differ by 2e-6
/// and 1e-5.
fn assert_steps(what: &str, model: &str, steps: &[Value], expected: &Value) {
    let (losses, norms) = (floats(&expected["losses"]), floats(&expected["grad_norms"]));
    for (i, step) in steps.iter().enumerate() {
        let room = room(model, i);
        let value = |key: &str| step[key].as_f64().unwrap_or(f64::NAN);
        let of = |part: &str| format!("{what}, step {}: {part}", i + 1);
        assert_relative(&of("loss"), value("loss"), losses[i], room * 1e-5);
        assert_relative(&of("gradient norm"), value("grad_norm"), norms[i], room * 1e-4);
    }
}

/// [`assert_steps`] for thirty steps of one rank, whose micro batches have the losses of
/// transformers' too.
fn assert_thirty_steps(what: &str, model: &str, steps: &[Value], expected: &Value) {
    assert_eq!(steps.len(), 30, "{what}");
    assert_steps(what, model, steps, expected);
    for (i, step) in steps.iter().enumerate() {
        let (found, expected) = (flat(&step["micro_losses"]), floats(&expected["micro_losses"][i]));
        assert_eq!(found.len(), expected.len(), "{what}");
        for (found, expected) in found.iter().zip(&expected) {
            let micro_loss = format!("{what}, step {}: the loss of a micro batch", i + 1);
            assert_relative(&micro_loss, *found, *expected, room(model, i) * 1e-5);
        }
    }
}

fn thirty_steps_are_those_of_transformers(module: &str) {
    let name = &module.replace('_', "-");
    let values = values(name);
    let dir = tempfile::tempdir().unwrap();
    // Micro batches of whole rows have equally many targets, and one mean is the other.
    let average = values.get("loss_average").map_or("tokens", |average| average.as_str().unwrap());
    let average = format!("average={average}");
    let params = [average.as_str(), "save=trained"];
    let steps = train(dir.path(), &["run"], name, &data(&values), &params);
    assert_thirty_steps(name, name, &steps, &values);
    assert_sums(name, &dir.path().join("trained/model.safetensors"), &values);
    if let Some(expected) = values.get("loss_average_tokens") {
        let steps = train(dir.path(), &["run"], name, &data(&values), &[]);
        assert_thirty_steps(&format!("{name}, by tokens"), name, &steps, expected);
    }
}

/// The sum and the absolute sum of each parameter after step 30, under transformers' names: within
/// ten times what the change of one rounding moves them by, and 2e-6 for sums in another order.
fn assert_sums(name: &str, file: &Path, values: &Value) {
    let expected = values["param_sums_after_30"].as_object().unwrap();
    let found = tensors(file);
    let names: BTreeSet<_> = found.keys().collect();
    assert_eq!(names, expected.keys().collect::<BTreeSet<_>>());
    for (param, tensor) in &found {
        let noise = floats(&values["param_sums_noise"][param]);
        let expected = floats(&expected[param]);
        let sums = [tensor, &tensor.abs()].map(|t| t.sum(Kind::Double).double_value(&[]));
        for i in 0..2 {
            let rounding = room(name, 29) * (10.0 * noise[i] + 2e-6 * expected[1]);
            // Thirty steps of 5e-4 in one direction here, and in the other there.
            let tolerance = rounding + 60.0 * 5e-4 * noisy_elements(name, param, tensor);
            let off = (sums[i] - expected[i]).abs();
            assert!(off <= tolerance, "{name}, {param}: off by {off:.1e}, not {tolerance:.1e}");
        }
    }
}

/// How many elements have no gradient but rounding, of which Adam makes steps of its whole rate: the
/// biases of keys, to which attention without rotary positions is blind.
fn noisy_elements(name: &str, param: &str, tensor: &Tensor) -> f64 {
    let is_rotary = !["bloom", "gpt2", "opt"].iter().any(|family| name.starts_with(family));
    let elements = tensor.numel() as f64;
    if !is_rotary && param.ends_with("k_proj.bias") {
        elements
    } else if param.ends_with("query_key_value.bias") || param.ends_with("c_attn.bias") {
        elements / 3.0
    } else {
        0.0
    }
}

/// 24 tokens, none of which is a close choice, after each of two prompts, with their log-probabilities
/// within the 1e-4 that logits are held to: alone, and to the bit the same in batches, beside a prompt
/// that is too long to be multiplied with others. Also with a token that ends texts.
fn greedy_tokens_are_those_of_transformers(module: &str) {
    let name = &module.replace('_', "-");
    let greedy = &values(name)["greedy"];
    let words = |ids: &Value| {
        let ids = ids.as_array().unwrap().iter().map(Value::to_string);
        ids.collect::<Vec<_>>().join(" ")
    };
    let mut prompts: Vec<String> =
        greedy["prompts"].as_array().unwrap().iter().map(words).collect();
    prompts.push(vec![prompts.join(" "); 3].join(" "));
    let dir = tempfile::tempdir().unwrap();
    write_tokenizer(&dir.path().join("numbers"), None);
    let eos = greedy["with_eos"]["eos_token_id"].as_i64().unwrap();
    write_tokenizer(&dir.path().join("with_eos"), Some(eos));
    let model = family(name).display().to_string();
    let params = [("model", model), ("prompts", json!(prompts).to_string())];
    let printed = printed(dir.path(), GREEDY, &params);
    assert_eq!(printed.len(), 2);
    let [found, until_eos] =
        [0, 1].map(|i| -> Vec<Value> { serde_json::from_str(&printed[i]).unwrap() });
    assert_eq!(found.len(), prompts.len());
    for (found, alone) in found.iter().zip(greedy["alone"].as_array().unwrap()) {
        assert_eq!(found["token_ids"], alone["tokens"]);
        let logprobs = |of: &Value| -> Vec<f64> { serde_json::from_value(of.clone()).unwrap() };
        let pairs = logprobs(&found["logprobs"]).into_iter().zip(logprobs(&alone["logprobs"]));
        pairs.for_each(|(found, expected)| {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}")
        });
    }
    let rows = greedy["with_eos"]["tokens"].as_array().unwrap();
    for (found, row) in until_eos.iter().zip(rows) {
        let row = row.as_array().unwrap();
        let end = row.iter().position(|id| *id == eos);
        let reason = if end.is_some() { "eos_token" } else { "length" };
        let expected = &row[..end.unwrap_or(row.len())];
        assert_eq!(
            (&found["token_ids"], &found["finish_reason"]),
            (&json!(expected), &json!(reason))
        );
    }
}

/// Writes a tokenizer whose words are the numbers of its tokens.
fn write_tokenizer(dir: &Path, eos: Option<i64>) {
    let vocab: Map<String, Value> = (0..512).map(|id| (id.to_string(), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "0" },
    });
    fs::create_dir(dir).unwrap();
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    if let Some(eos) = eos {
        let config = json!({ "eos_token": eos.to_string() });
        fs::write(dir.join("tokenizer_config.json"), config.to_string()).unwrap();
    }
}

fn an_export_is_the_same_to_the_bit(module: &str) {
    let name = &module.replace('_', "-");
    let dir = tempfile::tempdir().unwrap();
    let inputs = [first_micro_batch(&values(name))];
    let before = logits(dir.path(), &[family(name)], &inputs, Some("exported"));
    let exported = dir.path().join("exported");
    let after = logits(dir.path(), std::slice::from_ref(&exported), &inputs, None);
    assert!(before == after, "the logits of the export differ");
    let [source, export] = [family(name), exported].map(|model| config(&model));
    for key in ["model_type", "architectures"] {
        assert_eq!(source[key], export[key], "{key}");
    }
}

fn config(model: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(model.join("config.json")).unwrap()).unwrap()
}

/// Two ranks with half of the micro batches each have the losses of transformers' one rank.
fn two_ranks_train_as_one(name: &str, stage: u8) {
    let values = values(name);
    let dir = tempfile::tempdir().unwrap();
    let launch = ["launch", "--nproc-per-node", "2", "--timeout", "60"];
    let stage = format!("stage={stage}");
    let params = [stage.as_str(), "accum=2", "steps=6"];
    let steps = train(dir.path(), &launch, name, &data(&values), &params);
    assert_eq!(steps.len(), 6);
    // By tokens, where the micro batches have not equally many.
    let expected = values.get("loss_average_tokens").unwrap_or(&values);
    assert_steps(&format!("{name}, two ranks, {stage}"), name, &steps, expected);
}

#[test]
fn two_ranks_that_share_every_parameter_train_as_one() {
    SHARED_OUT.iter().for_each(|name| two_ranks_train_as_one(name, 3));
}

#[test]
fn two_ranks_train_as_one_at_each_of_the_lower_stages() {
    for stage in 0..3 {
        ["llama-gqa", "t5-v11"].iter().for_each(|name| two_ranks_train_as_one(name, stage));
    }
}

/// Supervised rows, which train on some of their tokens: the mean over all targets of a step, and the
/// mean of the means of its micro batches.
#[test]
fn supervised_rows_train_as_transformers_does() {
    let values = values("sft-llama-gqa");
    let dir = tempfile::tempdir().unwrap();
    for average in ["tokens", "micro_batches"] {
        let given = format!("average={average}");
        let params = [given.as_str(), "length=96"];
        let steps = train(dir.path(), &["run"], "llama-gqa", &data(&values), &params);
        let expected = &values[format!("loss_average_{average}")];
        assert_thirty_steps(average, "llama-gqa", &steps, expected);
    }
}
