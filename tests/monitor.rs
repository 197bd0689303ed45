//! What an engine prints and logs, as recipes ask for it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use dsr::error::Code;

use crate::support::{
    files::{copy, golden, names},
    program::{out, text, two_ranks},
    recipe::{Recipe, places},
};

/// A recipe that trains a tiny model with these options beside the batch sizes, two micro batches
/// of two rows a step, and prints each step's loss.
fn recipe(steps: usize, options: &str) -> Recipe {
    let text = format!(
        r#"let model = new_model("gpt2", #{{ vocab_size: 8, n_positions: 4, n_embd: 4, n_layer: 1, n_head: 1 }});
let engine = init_engine(model, #{{
    micro_batch_size: 2,
    gradient_accumulation_steps: 2,
    scheduler: |step| 0.25 / (1.0 + step),
    {options}
}});
for batch in dataset("rows.jsonl").loader(#{{ micro_batch_size: 2, endless: true }}) {{
    engine.backward(engine.forward(batch));
    if engine.step() {{ print(engine.loss); }}
    if engine.global_step == {steps} {{ break; }}
}}
"#
    );
    let recipe = Recipe::new(&text);
    recipe.file("rows.jsonl", &"{\"input_ids\": [1, 2, 3, 1]}\n".repeat(4));
    recipe
}

fn csv(recipe: &Recipe, path: &str) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(recipe.directory().join(path)).unwrap();
    let (header, rows) = text.split_once('\n').unwrap();
    let column = path.rsplit("Samples_").next().unwrap().strip_suffix(".csv").unwrap();
    assert_eq!(header, format!("step,{column}"));
    let row = |line: &str| {
        let (x, value) = line.split_once(',').unwrap();
        (x.parse().unwrap(), value.parse().unwrap())
    };
    rows.lines().map(row).collect()
}

#[test]
fn nothing_is_shown_or_written_by_default() {
    let off = "tensorboard: #{ output_path: \"logs\" }, csv_monitor: #{ enabled: false }";
    let recipe = recipe(2, off);
    let (_, notes) = recipe.prints_and_notes();
    assert!(notes.is_empty(), "{notes:?}");
    assert_eq!(names(recipe.directory()), ["recipe.rhai", "rows.jsonl"]);
}

#[test]
fn every_nth_step_has_deepspeeds_line() {
    let (printed, notes) = recipe(5, "steps_per_print: 2").prints_and_notes();
    let loss = |step: usize| format!("{:.4}", printed[step - 1].parse::<f64>().unwrap());
    let expected = [
        format!("step=2, skipped=0, lr=[0.125], mom=[(0.9, 0.999)], loss={}", loss(2)),
        format!("step=4, skipped=0, lr=[0.0625], mom=[(0.9, 0.999)], loss={}", loss(4)),
    ];
    assert_eq!(notes, expected);
}

/// Here what AdamW updates, and the matrices with Muon's momentum.
#[test]
fn the_line_lists_the_groups_of_parameters() {
    let options = "steps_per_print: 1, optimizer: #{ type: \"Muon\" }";
    let (_, notes) = recipe(1, options).prints_and_notes();
    assert!(notes[0].contains("lr=[0.25, 0.25], mom=[(0.9, 0.95), 0.95], loss="), "{notes:?}");
}

#[test]
fn csv_has_a_row_for_each_step_over_the_samples_seen() {
    let options = "csv_monitor: #{ enabled: true, output_path: \"logs\", job_name: \"tiny\" }";
    let recipe = recipe(3, options);
    let (printed, notes) = recipe.prints_and_notes();
    assert!(notes.is_empty(), "{notes:?}");
    let rates = csv(&recipe, "logs/tiny/Train_Samples_lr.csv");
    assert_eq!(rates, [(4, 0.25), (8, 0.125), (12, 0.25 / 3.0)]);
    let losses = csv(&recipe, "logs/tiny/Train_Samples_train_loss.csv");
    let printed: Vec<f64> = printed.iter().map(|loss| loss.parse().unwrap()).collect();
    assert_eq!(losses.iter().map(|&(_, loss)| loss).collect::<Vec<_>>(), printed);
    let dir = recipe.directory().join("logs/tiny");
    let expected = ["grad_norm", "lr", "tokens_per_second", "train_loss"];
    assert_eq!(names(&dir), expected.map(|name| format!("Train_Samples_{name}.csv")));
    let speeds = csv(&recipe, "logs/tiny/Train_Samples_tokens_per_second.csv");
    assert!(speeds.len() == 3 && speeds.iter().all(|(_, speed)| *speed > 0.0), "{speeds:?}");
}

