//! What a forward pass costs, module by module: parameters, multiply-accumulates, operations and
//! measured time.
//!
//! Operations are counted from shapes with the formulas of DeepSpeed's flops profiler: `2 M N K` for
//! a product of `M x K` and `K x N`, one addition for each element a bias is added to, 5 for each
//! element of a layer norm, 1 for each element of an activation. Attention counts all pairs of
//! tokens, whether or not the mask lets one see the other. Embeddings, dropout, residual additions
//! and the loss count nothing.
//!
//! A training step does three times the products of its forward pass: the backward pass has one for
//! the gradient of each side. [`Model::flops_per_token`] counts these alone, which PaLM's paper calls
//! model FLOPs, whatever activation checkpointing computes again.
//!
//! Time is measured by a [`Recorder`] that the layers hand down; a module that the code does not
//! run on its own has none.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt::Display,
    time::{Duration, Instant},
};

use super::{LayerCost, Model, Workload, cost::FLOAT_BYTES};
use crate::{
    bridge::trace::range,
    tensor::{Device, synchronize},
};

/// One module, its children included.
#[derive(Debug, Clone, PartialEq)]
pub struct ModuleProfile {
    /// Its name within the one above it.
    pub name: String,
    /// The kind of module.
    pub kind: &'static str,
    /// Parameters, a tied projection counted where it is stored and where it is used.
    pub params: u64,
    /// Multiply-accumulates of matrix products.
    pub macs: u64,
    /// Floating-point operations.
    pub flops: u64,
    /// What it took, where it was measured.
    pub latency: Option<Duration>,
    /// The modules inside.
    pub children: Vec<Self>,
}

impl ModuleProfile {
    /// A module without any inside. `name` is the one that its [`Recorder`] scope has.
    pub(super) fn new(name: impl Into<String>, kind: &'static str) -> Self {
        let (name, children) = (name.into(), Vec::new());
        Self { name, kind, params: 0, macs: 0, flops: 0, latency: None, children }
    }

    /// A product of `rows` rows of `inputs` with a matrix of `inputs` x `outputs`.
    pub(super) fn linear(
        name: &str,
        kind: &'static str,
        rows: i64,
        (inputs, outputs): (i64, i64),
        bias: bool,
    ) -> Self {
        let bias = i64::from(bias);
        let macs = (rows * inputs * outputs) as u64;
        Self {
            params: (inputs * outputs + bias * outputs) as u64,
            macs,
            flops: 2 * macs + (bias * rows * outputs) as u64,
            ..Self::new(name, kind)
        }
    }

    /// This module with others inside, whose costs are added to its own.
    pub(super) fn with(mut self, children: Vec<Self>) -> Self {
        for child in &children {
            self.params += child.params;
            self.macs += child.macs;
            self.flops += child.flops;
        }
        self.children = children;
        self
    }

    /// Takes over what `recorder` measured.
    pub(super) fn measured(mut self, recorder: &Recorder) -> Self {
        let name = self.name.clone();
        self.measure(&name, &recorder.latencies.borrow());
        self
    }

    fn measure(&mut self, path: &str, latencies: &BTreeMap<String, Duration>) {
        self.latency = latencies.get(path).copied();
        for child in &mut self.children {
            child.measure(&format!("{path}.{}", child.name), latencies);
        }
    }
}

impl Model {
    /// The scope of the whole forward pass; those of the layers inside have their names.
    pub const SCOPE: &str = "model";

    /// What each layer costs for `work`; `None` where one's is neither known nor
    /// [measured](Model::measure).
    pub fn costs(&self, work: &Workload) -> Option<Vec<LayerCost>> {
        let measured = |i: usize| self.measured.get().map(|layers| layers[i].cost(work));
        let layers = self.layers().iter().enumerate();
        layers.map(|(i, layer)| layer.layer().cost(work).or_else(|| measured(i))).collect()
    }

    /// Whether the cost of each layer is known.
    pub fn has_known_costs(&self) -> bool {
        self.costs(&self.work(1, 1)).is_some()
    }

    /// What a forward pass of `rows` rows of `tokens` tokens costs; `recorder` measured one whose
    /// scopes have the names of these modules. `None` where what a layer does is not known.
    pub fn profile(&self, rows: i64, tokens: i64, recorder: &Recorder) -> Option<ModuleProfile> {
        let work = self.work(rows, tokens);
        let layers = self.layers().iter().zip(self.costs(&work)?);
        let named =
            layers.map(|(layer, cost)| ModuleProfile { name: layer.name.clone(), ..cost.profile });
        let whole = ModuleProfile::new(Self::SCOPE, "Model").with(named.collect());
        Some(ModuleProfile { params: self.num_params(), ..whole }.measured(recorder))
    }

    fn work(&self, rows: i64, tokens: i64) -> Workload {
        let [rows, tokens] = [rows, tokens].map(i64::unsigned_abs);
        Workload {
            rows,
            tokens,
            decoder_tokens: tokens,
            element_bytes: FLOAT_BYTES,
            device: self.device(),
            whole_logits: false,
        }
    }

