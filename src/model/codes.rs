//! The codes that a unit keeps in the place of its parameters where they are quantized.
//!
//! As in transformers, the matrices of the blocks' linear layers are quantized, and where it is asked for
//! the embedding of tokens and the projection to the vocabulary; norms and biases are not. A matrix is
//! dequantized where its layer is gathered, so that training does not know of it. A forward pass of few
//! rows on a CPU in float32 leaves it as it is, and multiplies with the codes.

use std::cell::OnceCell;

use super::param_spec::ParamSpec;
use crate::{
    config::Quantization,
    error::Result,
    quantize::{CodeViews, CodedMatrix, Quantizer, Sections},
    tensor::{Device, FlatStorage, Kind, Tensor},
};

/// Whether a parameter of a quantized model is kept as codes.
pub(super) fn is_quantized(spec: &ParamSpec, quantization: Quantization) -> bool {
    spec.fan_in_out.is_some() || (quantization.embeddings && spec.is_of_tokens)
}

/// The codes of the parameters of a unit, in one storage of bytes.
#[derive(Debug)]
pub(super) struct Codes {
    quantizer: Quantizer,
    storage: FlatStorage,
    sections: Vec<Sections>,
    /// The codes and scales of each matrix as tensors, once a product has asked for them.
    views: Vec<OnceCell<CodeViews>>,
}

impl Codes {
    /// Codes of these parameters that have no memory yet.
    pub(super) fn absent(quantizer: &Quantizer, specs: &[ParamSpec]) -> Result<Self> {
        let codes = Self::over(quantizer, specs, FlatStorage::empty)?;
        codes.storage.release()?;
        Ok(codes)
    }

    /// Codes of these parameters to plan with.
    pub(super) fn outline(quantizer: &Quantizer, specs: &[ParamSpec]) -> Result<Self> {
        Self::over(quantizer, specs, FlatStorage::outline)
    }

    fn over(
        quantizer: &Quantizer,
        specs: &[ParamSpec],
        storage: fn(i64, Kind, Device) -> Result<FlatStorage>,
    ) -> Result<Self> {
        let matrices = specs.iter().filter_map(ParamSpec::matrix);
        let (sections, bytes) =
            quantizer.layout(matrices.map(|(inputs, outputs)| (outputs, inputs)));
        let storage = storage(bytes, Kind::Uint8, quantizer.device())?;
        let views = sections.iter().map(|_| OnceCell::new()).collect();
        Ok(Self { quantizer: quantizer.clone(), storage, sections, views })
    }

    /// The quantization.
    pub(super) fn quantization(&self) -> Quantization {
        self.quantizer.quantization()
    }

    /// The way to quantize.
    pub(super) fn quantizer(&self) -> &Quantizer {
        &self.quantizer
    }

    /// The storage of all codes and scales.
    pub(super) fn storage(&self) -> &FlatStorage {
        &self.storage
    }

    /// Sets the codes of parameter `index` to those of `values`, float32, whose storage is here.
    pub(super) fn quantize(&self, index: usize, spec: &ParamSpec, values: &Tensor) -> Result<()> {
        let storage = self.storage.flat()?;
        self.quantizer.encode(&by_outputs(spec, values)?, &self.sections[index], storage)
    }

    /// Whether rows can be multiplied with the codes as they are.
    pub(super) fn multiplies(&self, specs: &[ParamSpec]) -> bool {
        let inputs = specs.iter().filter_map(ParamSpec::matrix);
        inputs.into_iter().all(|(inputs, _)| self.quantizer.multiplies(inputs))
    }

    /// `x @ matrix + bias` for float32 rows `[.., inputs]` and parameters by their index, each with its
    /// outputs and its bias.
    pub(super) fn multiply(
        &self,
        x: &Tensor,
        params: &[(usize, i64, Option<&Tensor>)],
    ) -> Result<Vec<Tensor>> {
        let matrix = |&(index, outputs, bias): &(usize, i64, _)| {
            let (sections, views) = (&self.sections[index], self.views(index)?);
            Ok(CodedMatrix { sections, views, outputs, bias })
        };
        let matrices = params.iter().map(matrix).collect::<Result<Vec<_>>>()?;
        self.quantizer.multiply(x, self.storage.flat()?, &matrices)
    }

    fn views(&self, index: usize) -> Result<&CodeViews> {
        if let Some(views) = self.views[index].get() {
            return Ok(views);
        }
        let views = self.quantizer.views(&self.sections[index], self.storage.flat()?)?;
        Ok(self.views[index].get_or_init(|| views))
    }

    /// The values of rows of parameter `index`, `[outputs, inputs]`, by their numbers `[n]`: float32
    /// `[n, inputs]`.
    pub(super) fn rows(&self, index: usize, spec: &ParamSpec, rows: &Tensor) -> Result<Tensor> {
        let of = (&self.sections[index], self.storage.flat()?);
        self.quantizer.rows(of, spec.matrix().unwrap_or_default(), rows)
    }

    /// Writes the values of parameter `index` into `out`.
    pub(super) fn dequantize(&self, index: usize, spec: &ParamSpec, out: &Tensor) -> Result<()> {
        let storage = self.storage.flat()?;
        self.quantizer.decode(&self.sections[index], storage, &by_outputs(spec, out)?)
    }
}

/// A matrix as `[outputs, inputs]`, as bitsandbytes quantizes it, whatever its file has.
fn by_outputs(spec: &ParamSpec, matrix: &Tensor) -> Result<Tensor> {
    Ok(if spec.is_by_inputs { matrix.f_transpose(0, 1)? } else { matrix.shallow_clone() })
}
