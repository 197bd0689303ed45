//! ZeRO's stages: the losses of one rank, whatever is divided among how many.
//!
//! Ranks that are measured are processes: a test starts this test binary again, once a rank, with
//! the filter `zero::rank`. All trainings have the same twelve rows a step.

use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    process::{Command, Output},
    rc::Rc,
};

use dsr::{
    checkpoint::Store,
    config::{Dtype, EngineConfig, PrecisionConfig},
    dist::{ProcessGroup, Rendezvous},
    engine::{Engine, MemoryUse},
    fs::Place,
    generation::{FinishReason, Prompt, Sampling, generate},
    model::{Model, ModelConfig},
    run::{load_checkpoint, save_checkpoint},
    tensor::Device,
};

use crate::support::{
    alone,
    files::golden,
    numbers::assert_relative,
    program::{out, two_ranks},
    ranks::{run, said, threads},
    stages::{GLOBAL_BATCH, in_16_bits, small_shape, train, trainings, zero},
    tiny::{config, gpt2, model},
};

const STEPS: usize = 3;

/// Loss and norm of each step, by the name of the training and its stage.
type Curves = BTreeMap<(String, u8), Vec<(f64, f64)>>;

/// Trainings that take part on any number of ranks. Others differ in what an optimizer does with its
/// part, for which two ranks and the uneven parts of three stand.
const EVERYWHERE: [&str; 3] = ["fp32", "bf16", "accumulated"];

fn curves(group: &Rc<ProcessGroup>, most_stage: u8) -> Curves {
    let mut curves = Curves::new();
    for (name, config) in trainings(group.world_size()) {
        if group.world_size() > 3 && !EVERYWHERE.contains(&name) {
            continue;
        }
        for stage in 0..=most_stage {
            // The plain training also as it is with overlap and small pieces.
            let overlaps: &[bool] = if name == "fp32" { &[false, true] } else { &[false] };
            for &overlap in overlaps {
                let config = EngineConfig { zero: zero(stage, overlap), ..config.clone() };
                let mut engine = Engine::new(model(0.0), Rc::clone(group), config).unwrap();
                let name = if overlap { format!("{name} in pieces") } else { name.to_owned() };
                curves.insert((name, stage), train(&mut engine, 0, STEPS));
            }
        }
    }
    curves
}

/// One rank of a test below.
#[test]
#[ignore = "is started by the other tests, once a rank"]
fn rank() {
    let rendezvous = Rendezvous::from_env(|name| env::var(name).ok()).unwrap().unwrap();
    let group = Rc::new(ProcessGroup::connect(&rendezvous, Device::Cpu).unwrap());
    match env::var("ZERO_CASE").unwrap().as_str() {
        "memory" => {
            for stage in 0..=3 {
                let (psi, unit, use_) = memory(&group, stage);
                let MemoryUse { parameters, master_weights, optimizer_state, gradients, .. } = use_;
                let fixed = parameters + master_weights + optimizer_state;
                let peak = use_.peak();
                println!("\nmemory|{stage}|{psi}|{unit}|{fixed}|{gradients}|{peak}");
            }
        }
        _ => println!("\npeak|{}", peak_of_a_step(&group)),
    }
    group.barrier().unwrap();
}