/// Each evaluation is a row of `eval_loss`, in a run and without one, over the samples seen so far.
#[test]
fn the_logs_have_gradient_norms_and_evaluations() {
    let options = "csv_monitor: #{ enabled: true, output_path: \"csv\", job_name: \"x\" },
        tensorboard: #{ enabled: true, output_path: \"tb\", job_name: \"x\" }";
    let recipe = recipe(2, options);
    let path = recipe.directory().join("recipe.rhai");
    let text = fs::read_to_string(&path).unwrap();
    let loop_of_recipe = text.find("for batch in").unwrap();
    let own = r#"
let rows = dataset("rows.jsonl");
print(engine.evaluate(rows).loss);
let loader = rows.loader(#{ micro_batch_size: 2, endless: true });
let run = start_run(engine, loader, #{ total_steps: 2 });
while run.train_batch() {
    print(engine.grad_norm);
    print(run.evaluate(rows).loss);
}
run.finish();
"#;
    fs::write(&path, format!("{}{own}", &text[..loop_of_recipe])).unwrap();
    let (printed, _) = recipe.prints_and_notes();
    let printed: Vec<f64> = printed.iter().map(|value| value.parse().unwrap()).collect();
    let evals = csv(&recipe, "csv/x/Train_Samples_eval_loss.csv");
    assert_eq!(evals, [(0, printed[0]), (4, printed[2]), (8, printed[4])]);
    let norms = csv(&recipe, "csv/x/Train_Samples_grad_norm.csv");
    assert_eq!(norms, [(4, printed[1]), (8, printed[3])]);
    let scalars = scalars(&event_files(&recipe.directory().join("tb/x"))[0]);
    let found = scalars.iter().filter(|scalar| scalar.tag == "Train/Samples/eval_loss");
    let found: Vec<_> = found.map(|scalar| (scalar.step, scalar.value)).collect();
    assert_eq!(found, evals.iter().map(|&(x, loss)| (x, loss as f32)).collect::<Vec<_>>());
}

#[test]
fn a_resumed_training_goes_on_in_its_files() {
    let options = "csv_monitor: #{ enabled: true }, tensorboard: #{ enabled: true }";
    let recipe = recipe(2, options);
    let path = recipe.directory().join("recipe.rhai");
    let first = fs::read_to_string(&path).unwrap();
    let saving = format!("{first}engine.save_checkpoint(\"checkpoints\");\n");
    fs::write(&path, saving).unwrap();
    recipe.prints_and_notes();
    let again = first
        .replace("});\nfor", "});\nengine.load_checkpoint(\"checkpoints\");\nfor")
        .replace("global_step == 2", "global_step == 4")
        // The samples are counted, not computed: four rows a step before, two from here.
        .replace("gradient_accumulation_steps: 2", "gradient_accumulation_steps: 1");
    assert!(again.contains("load_checkpoint"));
    fs::write(&path, again).unwrap();
    recipe.prints_and_notes();
    let steps = |rows: Vec<(u64, f64)>| rows.into_iter().map(|(x, _)| x).collect::<Vec<_>>();
    let lr = csv(&recipe, "DeepSpeedJobName/Train_Samples_lr.csv");
    assert_eq!(lr[2..], [(10, 0.25 / 3.0), (12, 0.0625)]);
    assert_eq!(
        steps(csv(&recipe, "DeepSpeedJobName/Train_Samples_train_loss.csv")),
        [4, 8, 10, 12]
    );
    let files = event_files(&recipe.directory().join("DeepSpeedJobName"));
    let xs = |file: &PathBuf| scalars(file).into_iter().map(|s| s.step).collect::<Vec<_>>();
    let mut both: Vec<_> = files.iter().map(xs).collect();
    both.sort();
    assert_eq!(both, [[4, 4, 4, 4, 8, 8, 8, 8], [10, 10, 10, 10, 12, 12, 12, 12]]);
}

#[test]
fn an_event_file_holds_what_csv_does() {
    let options =
        "csv_monitor: #{ enabled: true, output_path: \"csv\" }, wall_clock_breakdown: true,
        tensorboard: #{ enabled: true, output_path: \"tb\", job_name: \"x\" }";
    let recipe = recipe(3, options);
    recipe.prints_and_notes();
    let files = event_files(&recipe.directory().join("tb/x"));
    assert_eq!(files.len(), 1);
    let scalars = scalars(&files[0]);
    let tags = [
        "train_loss",
        "lr",
        "grad_norm",
        "tokens_per_second",
        "elapsed_time_ms_forward",
        "elapsed_time_ms_backward",
        "elapsed_time_ms_backward_inner",
        "elapsed_time_ms_backward_allreduce",
        "elapsed_time_ms_step",
        "elapsed_time_ms_data",
    ];
    assert_eq!(scalars.len(), 3 * tags.len());
    for (i, scalar) in scalars.iter().enumerate() {
        let (step, tag) = (i / tags.len(), tags[i % tags.len()]);
        assert_eq!(scalar.tag, format!("Train/Samples/{tag}"));
        let rows = csv(&recipe, &format!("csv/DeepSpeedJobName/Train_Samples_{tag}.csv"));
        assert_eq!((scalar.step, scalar.value), (rows[step].0, rows[step].1 as f32));
    }
    // The backward pass of DeepSpeed includes the reduction.
    let values = |tag: &str| {
        let rows = csv(&recipe, &format!("csv/DeepSpeedJobName/Train_Samples_{tag}.csv"));
        rows.into_iter().map(|(_, value)| value).collect::<Vec<_>>()
    };
    let inner = values("elapsed_time_ms_backward_inner");
    let reduce = values("elapsed_time_ms_backward_allreduce");
    for (i, whole) in values("elapsed_time_ms_backward").into_iter().enumerate() {
        // Sums of nanoseconds, rounded once to a float.
        assert!((whole - inner[i] - reduce[i]).abs() < 1e-6);
    }
}

#[test]
fn the_breakdown_names_every_phase_of_every_step() {
    let (printed, notes) = recipe(3, "wall_clock_breakdown: true").prints_and_notes();
    assert_eq!((printed.len(), notes.len()), (3, 3));
    for line in notes {
        let mut parts = line.split(" | ");
        assert_eq!(parts.next(), Some("time (ms)"));
        let phases: Vec<_> = parts.map(|part| part.split_once(": ").unwrap()).collect();
        let names: Vec<_> = phases.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["forward", "backward", "reduce", "step", "data"]);
        let ms = phases.iter().map(|(_, ms)| ms.parse::<f64>().unwrap());
        assert!(ms.clone().all(|ms| ms >= 0.0), "{line}");
        assert!(ms.sum::<f64>() > 0.0, "{line}");
    }
}

/// A run writes the phases down, and shows its own line where DeepSpeed's is shown.
#[test]
fn a_run_keeps_the_phases_and_shows_the_steps_to_print() {
    let text = r#"let model = new_model("gpt2", #{ vocab_size: 8, n_positions: 4, n_embd: 4, n_layer: 1, n_head: 1 });
let engine = init_engine(model, #{ micro_batch_size: 1, wall_clock_breakdown: true, steps_per_print: 4 });
let loader = dataset("rows.jsonl").loader(#{ micro_batch_size: 1, endless: true });
let run = start_run(engine, loader, #{ total_steps: 10 });
for batch in run {
    engine.backward(engine.forward(batch));
    if engine.step() { run.after_step(); }
}
run.finish();
"#;
    let recipe = Recipe::new(text);
    recipe.file("rows.jsonl", "{\"input_ids\": [1, 2, 3]}\n");
    let (_, notes) = recipe.prints_and_notes();
    let shown = |begins: &str| {
        let steps = notes.iter().filter_map(|line| line.strip_prefix(begins));
        steps.map(|rest| rest.split([',', '/']).next().unwrap().parse().unwrap()).collect()
    };
    let (deepspeeds, own): (Vec<u64>, Vec<u64>) = (shown("step="), shown("step "));
    assert_eq!((deepspeeds, own), (vec![4, 8], vec![1, 4, 8, 10]));
    let metrics = recipe.directory().join("runs/recipe/metrics.jsonl");
    for line in fs::read_to_string(metrics).unwrap().lines() {
        let record: serde_json::Value = serde_json::from_str(line).unwrap();
        for key in ["forward_ms", "backward_ms", "reduce_ms", "step_ms", "data_ms"] {
            assert!(record[key].as_f64().is_some_and(|ms| ms >= 0.0), "{key}: {line}");
        }
    }
}

/// The golden model: 4 blocks of width 128, 4 heads, 512 words; a micro batch of 2 x 128 tokens.
#[test]
fn the_profile_counts_the_products_of_the_model() {
    let text = format!(
        r#"let engine = init_engine(load_model({:?}), #{{
    micro_batch_size: 2,
    flops_profiler: #{{ enabled: true, profile_step: 2, top_modules: 3, output_file: "out/profile.txt", recompute_fwd_factor: 0.5 }},
}});
for batch in dataset({:?}).loader(#{{ micro_batch_size: 2 }}) {{
    engine.backward(engine.forward(batch));
    engine.step();
    if engine.global_step == 4 {{ break; }}
}}
print(engine.model.num_params);
"#,
        "model", "tokens.parquet",
    );
    let recipe = Recipe::new(&text);
    copy(&golden("gpt2-tiny-v512"), &recipe.directory().join("model"));
    copy(&golden("tokens-v512.parquet"), &recipe.directory().join("tokens.parquet"));
    let (printed, notes) = recipe.prints_and_notes();
    // The profiler turns the breakdown on; the profile itself goes to its file.
    assert!(notes.iter().all(|line| line.starts_with("time (ms)")) && notes.len() == 4);
    let profile = fs::read_to_string(recipe.directory().join("out/profile.txt")).unwrap();
    assert!(profile.starts_with("flops profile of step 3\n"), "{profile}");

    let (n, t, c, v) = (2.0 * 128.0, 128.0, 128.0, 512.0);
    let block = n * c * 3.0 * c + n * c * c + 2.0 * n * c * 4.0 * c + 2.0 * n * t * c;
    let macs = 4.0 * block + n * c * v;
    // Biases and activations, and nine layer norms.
    let others = 4.0 * n * (3.0 * c + c + 4.0 * c + c + 4.0 * c) + 9.0 * 5.0 * n * c;
    let params: f64 = printed[0].parse().unwrap();
    let millions = |count: f64| format!("{} M", (count / 1e4).round() / 100.0);
    let value = |what: &str| {
        let line = profile.lines().find(|line| line.starts_with(what));
        let line = line.unwrap_or_else(|| panic!("{what}: {profile}"));
        line[78..].trim().to_owned()
    };
    assert_eq!(value("fwd MACs per rank:"), format!("{}MACs", millions(macs)));
    assert_eq!(value("fwd flops per rank:"), millions(2.0 * macs + others));
    assert_eq!(value("params per rank:"), format!("{} K", (params / 10.0).round() / 100.0));
    for rate in ["fwd FLOPS", "bwd FLOPS per rank = 2.5 *", "fwd+bwd FLOPS per rank = 3.5 *"] {
        assert!(value(rate).ends_with("FLOPS"), "{}", value(rate));
    }
    for latency in ["fwd latency:", "bwd latency:", "step latency:", "iter latency:"] {
        assert!(value(latency).ends_with('s'), "{}", value(latency));
    }
    let attention = "    attn (Attention): 66.05 K = ";
    assert_eq!(profile.matches(attention).count(), 4, "{profile}");
    for part in ["depth 3:\n", "  h.3 (Block): 198.27 K = ", "      act (gelu_new): 0 = 0% params"]
    {
        assert!(profile.contains(part), "{part}: {profile}");
    }
    let measured = |line: &&str| line.contains(" latency, ");
    let modules = profile.lines().filter(|line| line.contains("% params, "));
    // All but the projection inside the head, which runs with the loss.
    assert_eq!(modules.clone().count(), 1 + 1 + 4 * 10 + 3);
    assert_eq!(modules.filter(measured).count(), 1 + 1 + 4 * 10 + 2, "{profile}");
}

