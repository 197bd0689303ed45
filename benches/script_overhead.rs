//! What the script host costs: the explicit loop of a recipe beside the same loop in Rust, on the
//! golden model.
//!
//!     cargo bench --bench script_overhead [rounds: 8]
//!
//! Both train the same model on the same rows with the same settings, in turns (A B A B) in one
//! process; the time of each optimizer step is taken in the same place. The losses must be the same
//! to the bit.
#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::{cell::RefCell, error::Error, path::Path, rc::Rc, time::Instant};

use dsr::{
    config::{
        Dtype, EngineConfig, LossAverage, MeshConfig, MonitorConfig, Numerics, OptimizerConfig,
        OutlierConfig, PrecisionConfig, Schedule, TrainableConfig, ZeroConfig,
    },
    data::{DataSource, Dataset, LoaderOptions, OpenOptions},
    dist::ProcessGroup,
    engine::Engine,
    fs::Place,
    model::{Model, ModelConfig},
    recipe::Recipe,
    script::{Host, Session},
    tensor::Device,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const STEPS: u64 = 15;
const MICRO: usize = 2;
const ACCUM: usize = 4;

/// Milliseconds of each step after the first, and the last loss.
struct Round {
    step_ms: Vec<f64>,
    loss: f64,
}

fn main() -> Result<()> {
    let rounds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(8);
    let (mut rust, mut recipe) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (in_rust, in_recipe) = (in_rust()?, in_recipe()?);
        if in_rust.loss.to_bits() != in_recipe.loss.to_bits() {
            return Err(
                format!("the losses differ: {} and {}", in_rust.loss, in_recipe.loss).into()
            );
        }
        rust.extend(in_rust.step_ms);
        recipe.extend(in_recipe.step_ms);
    }
    let (rust, recipe) = (Spread::of(rust), Spread::of(recipe));
    println!("| loop | ms a step, median (10 % to 90 %) |\n|---|---|");
    println!("| Rust | {rust} |\n| recipe | {recipe} |");
    println!("\nthe recipe takes {:+.2} %", 100.0 * (recipe.median / rust.median - 1.0));
    Ok(())
}

fn in_rust() -> Result<Round> {
    let dir = golden("gpt2-tiny-v512");
    let model = Model::load(
        Place::unguarded(&dir),
        &ModelConfig::read(Place::unguarded(&dir))?,
        Device::Cpu,
    )?;
    let group = Rc::new(ProcessGroup::single(Device::Cpu)?);
    let mut engine = Engine::new(Rc::new(model), group, config())?;
    let rows = Dataset::open(
        DataSource::unguarded(&golden("tokens-v512.parquet").display().to_string()),
        &OpenOptions::default(),
    )?;
    let options = LoaderOptions { micro_batch_size: MICRO, ..LoaderOptions::default() };
    let mut loader = rows.loader(options)?;
    let mut times = vec![Instant::now()];
    while engine.global_step() < STEPS {
        let batch = loader.next_batch()?.ok_or("too few rows")?;
        let loss = engine.forward(&batch)?;
        engine.backward(&loss)?;
        if engine.step()? {
            times.push(Instant::now());
        }
    }
    let loss = engine.last_step().ok_or("no step")?.loss;
    Ok(Round { step_ms: between(&times), loss })
}

fn in_recipe() -> Result<Round> {
    let text = format!(
        r#"
let model = load_model("{}");
let engine = init_engine(model, #{{
    micro_batch_size: {MICRO}, gradient_accumulation_steps: {ACCUM}, optimizer: #{{ lr: 5e-4 }},
}});
let loader = dataset("{}").loader(#{{ micro_batch_size: {MICRO} }});
mark(0.0);
for batch in loader {{
    let loss = engine.forward(batch);
    engine.backward(loss);
    if engine.step() {{
        mark(engine.loss);
        if engine.global_step == {STEPS} {{ break; }}
    }}
}}
"#,
        golden("gpt2-tiny-v512").display(),
        golden("tokens-v512.parquet").display(),
    );
    let times = Rc::new(RefCell::new((Vec::new(), 0.0)));
    let sink = Rc::clone(&times);
    let mut functions = rhai::Module::new();
    rhai::FuncRegistration::new("mark").set_into_module(&mut functions, move |loss: f64| {
        let mut times = sink.borrow_mut();
        times.0.push(Instant::now());
        times.1 = loss;
    });
    let mut session = Session::new(Host::new(".", |_| ()));
    session.add_functions(functions);
    let recipe = Recipe { name: "loop.rhai".into(), text, base_dir: ".".into() };
    session.run(&recipe).map_err(|failure| format!("{:?}", failure.faults))?;
    let (times, loss) = &*times.borrow();
    Ok(Round { step_ms: between(times), loss: *loss })
}

fn config() -> EngineConfig {
    let optimizer = OptimizerConfig { lr: 5e-4, ..OptimizerConfig::default() };
    EngineConfig {
        micro_batch_size: MICRO,
        gradient_accumulation_steps: ACCUM,
        numerics: Numerics::default(),
        precision: PrecisionConfig::new(Dtype::Fp32),
        batch_choice: dsr::config::BatchChoice::Given,
        gradient_clipping: Some(1.0),
        loss_average: LossAverage::Tokens,
        ema: None,
        outliers: OutlierConfig::default(),
        optimizer,
        trainable: TrainableConfig::default(),
        scheduler: Schedule::Constant,
        activation_checkpointing: None,
        sparse_attention: None,
        tiled_mlp: None,
        zero: ZeroConfig::default(),
        mesh: MeshConfig::default(),
        seed: 42,
        monitor: MonitorConfig::default(),
    }
}

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Milliseconds of each step after the first, which warms up.
fn between(times: &[Instant]) -> Vec<f64> {
    times.windows(2).skip(1).map(|pair| (pair[1] - pair[0]).as_secs_f64() * 1000.0).collect()
}

struct Spread {
    low: f64,
    median: f64,
    high: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| values[((values.len() - 1) as f64 * share) as usize];
        Self { low: at(0.1), median: at(0.5), high: at(0.9) }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.2} ({:.2} to {:.2})", self.median, self.low, self.high)
    }
}