/// What each of `world_size` ranks prints.
fn outputs(world_size: usize, case: &str, env: &[(&str, &str)]) -> Vec<String> {
    let rank = || {
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", "zero::rank", "--ignored", "--nocapture"])
            .envs(env.iter().copied())
            .env("ZERO_CASE", case);
        command
    };
    let printed = |output: Output| {
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    run(world_size, rank).into_iter().map(printed).collect()
}

/// Every stage on one to four ranks has the losses of one rank: 1e-5 in float32, whose sums are in
/// another order, which the updates of Lion (a sign) and of Muon (an iteration) make larger; 2e-3
/// in bfloat16, whose gradients of activations are rounded in other places. On two ranks the stages
/// agree to the last bit, but for those that add up micro batches before or after the ranks.
///
/// The ranks are threads, as nothing is drawn at random. Four train what [`EVERYWHERE`] names.
#[test]
fn every_stage_trains_as_one_rank_does() {
    let _alone = alone();
    let single = Rc::new(ProcessGroup::single(Device::Cpu).unwrap());
    let expected = curves(&single, 0);
    for world_size in [2, 3, 4] {
        let all = threads(world_size, |group| curves(group, 3));
        assert!(all.iter().all(|curves| *curves == all[0]), "the ranks disagree");
        let trained = if world_size > 3 { EVERYWHERE.len() + 1 } else { expected.len() };
        assert_eq!(all[0].len(), 4 * trained);
        for ((name, stage), curve) in &all[0] {
            let (loss_tolerance, norm_tolerance) = match name.as_str() {
                "bf16" | "bf16 weights" | "fp16" => (2e-3, 2e-2),
                "bf16 state" | "8-bit state" | "Lion" | "Muon" => (2e-4, 2e-3),
                _ => (1e-5, 1e-4),
            };
            let one = &expected[&(name.clone(), 0)];
            for (step, (found, wanted)) in curve.iter().zip(one).enumerate() {
                let what = format!("{name}, stage {stage}, {world_size} ranks, step {step}");
                assert_relative(&what, found.0, wanted.0, loss_tolerance);
                assert_relative(&format!("{what}: norm"), found.1, wanted.1, norm_tolerance);
            }
            if world_size == 2 && (name != "accumulated" || *stage < 2) {
                assert_eq!(curve, &all[0][&(name.clone(), 0)], "{name}, stage {stage}: bits");
            }
        }
    }
}

/// A number of ranks, a stage and a precision.
type Way = (usize, u8, Dtype);

/// Two steps and a checkpoint, or two steps more from it.
fn checkpoint(group: &Rc<ProcessGroup>, way: Way, dir: &Path, saves: bool) -> Vec<(f64, f64)> {
    let plain = config(GLOBAL_BATCH / group.world_size(), 1);
    let precision = PrecisionConfig::new(way.2);
    let config = EngineConfig { zero: zero(way.1, true), precision, ..plain };
    let mut engine = Engine::new(model(0.0), Rc::clone(group), config).unwrap();
    let store = Store::open(Place::unguarded(dir));
    if !saves {
        load_checkpoint(&mut engine, None, store.latest().unwrap()).unwrap();
        return train(&mut engine, 2 * GLOBAL_BATCH as u64, 2);
    }
    let curve = train(&mut engine, 0, 2);
    if group.rank() == 0 {
        save_checkpoint(&engine, &store, None, None, None).unwrap();
    } else {
        engine.write_state(None, None, None).unwrap();
    }
    curve
}

/// A checkpoint of any stage, number of ranks and precision goes on with any other: the losses are
/// those of a training that was not interrupted, 1e-5 in float32, 2e-3 in bfloat16.
#[test]
fn a_checkpoint_goes_on_with_other_ranks_and_stages() {
    let _alone = alone();
    let single = Rc::new(ProcessGroup::single(Device::Cpu).unwrap());
    let mut whole = Engine::new(model(0.0), single, config(GLOBAL_BATCH, 1)).unwrap();
    let expected = train(&mut whole, 0, 4).split_off(2);
    let (fp32, bf16) = (Dtype::Fp32, Dtype::Bf16);
    let turns: [(Way, Way); 7] = [
        ((2, 2, fp32), (3, 1, fp32)),
        ((3, 1, fp32), (1, 0, fp32)),
        ((1, 0, fp32), (4, 2, fp32)),
        ((4, 2, bf16), (2, 1, bf16)),
        ((2, 1, bf16), (2, 3, fp32)),
        ((2, 3, fp32), (3, 3, bf16)),
        ((3, 3, bf16), (1, 0, fp32)),
    ];
    for (saved, resumed) in turns {
        let dir = tempfile::tempdir().unwrap();
        let run =
            |way: Way, saves| threads(way.0, |group| checkpoint(group, way, dir.path(), saves));
        run(saved, true);
        let tolerance = if [saved.2, resumed.2].contains(&bf16) { 2e-3 } else { 1e-5 };
        for curve in run(resumed, false) {
            assert_eq!(curve.len(), 2);
            for (found, wanted) in curve.iter().zip(&expected) {
                assert_relative(&format!("{saved:?} {resumed:?}"), found.0, wanted.0, tolerance);
            }
        }
    }
}

/// Parameters with their padding, elements of the largest unit, and what a step of a bfloat16 model
/// with gradients in 16 bits used: GPT-2 124M or a small one.
fn memory(group: &Rc<ProcessGroup>, stage: u8) -> (usize, usize, MemoryUse) {
    let large = env::var("ZERO_MODEL").is_ok();
    let shape = if large { gpt2([]) } else { small_shape(128) };
    let model = Rc::new(Model::from_scratch(&shape, 1, Device::Cpu).unwrap());
    let config = in_16_bits(zero(stage, false));
    let mut engine = Engine::new(Rc::clone(&model), Rc::clone(group), config).unwrap();
    train(&mut engine, 0, 1);
    let units = || model.units().iter().map(|unit| unit.padded_numel() as usize);
    (units().sum(), units().max().unwrap(), engine.memory())
}

/// Bytes of a rank by the ZeRO paper for P parameters and N ranks, with gradients in 16 bits: 16 P;
/// 4 P + 12 P / N; 2 P + 14 P / N; 16 P / N. First without the gradients' share, then that.
fn formula(stage: u64, p: u64, n: u64) -> (u64, u64) {
    match stage {
        0 => (14 * p, 2 * p),
        1 => (2 * p + 12 * p / n, 2 * p),
        2 => (2 * p + 12 * p / n, 2 * p / n),
        _ => (14 * p / n, 2 * p / n),
    }
}

/// Parameters, master weights and averages are the formula's to 3 %, at stage 3 beside the one unit
/// that is gathered, and so are the gradients but for the units that are being summed at the moment of the peak: two, and what the threads of the
/// transport let go of a moment after the sum is there, which is few units and varies. A later stage
/// never needs more.
fn memory_follows_the_formulas(world_sizes: &[usize], env: &[(&str, &str)]) {
    let _alone = alone();
    println!("ranks  stage  16P.., bytes  counted, bytes  of that gradients  peak, bytes");
    for &n in world_sizes {
        let output = outputs(n, "memory", env).swap_remove(0);
        let lines = output.lines().filter_map(|line| line.strip_prefix("memory|"));
        let mut least = u64::MAX;
        for line in lines {
            let numbers: Vec<u64> = line.split('|').map(|x| x.parse().unwrap()).collect();
            let &[stage, p, unit, fixed, gradients, peak] = numbers.as_slice() else { panic!() };
            let (expected, share) = formula(stage, p, n as u64);
            let (all, counted) = (expected + share, fixed + gradients);
            println!("{n:5}  {stage:5}  {all:12}  {counted:14}  {gradients:17}  {peak:11}");
            let gathered = if stage == 3 && n > 1 { 2 * unit } else { 0 };
            assert!(fixed * 100 >= 97 * expected, "{n} ranks: {line}");
            assert!(fixed <= expected * 103 / 100 + gathered, "{n} ranks: {line}");
            let under_way = 6 * 2 * unit;
            assert!(gradients <= share * 103 / 100 + under_way, "{n} ranks: {line}");
            // The threads of the transport let go of single numbers a moment late.
            assert!(peak <= least.saturating_add(4096), "{n} ranks, stage {stage} needs more");
            least = least.min(peak);
        }
        assert_ne!(least, u64::MAX, "{output}");
    }
}

#[test]
fn bytes_of_a_rank_follow_the_formulas() {
    memory_follows_the_formulas(&[1, 2, 4], &[]);
}

#[test]
#[ignore = "takes 10 GB and minutes"]
fn bytes_of_a_rank_follow_the_formulas_for_gpt2() {
    memory_follows_the_formulas(&[1, 2, 4], &[("ZERO_MODEL", "gpt2")]);
}

/// Bytes of memory that a rank of GPT-2 124M has had at once after a step on one row of 32 tokens, at
/// the stage `ZERO_STAGE`.
fn peak_of_a_step(group: &Rc<ProcessGroup>) -> u64 {
    let stage = env::var("ZERO_STAGE").unwrap().parse().unwrap();
    let model = Rc::new(Model::from_scratch(&gpt2([]), 1, Device::Cpu).unwrap());
    let mut engine = Engine::new(model, Rc::clone(group), in_16_bits(zero(stage, false))).unwrap();
    train(&mut engine, 0, 1);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    1024 * peak.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap()
}

/// What the kernel counts of a process falls from stage to stage by what the stage divides: at two
/// ranks half of 12 P, of 2 P and of 2 P more. A quarter of it at least, as the allocator keeps some
/// of what is freed and the token embedding, a third of the model, is whole for a moment.
#[test]
fn the_memory_of_a_process_falls_from_stage_to_stage() {
    let _alone = alone();
    let mut before = None;
    for (stage, divided) in [("0", 0), ("1", 12), ("2", 2), ("3", 2)] {
        let outputs = outputs(2, "peak", &[("ZERO_STAGE", stage)]);
        let peak = |said: &String| {
            let peak = said.lines().find_map(|line| line.strip_prefix("peak|")).unwrap();
            peak.parse::<u64>().unwrap()
        };
        let peak = outputs.iter().map(peak).max().unwrap();
        println!("stage {stage}: {} MB", peak / 1_000_000);
        if let Some(before) = before {
            let saved = divided * PARAMETERS / 2;
            assert!(peak + saved / 4 <= before, "stage {stage}: {peak}, before {before}");
        }
        before = Some(peak);
    }
}

/// Ranks of stage 3 go on with prompts of their own, or all with the same ones: as one process does, to
/// the bit. They end at different times, one has nothing to do, and a decoder behind an encoder runs
/// alone in most passes.
#[test]
fn ranks_that_share_the_parameters_out_generate_as_one_process_does() {
    let _alone = alone();
    let prompt =
        |i: i64| Prompt { tokens: (0..=5 * i).map(|j| (i + 7 * j) % 500).collect(), seed: 3 };
    let prompts: Vec<Prompt> = (0..9).map(prompt).collect();
    let sampling =
        Sampling { max_new_tokens: 12, batch_size: 3, logprobs: true, ..Sampling::default() };
    for name in ["llama-gqa", "t5-v11"] {
        let ended = |group: &Rc<ProcessGroup>, stage, prompts: &[Prompt]| {
            let dir = golden("families").join(name);
            let shape = ModelConfig::read(Place::unguarded(&dir)).unwrap();
            let model = Rc::new(Model::load(Place::unguarded(&dir), &shape, Device::Cpu).unwrap());
            let config = EngineConfig { zero: zero(stage, false), ..config(1, 1) };
            let engine = Engine::new(model, Rc::clone(group), config).unwrap();
            let ends: Vec<i64> = (0..40).collect();
            generate(engine.model(), prompts, &sampling, &ends, &mut ()).unwrap()
        };
        let single = Rc::new(ProcessGroup::single(Device::Cpu).unwrap());
        let expected = ended(&single, 0, &prompts);
        let reasons: Vec<_> = expected.iter().map(|ended| ended.reason).collect();
        assert!(reasons.contains(&FinishReason::EosToken), "texts end early");
        let all = threads(2, |group| ended(group, 3, &prompts));
        assert!(all.iter().all(|found| *found == expected), "{name}, the same on each rank");
        // Rank 0 has the first two, rank 1 none, rank 2 the rest.
        let all = threads(3, |group| {
            let own = [&prompts[..2], &[], &prompts[2..]][group.rank()];
            ended(group, 3, own)
        });
        assert_eq!(all.concat(), expected, "{name}, on one rank each");
    }
}

/// Of GPT-2 124M.
const PARAMETERS: u64 = 124_439_808;

/// A recipe asks for a stage as DeepSpeed's users know it, and all else that a model is for works
/// while its parameters are on other ranks: evaluation with unequal shares of the rows, generation,
/// an export.
#[test]
fn a_recipe_trains_evaluates_generates_and_exports_at_every_stage() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = |stage| {
        format!(
            r#"let model = new_model("gpt2", #{{ n_layer: 3, n_embd: 32, n_head: 2, n_positions: 64 }});
let engine = init_engine(model, #{{
    micro_batch_size: 2,
    optimizer: #{{ type: "AdamW", lr: 1e-3 }},
    precision: "bf16",
    zero: #{{ stage: {stage}, overlap_comm: true, stage3_param_persistence_threshold: 1000 }},
}});
let words = tokenizer("dsr:gpt2");
let rows = dataset("dsr:austen").tokenize(words).pack(32);
for batch in rows.loader(#{{ micro_batch_size: 2 }}) {{
    let loss = engine.forward(batch);
    engine.backward(loss);
    if engine.step() && engine.global_step == 3 {{ break; }}
}}
print(`step ${{engine.global_step}}`);
print(`eval ${{engine.evaluate(rows.take(5)).loss}}`);
print(generate(model, words, "It is", #{{ max_new_tokens: 5, temperature: 0.0 }}));
model.export_hf("export-{stage}");
// A second engine begins with what the first has made of the model.
let second = init_engine(model, #{{ micro_batch_size: 2, precision: "fp32" }});
print(second.evaluate(rows.take(5)).loss);
"#
        )
    };
    let mut said = Vec::new();
    for stage in [0, 2, 3] {
        let file = format!("{stage}.rhai");
        std::fs::write(dir.path().join(&file), recipe(stage)).unwrap();
        let ranks = two_ranks(dir.path(), &["run", &file]);
        let all: Vec<_> = ranks.iter().map(out).collect();
        assert_eq!(all.len(), 2);
        said.push(all[0].clone());
        assert!(said[0].contains("step 3\neval "), "{}", said[0]);
    }
    assert!(said.iter().all(|other| *other == said[0]), "{said:?}");
    let weights = |stage| {
        std::fs::read(dir.path().join(format!("export-{stage}/model.safetensors"))).unwrap()
    };
    assert!(weights(0) == weights(2) && weights(0) == weights(3), "other parameters");
}