#[test]
fn a_place_that_cannot_be_written_is_refused_before_the_training() {
    for option in [
        "csv_monitor: #{ enabled: true, output_path: \"rows.jsonl\" }",
        "tensorboard: #{ enabled: true, output_path: \"rows.jsonl\" }",
        "flops_profiler: #{ enabled: true, output_file: \"rows.jsonl/profile.txt\" }",
        "flops_profiler: #{ enabled: true, output_file: \"rows.jsonl\" }",
    ] {
        let failure = recipe(1, option).fails();
        assert_eq!(failure.faults[0].error.code(), Code::Io, "{option}");
        let column = if option.starts_with("flops") { 52 } else { 18 };
        assert_eq!(places(&failure)[0].1, format!("recipe.rhai:6:{column}"), "{option}");
    }
}

/// A disk that is full later is an error that names the file; the step is done, and the engine can
/// be saved.
#[test]
fn a_failed_write_loses_no_step() {
    let options = "wall_clock_breakdown: true, csv_monitor: #{ enabled: true, job_name: \"full\" }";
    let recipe = recipe(1, options);
    let path = recipe.directory().join("recipe.rhai");
    let text = fs::read_to_string(&path).unwrap().replace(
        "if engine.step() { print(engine.loss); }",
        "try { engine.step(); } catch (e) { print(e.message); }",
    );
    fs::write(&path, format!("{text}engine.save_checkpoint(\"checkpoints\");\n")).unwrap();
    fs::create_dir(recipe.directory().join("full")).unwrap();
    let file = "Train_Samples_elapsed_time_ms_step.csv";
    std::os::unix::fs::symlink("/dev/full", recipe.directory().join("full").join(file)).unwrap();
    let (printed, _) = recipe.prints_and_notes();
    assert_eq!(printed.len(), 1, "{printed:?}");
    assert!(printed[0].contains(file) && printed[0].contains("it is a link"), "{printed:?}");
    assert!(recipe.directory().join("checkpoints/step-00000001").exists());
}