    /// The floating-point operations of a training step for each token of rows of `tokens` tokens.
    ///
    /// They are 6 for each multiply-accumulate of the products' shapes. With L layers of C columns this
    /// is `6 N + 12 L C T`, as in PaLM's paper (appendix B) and nanoGPT, where N leaves out the
    /// positions, and here what no product multiplies with: biases and norms, less than 0.2 % of it. A
    /// projection that is not tied counts once, the embedding not at all. Where the products are not
    /// known they are 6 for each parameter.
    pub fn flops_per_token(&self, tokens: i64) -> f64 {
        match self.profile(1, tokens, &Recorder::new(self.device())) {
            Some(profile) => 6.0 * profile.macs as f64 / tokens.max(1) as f64,
            None => 6.0 * self.num_params() as f64,
        }
    }
}

/// Measures scopes that lie in each other; the device has done its work at both ends of each.
#[derive(Debug)]
pub struct Recorder {
    device: Device,
    /// The path of the scope that runs.
    path: RefCell<String>,
    latencies: RefCell<BTreeMap<String, Duration>>,
}

impl Recorder {
    /// A recorder of what runs on `device`.
    pub fn new(device: Device) -> Self {
        Self { device, path: RefCell::default(), latencies: RefCell::default() }
    }

    fn time<T>(&self, name: &dyn Display, work: impl FnOnce() -> T) -> T {
        let outer = self.path.borrow().clone();
        let path = if outer.is_empty() { name.to_string() } else { format!("{outer}.{name}") };
        self.path.replace(path.clone());
        synchronize(self.device);
        let began = Instant::now();
        let result = work();
        synchronize(self.device);
        *self.latencies.borrow_mut().entry(path).or_default() += began.elapsed();
        self.path.replace(outer);
        result
    }
}

/// Runs `work`, as a scope called `name` where there is a recorder and in a trace where one runs.
pub fn record<T>(recorder: Option<&Recorder>, name: impl Display, work: impl FnOnce() -> T) -> T {
    let _range = range(&name);
    match recorder {
        Some(recorder) => recorder.time(&name, work),
        None => work(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Model, ModelConfig, tiny_gpt2};

    fn model(tie_word_embeddings: bool) -> Model {
        let sizes = [("vocab_size", 11), ("n_positions", 5), ("n_embd", 8), ("n_inner", 24)];
        let config = tiny_gpt2(&sizes, 0.1, tie_word_embeddings);
        Model::from_scratch(&config, 4, Device::Cpu).unwrap()
    }

    #[test]
    fn the_modules_have_all_parameters_of_their_units() {
        for tied in [true, false] {
            let model = model(tied);
            let profile = model.profile(3, 4, &Recorder::new(Device::Cpu)).unwrap();
            assert_eq!(profile.params, model.num_params());
            let units = model.units().iter().map(|unit| unit.numel() as u64);
            let modules = profile.children.iter().map(|module| module.params);
            let tied_projection = if tied { 11 * 8 } else { 0 };
            for (i, (unit, module)) in units.zip(modules).enumerate() {
                let shared = if i == model.units().len() - 1 { tied_projection } else { 0 };
                assert_eq!(module, unit + shared, "unit {i}");
            }
        }
    }

    /// 3 rows of 4 tokens, 8 wide, 24 inside the MLP, 11 words.
    #[test]
    fn operations_are_those_of_the_shapes() {
        let profile = model(true).profile(3, 4, &Recorder::new(Device::Cpu)).unwrap();
        let n = 3 * 4;
        let block = &profile.children[1];
        let attention = n * 8 * 24 + n * 8 * 8 + 2 * n * 4 * 8;
        let mlp = 2 * n * 8 * 24;
        assert_eq!(block.macs, attention + mlp);
        let biases = n * 24 + n * 8 + n * 24 + n * 8;
        assert_eq!(block.flops, 2 * block.macs + biases + 2 * 5 * n * 8 + n * 24);
        assert_eq!(profile.macs, 2 * block.macs + n * 8 * 11);
        assert_eq!(profile.flops, 2 * block.flops + 2 * n * 8 * 11 + 5 * n * 8);
    }

    /// GPT-2 124M at 1,024 tokens: the formula with nanoGPT's N, which has 0.1 % more for biases and
    /// norms.
    #[test]
    fn a_tokens_operations_are_those_of_the_formula() {
        let config = ModelConfig::named("gpt2").unwrap();
        let (layers, columns, tokens) = (12.0, 768.0, 1024.0);
        let positions = 1024.0 * columns;
        let model = Model::outline(&config, Device::Cpu).unwrap();
        let n = model.num_params() as f64 - positions;
        let formula = 6.0 * n + 12.0 * layers * columns * tokens;
        let counted = model.flops_per_token(1024);
        assert!((0.998..1.0).contains(&(counted / formula)), "{counted} {formula}");
        // Attention sees shorter rows, and the rest stays.
        let shorter = counted - model.flops_per_token(512);
        assert_eq!(shorter, 12.0 * layers * columns * 512.0);
    }

    #[test]
    fn scopes_are_told_apart_by_where_they_lie() {
        let recorder = Recorder::new(Device::Cpu);
        let some = Some(&recorder);
        record(some, "a", || {
            record(some, format_args!("b{}", 1), || ());
            record(some, "c", || ());
        });
        record(some, "c", || ());
        assert!(recorder.latencies.borrow().keys().eq(["a", "a.b1", "a.c", "c"]));
        assert_eq!(record(None, "x", || 7), 7);
        let inner = ModuleProfile::new("c", "Inner");
        let profile = ModuleProfile::new("a", "Outer").with(vec![inner]).measured(&recorder);
        assert!(profile.children[0].latency.unwrap() <= profile.latency.unwrap());
    }
}
