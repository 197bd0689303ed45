//! Norms: layer norm (Ba et al. 2016) and RMS norm (Zhang & Sennrich 2019), with statistics in float32.

use super::rms::rms_norm;
use crate::{
    bridge::rows,
    error::Result,
    model::{
        cost::{FLOAT_BYTES, Operation, Tape, Workload},
        layer::Context,
        param_id::ParamId,
        param_spec::Init,
        params::{Backward, LayerBuilder, Params},
        profile::{ModuleProfile, record},
    },
    tensor::{Device, Tensor},
};

/// A norm over the channels.
#[derive(Debug)]
pub(crate) struct Norm {
    /// The last part of its name.
    name: String,
    weight: Option<ParamId>,
    bias: Option<ParamId>,
    width: i64,
    epsilon: f64,
    kind: NormKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NormKind {
    Layer,
    Rms,
    /// RMS norm whose weight is stored less one, as Gemma's.
    RmsPlusOne,
}

impl Norm {
    /// A layer norm with weight and bias.
    pub(crate) fn layer(b: &mut LayerBuilder, name: &str, width: i64, epsilon: f64) -> Self {
        let weight = b.add(&format!("{name}.weight"), &[width], Init::Constant(1.0));
        let bias = b.add(&format!("{name}.bias"), &[width], Init::Zeros);
        Self::new(name, (Some(weight), Some(bias)), width, epsilon, NormKind::Layer)
    }

    /// A layer norm without parameters.
    pub(crate) fn bare_layer(name: &str, width: i64, epsilon: f64) -> Self {
        Self::new(name, (None, None), width, epsilon, NormKind::Layer)
    }

    /// An RMS norm with a weight.
    pub(crate) fn rms(b: &mut LayerBuilder, name: &str, width: i64, epsilon: f64) -> Self {
        Self::rms_from(b, name, (width, epsilon), 1.0)
    }

    /// An RMS norm whose weights start as `first`.
    pub(crate) fn rms_from(
        b: &mut LayerBuilder,
        name: &str,
        (width, epsilon): (i64, f64),
        first: f64,
    ) -> Self {
        let weight = b.add(&format!("{name}.weight"), &[width], Init::Constant(first));
        Self::new(name, (Some(weight), None), width, epsilon, NormKind::Rms)
    }

    /// An RMS norm that multiplies with one more than its weight.
    pub(crate) fn rms_plus_one(b: &mut LayerBuilder, name: &str, width: i64, epsilon: f64) -> Self {
        let weight = b.add(&format!("{name}.weight"), &[width], Init::Zeros);
        Self::new(name, (Some(weight), None), width, epsilon, NormKind::RmsPlusOne)
    }

    fn new(
        name: &str,
        (weight, bias): (Option<ParamId>, Option<ParamId>),
        width: i64,
        epsilon: f64,
        kind: NormKind,
    ) -> Self {
        let name = name.rsplit('.').next().unwrap_or(name).to_owned();
        Self { name, weight, bias, width, epsilon, kind }
    }

    /// Its parameters.
    pub(crate) fn params(&self) -> impl Iterator<Item = ParamId> {
        self.weight.into_iter().chain(self.bias)
    }

    /// The norm of `x` over its last dimension.
    pub(crate) fn forward(
        &self,
        p: &Params<'_>,
        x: &Tensor,
        context: &Context<'_>,
    ) -> Result<Tensor> {
        record(context.recorder, &self.name, || {
            let tensor = |id: Option<ParamId>| id.map(|id| p.tensor(id));
            let (weight, bias) = (tensor(self.weight), tensor(self.bias));
            let width = [self.width];
            match (self.kind, weight) {
                (NormKind::Rms | NormKind::RmsPlusOne, Some(weight)) => {
                    let plus_one = self.kind == NormKind::RmsPlusOne;
                    if context.decode_rows().is_some() {
                        let settings = (self.epsilon, f64::from(u8::from(plus_one)));
                        if let Some(made) = rows::rms_norm(x, weight, settings)? {
                            return Ok(made);
                        }
                    }
                    let backward = self.weight.map_or(Backward::Autograd, |id| p.backward(id));
                    rms_norm(x, weight, backward, (self.epsilon, plus_one))
                }
                _ => Ok(x.f_layer_norm(&width[..], weight, bias, self.epsilon, true)?),
            }
        })
    }

    /// Adds the cost; the input is kept if nothing before keeps it.
    pub(crate) fn cost(
        &self,
        work: &Workload,
        tape: &mut Tape,
        keeps_input: bool,
    ) -> ModuleProfile {
        self.cost_of_rows(work, tape, work.places(), keeps_input)
    }

    /// The cost for so many rows.
    pub(crate) fn cost_of_rows(
        &self,
        work: &Workload,
        tape: &mut Tape,
        rows: u64,
        keeps_input: bool,
    ) -> ModuleProfile {
        let input = rows * self.width.unsigned_abs() * work.element_bytes;
        let (statistics, transient) = match self.kind {
            NormKind::Layer => (2, 0),
            NormKind::Rms if work.device != Device::Cpu => (1, 0),
            // In float32: the normalized rows, and their product with the gradient or the new gradient.
            _ if !work.is_narrow() => (1, 2 * input),
            // In 16 bits: three float32 tensors (gradient, normalized rows, product or result), and the result.
            _ => (1, 3 * work.in_floats(input) + input),
        };
        tape.push(Operation {
            kept: statistics * rows * FLOAT_BYTES + if keeps_input { input } else { 0 },
            transient,
            gradient: input,
            ..Operation::default()
        });
        let kind = if self.kind == NormKind::Layer { "LayerNorm" } else { "RMSNorm" };
        let params = [self.weight, self.bias].iter().flatten().count() as u64;
        ModuleProfile {
            params: params * self.width.unsigned_abs(),
            flops: 5 * rows * self.width.unsigned_abs(),
            ..ModuleProfile::new(&*self.name, kind)
        }
    }
}