/// Of two ranks one writes, and the samples are those of both.
#[test]
fn only_the_first_rank_logs() {
    let options = "csv_monitor: #{ enabled: true, output_path: \"logs\" }, steps_per_print: 1";
    let recipe = recipe(2, options);
    let notes = two_ranks(recipe.directory(), &["run", "recipe.rhai"]).into_iter().map(|output| {
        out(&output);
        text(&output.stderr).lines().filter(|line| line.starts_with("step=")).count()
    });
    assert_eq!(notes.collect::<Vec<_>>(), [2, 0]);
    let rates = csv(&recipe, "logs/DeepSpeedJobName/Train_Samples_lr.csv");
    assert_eq!(rates, [(8, 0.25), (16, 0.125)]);
}

fn event_files(dir: &Path) -> Vec<PathBuf> {
    let names = names(dir).into_iter().filter(|name| name.starts_with("events.out.tfevents."));
    names.map(|name| dir.join(name)).collect()
}

#[derive(Debug, Default, PartialEq)]
struct Scalar {
    tag: String,
    step: u64,
    value: f32,
}

/// Reads an event file: the version, then scalars; checks every checksum.
fn scalars(path: &Path) -> Vec<Scalar> {
    let bytes = fs::read(path).unwrap();
    let mut rest = bytes.as_slice();
    let mut events = Vec::new();
    while !rest.is_empty() {
        let (length, checksum) = (&rest[..8], &rest[8..12]);
        assert_eq!(checksum, masked_crc32c(length));
        let end = 12 + u64::from_le_bytes(length.try_into().unwrap()) as usize;
        assert_eq!(&rest[end..end + 4], masked_crc32c(&rest[12..end]));
        events.push(fields(&rest[12..end]));
        rest = &rest[end + 4..];
    }
    let version = events.remove(0);
    assert_eq!(version[1], (3, Field::Bytes(b"brain.Event:2".to_vec())));
    events.iter().map(|event| scalar(event)).collect()
}

