//! Frozen matrices in fewer bits: what is kept of them are codes and scales.
//!
//! As in bitsandbytes, the matrices of the blocks' linear layers are quantized, and embeddings, norms,
//! biases and the head are not. A matrix is dequantized where its layer is gathered, so that whatever
//! runs a layer, on whatever device, does not know of it.

mod dynamic;
mod int8;
mod nf4;
mod sections;

use std::{fmt, rc::Rc};

use self::{
    dynamic::DynamicMap,
    nf4::{Nf4, Scales},
    sections::{Sections, layout},
};
use super::{FlatUnit, ParamSpec, flat_storage::FlatStorage};
use crate::{
    config::Quantization,
    error::Result,
    tensor::{Device, Kind, Tensor},
};

/// Whether a parameter of a quantized model is kept as codes.
pub(super) fn is_quantized(spec: &ParamSpec) -> bool {
    spec.fan_in_out.is_some()
}

/// The way to quantize the units of a model.
#[derive(Debug, Clone)]
pub(super) struct Quantizer {
    quantization: Quantization,
    device: Device,
    tables: Rc<Tables>,
}

/// The values of codes, on the device of the model.
struct Tables {
    nf4: Nf4,
    dynamic: DynamicMap,
}

impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tables")
    }
}

impl Quantizer {
    /// For a model on `device`.
    pub(super) fn new(quantization: Quantization, device: Device) -> Result<Self> {
        let tables = Tables { nf4: Nf4::new(device)?, dynamic: DynamicMap::new(device)? };
        Ok(Self { quantization, device, tables: Rc::new(tables) })
    }

    /// The quantization.
    pub(super) fn quantization(&self) -> Quantization {
        self.quantization
    }

    /// Codes of these parameters that have no memory yet.
    pub(super) fn absent(&self, specs: &[ParamSpec]) -> Result<Codes> {
        let (sections, bytes) = layout(specs, self.quantization);
        let storage = FlatStorage::empty(bytes, Kind::Uint8, self.device)?;
        storage.release()?;
        Ok(self.over(sections, storage))
    }

    /// Codes of these parameters to plan with.
    pub(super) fn outline(&self, specs: &[ParamSpec]) -> Result<Codes> {
        let (sections, bytes) = layout(specs, self.quantization);
        Ok(self.over(sections, FlatStorage::outline(bytes, Kind::Uint8, self.device)?))
    }

    fn over(&self, sections: Vec<Sections>, storage: FlatStorage) -> Codes {
        Codes { quantizer: self.clone(), storage, sections }
    }
}

/// The codes of the parameters of a unit, in one storage of bytes.
#[derive(Debug)]
pub(super) struct Codes {
    quantizer: Quantizer,
    storage: FlatStorage,
    sections: Vec<Sections>,
}

impl Codes {
    /// The quantization.
    pub(super) fn quantization(&self) -> Quantization {
        self.quantizer.quantization
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
        let matrix = by_outputs(spec, values)?.f_contiguous()?;
        let storage = self.storage.flat()?;
        let sections = &self.sections[index];
        let (codes, scales) = match self.quantization() {
            Quantization::Nf4 { .. } => self.tables().nf4.encode(&matrix)?,
            Quantization::Int8 => int8::encode(&matrix)?,
        };
        sections.codes.view(storage, Kind::Uint8)?.f_copy_(&codes.f_view([-1i64])?)?;
        match &sections.nested {
            None => drop(sections.scales.view(storage, Kind::Float)?.f_copy_(&scales)?),
            Some(nested) => {
                let encoded = self.tables().dynamic.encode(&scales)?;
                sections.scales.view(storage, Kind::Uint8)?.f_copy_(&encoded.codes)?;
                nested.scales.view(storage, Kind::Float)?.f_copy_(&encoded.scales)?;
                nested.offset.view(storage, Kind::Float)?.f_copy_(&encoded.offset)?;
            }
        }
        Ok(())
    }

    /// Writes the values of parameter `index` into `out`.
    pub(super) fn dequantize(&self, index: usize, spec: &ParamSpec, out: &Tensor) -> Result<()> {
        let storage = self.storage.flat()?;
        let sections = &self.sections[index];
        let out = by_outputs(spec, out)?;
        match self.quantization() {
            Quantization::Nf4 { .. } => {
                let scales = self.scales(sections, storage)?;
                let codes = sections.codes.view(storage, Kind::Uint8)?;
                self.tables().nf4.decode(&codes, &scales, &out)
            }
            Quantization::Int8 => {
                let scales = sections.scales.view(storage, Kind::Float)?;
                int8::decode(&sections.codes.view(storage, Kind::Int8)?, &scales, &out)
            }
        }
    }

    /// Writes the values of all parameters into `params`.
    pub(super) fn dequantize_all(&self, specs: &[ParamSpec], params: &[Tensor]) -> Result<()> {
        let mut params = specs.iter().zip(params).enumerate();
        params.try_for_each(|(i, (spec, param))| self.dequantize(i, spec, param))
    }

    fn scales(&self, sections: &Sections, storage: &Tensor) -> Result<Scales> {
        let Some(nested) = &sections.nested else {
            return sections.scales.view(storage, Kind::Float);
        };
        let codes = sections.scales.view(storage, Kind::Uint8)?;
        let scales = nested.scales.view(storage, Kind::Float)?;
        self.tables().dynamic.decode(&codes, &scales, &nested.offset.view(storage, Kind::Float)?)
    }

    fn tables(&self) -> &Tables {
        &self.quantizer.tables
    }
}

impl FlatUnit {
    /// Bytes that dequantizing a matrix takes on a device for a moment, beside what it writes.
    pub fn dequantizing_bytes(&self, device: Device) -> u64 {
        // The host has kernels that need none; libtorch has float32 values, and numbers of pairs of codes.
        let each = match self.quantization() {
            Some(Quantization::Nf4 { .. }) if device != Device::Cpu => 6,
            Some(Quantization::Int8) if device != Device::Cpu => 4,
            _ => 0,
        };
        let largest = self.specs().iter().map(|spec| spec.numel().min(AT_ONCE)).max();
        each * largest.unwrap_or(0) as u64
    }

    /// Gives the codes of a unit, whose memory is here, the values that `value` has of each parameter.
    pub(super) fn quantize(&self, value: impl Fn(&ParamSpec) -> Result<Tensor>) -> Result<()> {
        let Some(codes) = self.codes() else { return Ok(()) };
        let mut specs = self.specs().iter().enumerate();
        specs.try_for_each(|(i, spec)| codes.quantize(i, spec, &value(spec)?))
    }
}

/// Values of a matrix that libtorch's operations dequantize at once, as they need memory beside it.
const AT_ONCE: i64 = 1 << 24;

/// The rows of a matrix `[outputs, inputs]` in parts, as the first and how many: each part begins at a
/// multiple of 64 rows, and has [`AT_ONCE`] values or 64 rows.
fn parts(matrix: &Tensor) -> impl Iterator<Item = (i64, i64)> + use<> {
    let size = matrix.size();
    let (outputs, inputs) = (size[0], size[1].max(1));
    let rows = (AT_ONCE / inputs / 64).max(1) * 64;
    (0..outputs).step_by(rows as usize).map(move |first| (first, rows.min(outputs - first)))
}

/// A matrix as `[outputs, inputs]`, as bitsandbytes quantizes it, whatever its file has.
fn by_outputs(spec: &ParamSpec, matrix: &Tensor) -> Result<Tensor> {
    Ok(if spec.is_by_inputs { matrix.f_transpose(0, 1)? } else { matrix.shallow_clone() })
}
