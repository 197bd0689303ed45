//! The cost of a forward pass, module by module: parameters, multiply-accumulates, operations and
//! measured time.
//!
//! Operations are counted from shapes with the formulas of DeepSpeed's flops profiler: `2 M N K` for
//! a product of `M x K` and `K x N`, one addition for each element a bias is added to, 5 for each
//! element of a layer norm, 1 for each element of an activation. Attention counts all pairs of
//! tokens, whether or not the mask lets one see the other. Embeddings, dropout, residual additions
//! and the loss count nothing.
//!
//! A training step does three times the products of its forward pass: the backward pass has one for
//! the gradient of each side. `Model::flops_per_token` counts these alone, which PaLM's paper calls
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

use crate::{
    bridge::trace::range,
    tensor::{Device, synchronize},
};

/// One module, its children included.
#[derive(Debug, Clone, Default, PartialEq)]
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
    /// The time it took, where it was measured.
    pub latency: Option<Duration>,
    /// The modules inside.
    pub children: Vec<Self>,
}

impl ModuleProfile {
    /// A module without any inside. `name` is the one that its [`Recorder`] scope has.
    pub(crate) fn new(name: impl Into<String>, kind: &'static str) -> Self {
        let (name, children) = (name.into(), Vec::new());
        Self { name, kind, params: 0, macs: 0, flops: 0, latency: None, children }
    }

    /// A product of `rows` rows of `inputs` with a matrix of `inputs` x `outputs`.
    pub(crate) fn linear(
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
    pub(crate) fn with(mut self, children: Vec<Self>) -> Self {
        for child in &children {
            self.params += child.params;
            self.macs += child.macs;
            self.flops += child.flops;
        }
        self.children = children;
        self
    }

    /// Takes over what `recorder` measured.
    pub(crate) fn measured(mut self, recorder: &Recorder) -> Self {
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