fn scalar(event: &[(u64, Field)]) -> Scalar {
    let [(1, Field::Fixed64(time)), (2, Field::Varint(step)), (5, Field::Bytes(summary))] = event
    else {
        panic!("{event:?}")
    };
    assert!(f64::from_bits(*time) > 1.7e9, "seconds since 1970");
    let [(1, Field::Bytes(value))] = &fields(summary)[..] else { panic!("{summary:?}") };
    let [(1, Field::Bytes(tag)), (2, Field::Fixed32(value))] = &fields(value)[..] else {
        panic!("{value:?}")
    };
    let tag = String::from_utf8(tag.clone()).unwrap();
    Scalar { tag, step: *step, value: f32::from_bits(*value) }
}

#[derive(Debug, PartialEq)]
enum Field {
    Varint(u64),
    Fixed32(u32),
    Fixed64(u64),
    Bytes(Vec<u8>),
}

/// The fields of a protocol buffer message with their numbers.
fn fields(mut message: &[u8]) -> Vec<(u64, Field)> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let field = match key & 7 {
            0 => Field::Varint(varint(&mut message)),
            1 => Field::Fixed64(u64::from_le_bytes(take(&mut message, 8).try_into().unwrap())),
            2 => {
                let length = varint(&mut message) as usize;
                Field::Bytes(take(&mut message, length).to_vec())
            }
            5 => Field::Fixed32(u32::from_le_bytes(take(&mut message, 4).try_into().unwrap())),
            other => panic!("wire type {other}"),
        };
        fields.push((key >> 3, field));
    }
    fields
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(n);
    *bytes = rest;
    taken
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn masked_crc32c(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}
