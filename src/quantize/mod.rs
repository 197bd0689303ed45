//! Matrices in fewer bits: codes and scales in one storage of bytes, and back.
//!
//! Codes, scales and values are those of bitsandbytes.

mod dynamic;
mod int8;
mod nf4;
mod rows;
mod sections;

use std::{fmt, rc::Rc};

use self::{
    dynamic::DynamicMap,
    nf4::{Nf4, Scales},
};
pub use self::{rows::passing_bytes, sections::Sections};
use crate::{
    config::Quantization,
    error::Result,
    tensor::{Device, Kind, Tensor},
};

/// A way to quantize, with the tables that it needs on a device.
#[derive(Clone)]
pub struct Quantizer {
    quantization: Quantization,
    device: Device,
    tables: Rc<Tables>,
}

struct Tables {
    nf4: Nf4,
    dynamic: DynamicMap,
}

impl fmt::Debug for Quantizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {:?}", self.quantization.name(), self.device)
    }
}

impl Quantizer {
    /// For matrices on `device`.
    pub fn new(quantization: Quantization, device: Device) -> Result<Self> {
        let tables = Tables { nf4: Nf4::new(device)?, dynamic: DynamicMap::new(device)? };
        Ok(Self { quantization, device, tables: Rc::new(tables) })
    }

    /// The quantization.
    pub fn quantization(&self) -> Quantization {
        self.quantization
    }

    /// The device of the matrices.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Where codes and scales lie of matrices of so many outputs and inputs, and how many bytes they
    /// take in all.
    pub fn layout(&self, matrices: impl IntoIterator<Item = (i64, i64)>) -> (Vec<Sections>, i64) {
        sections::layout(matrices, self.quantization)
    }

    /// Writes the codes and scales of a float32 matrix `[outputs, inputs]` into their sections of
    /// `storage`, which is of bytes.
    pub fn encode(&self, matrix: &Tensor, sections: &Sections, storage: &Tensor) -> Result<()> {
        let matrix = matrix.f_contiguous()?;
        let (codes, scales) = match self.quantization {
            Quantization::Nf4 { .. } => self.tables.nf4.encode(&matrix)?,
            Quantization::Int8 => int8::encode(&matrix)?,
        };
        sections.codes.view(storage, Kind::Uint8)?.f_copy_(&codes.f_view([-1i64])?)?;
        match &sections.nested {
            None => drop(sections.scales.view(storage, Kind::Float)?.f_copy_(&scales)?),
            Some(nested) => {
                let encoded = self.tables.dynamic.encode(&scales)?;
                sections.scales.view(storage, Kind::Uint8)?.f_copy_(&encoded.codes)?;
                nested.scales.view(storage, Kind::Float)?.f_copy_(&encoded.scales)?;
                nested.offset.view(storage, Kind::Float)?.f_copy_(&encoded.offset)?;
            }
        }
        Ok(())
    }

    /// Writes the values of codes and scales into the matrix `out` `[outputs, inputs]`, which may lie by
    /// its inputs.
    pub fn decode(&self, sections: &Sections, storage: &Tensor, out: &Tensor) -> Result<()> {
        match self.quantization {
            Quantization::Nf4 { .. } => {
                let scales = self.scales(sections, storage)?;
                self.tables.nf4.decode(&sections.codes.view(storage, Kind::Uint8)?, &scales, out)
            }
            Quantization::Int8 => {
                let scales = sections.scales.view(storage, Kind::Float)?;
                int8::decode(&sections.codes.view(storage, Kind::Int8)?, &scales, out)
            }
        }
    }

    fn scales(&self, sections: &Sections, storage: &Tensor) -> Result<Scales> {
        let Some(nested) = &sections.nested else {
            return sections.scales.view(storage, Kind::Float);
        };
        let codes = sections.scales.view(storage, Kind::Uint8)?;
        let scales = nested.scales.view(storage, Kind::Float)?;
        self.tables.dynamic.decode(&codes, &scales, &nested.offset.view(storage, Kind::Float)?)
    }
}
