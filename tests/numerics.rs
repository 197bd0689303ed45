//! How exactly libtorch computes: each engine as it was told, and on a GPU twice the same.

use dsr::{
    config::{EngineConfig, MatmulPrecision, Numerics},
    tensor::cuda_is_available,
};

use crate::support::{
    alone,
    numbers::assert_relative,
    program::{dsr, out},
    recipe::Recipe,
    tiny::{config, init_engine, loader, model, train},
};

fn with(numerics: Numerics) -> EngineConfig {
    EngineConfig { numerics, ..config(4, 2) }
}

fn curve(numerics: Numerics) -> Vec<(f64, f64)> {
    train(&mut init_engine(model(0.1), with(numerics)), &mut loader(4), 3)
}

/// The CPU repeats itself anyway: with `deterministic` too every operation of a step has a form, and
/// not a bit changes.
#[test]
fn deterministic_changes_nothing_on_the_cpu() {
    let _alone = alone();
    let deterministic = curve(Numerics { deterministic: true, ..Numerics::default() });
    assert_eq!(deterministic, curve(Numerics::default()));
}

/// libtorch has one precision for all, and yet an engine beside one of another precision trains as it
/// does alone. Where the CPU has bf16, "medium" shows in the losses: by less than 1e-3, as a product of
/// numbers with 8 bits of precision is off by 2e-3 and the errors of many cancel out.
#[test]
fn each_engine_computes_with_its_own_precision() {
    let _alone = alone();
    let numerics = |matmul_precision| Numerics { matmul_precision, ..Numerics::default() };
    let [highest, high] =
        [MatmulPrecision::Highest, MatmulPrecision::High].map(|of| curve(numerics(of)));
    assert_eq!(highest, high, "\"high\" is for GPUs");
    let mut engines = [MatmulPrecision::Highest, MatmulPrecision::Medium]
        .map(|of| init_engine(model(0.1), with(numerics(of))));
    let mut loaders = [loader(4), loader(4)];
    let mut curves = [Vec::new(), Vec::new()];
    for _ in 0..highest.len() {
        for ((engine, loader), curve) in engines.iter_mut().zip(&mut loaders).zip(&mut curves) {
            curve.extend(train(engine, loader, 1));
        }
    }
    let [plain, medium] = curves;
    assert_eq!(plain, highest);
    for (step, (medium, highest)) in medium.iter().zip(&highest).enumerate() {
        assert_relative(&format!("loss {step}"), medium.0, highest.0, 1e-3);
    }
}

/// A training in 16 bits with what could add up in another order: attention, dropout, several micro
/// batches, and the same tokens again and again.
const TRAINING: &str = r#"
    let tok = tokenizer("dsr:gpt2");
    let ds = dataset("dsr:austen").tokenize(tok).pack(256).take(64);
    let model = new_model("gpt2", #{ n_layer: 2, n_head: 4, n_embd: 256, n_positions: 256 });
    let engine = init_engine(model, #{
        micro_batch_size: 4, gradient_accumulation_steps: 2, precision: "bf16", deterministic: true,
    });
    for batch in ds.loader(#{ micro_batch_size: 4 }) {
        engine.backward(engine.forward(batch));
        if engine.step() { print(`${engine.loss} ${engine.grad_norm}`); }
    }
    print(engine.evaluate(ds).loss);
"#;

#[test]
fn two_deterministic_runs_on_a_gpu_are_equal_to_the_bit() {
    if !cuda_is_available() {
        return println!("skipped: libtorch sees no CUDA device here");
    }
    let recipe = Recipe::new(TRAINING);
    let run = || {
        let mut command = dsr(recipe.directory(), &["run", "recipe.rhai"]);
        out(&command.env("DSR_DEVICE", "cuda").output().unwrap())
    };
    let (first, second) = (run(), run());
    assert_eq!(first.lines().count(), 9, "{first}");
    assert_eq!(first, second);
}

/// Whoever sets cuBLAS's workspace otherwise is told, and not given runs that differ.
#[test]
fn deterministic_on_a_gpu_needs_cublas_to_repeat_itself() {
    if !cuda_is_available() {
        return println!("skipped: libtorch sees no CUDA device here");
    }
    let recipe = Recipe::new(TRAINING);
    let mut command = dsr(recipe.directory(), &["run", "recipe.rhai"]);
    let command = command.env("DSR_DEVICE", "cuda").env("CUBLAS_WORKSPACE_CONFIG", ":0:0");
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && errors.contains("CUBLAS_WORKSPACE_CONFIG"), "{errors}");
}
