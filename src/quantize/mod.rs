//! Tensors in fewer bits, and back: matrices as codes and scales in one storage of bytes, averages of
//! gradients as codes and scales.
//!
//! Codes, scales and values are those of bitsandbytes.

mod blocks;
mod dynamic;
mod int8;
mod moments;
mod nf4;
mod rows;
mod sections;

use std::{fmt, rc::Rc};

use self::{
    dynamic::DynamicMap,
    nf4::{Nf4, Scales},
};
pub use self::{
    moments::{MOMENT_BLOCK, MomentCodes, moment_scales},
    rows::passing_bytes,
    sections::Sections,
};
use crate::{
    bridge::decode::{CodeFactor, CodeFormat, code_rows},
    config::{Quantization, QuantizedFormat},
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

/// The codes of a matrix, and its scales, unless these are codes themselves.
#[derive(Debug)]
pub struct CodeViews {
    codes: Tensor,
    scales: Option<Tensor>,
}

/// A matrix of so many outputs, and what is added to its products.
#[derive(Debug, Clone, Copy)]
pub struct CodedMatrix<'a> {
    /// Where its codes and scales lie.
    pub sections: &'a Sections,
    /// The same as [tensors](Quantizer::views).
    pub views: &'a CodeViews,
    /// Its outputs.
    pub outputs: i64,
    /// The bias `[outputs]`.
    pub bias: Option<&'a Tensor>,
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
        sections::layout(matrices, self.quantization.format)
    }

    /// Writes the codes and scales of a float32 matrix `[outputs, inputs]` into their sections of
    /// `storage`, which is of bytes.
    pub fn encode(&self, matrix: &Tensor, sections: &Sections, storage: &Tensor) -> Result<()> {
        let matrix = matrix.f_contiguous()?;
        let (codes, scales) = match self.quantization.format {
            QuantizedFormat::Nf4 { .. } => self.tables.nf4.encode(&matrix)?,
            QuantizedFormat::Int8 => int8::encode(&matrix)?,
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
        match self.quantization.format {
            QuantizedFormat::Nf4 { .. } => {
                let scales = self.scales(sections, storage)?;
                self.tables.nf4.decode(&sections.codes.view(storage, Kind::Uint8)?, &scales, out)
            }
            QuantizedFormat::Int8 => {
                let scales = sections.scales.view(storage, Kind::Float)?;
                int8::decode(&sections.codes.view(storage, Kind::Int8)?, &scales, out)
            }
        }
    }

    /// Whether rows can be multiplied with the codes of a matrix of so many inputs: on the host.
    pub fn multiplies(&self, inputs: i64) -> bool {
        let is_whole = match self.quantization.format {
            QuantizedFormat::Nf4 { .. } => inputs % nf4::BLOCK == 0,
            QuantizedFormat::Int8 => true,
        };
        self.device == Device::Cpu && is_whole
    }

    /// The codes and scales of a matrix where they lie in `storage`.
    pub fn views(&self, sections: &Sections, storage: &Tensor) -> Result<CodeViews> {
        let kind = match self.quantization.format {
            QuantizedFormat::Nf4 { .. } => Kind::Uint8,
            QuantizedFormat::Int8 => Kind::Int8,
        };
        let scales = sections.nested.is_none().then(|| sections.scales.view(storage, Kind::Float));
        Ok(CodeViews { codes: sections.codes.view(storage, kind)?, scales: scales.transpose()? })
    }

    /// `x @ matrix + bias` with the matrices that codes and scales stand for, for float32 rows
    /// `[.., inputs]`; each row as it is alone.
    pub fn multiply(
        &self,
        x: &Tensor,
        storage: &Tensor,
        matrices: &[CodedMatrix<'_>],
    ) -> Result<Vec<Tensor>> {
        let format = match self.quantization.format {
            QuantizedFormat::Nf4 { .. } => CodeFormat::Nf4 { values: &nf4::VALUES },
            QuantizedFormat::Int8 => CodeFormat::Int8,
        };
        let factors = matrices.iter().map(|&matrix| self.factor(storage, matrix));
        code_rows(x, format, &factors.collect::<Result<Vec<_>>>()?)
    }

    fn factor<'a>(&self, storage: &Tensor, matrix: CodedMatrix<'a>) -> Result<CodeFactor<'a>> {
        let CodedMatrix { sections, views, outputs, bias } = matrix;
        let scales = match &views.scales {
            Some(scales) => scales.shallow_clone(),
            None => self.scales(sections, storage)?,
        };
        Ok(CodeFactor { codes: &views.codes, scales, outputs, bias })
    }

    /// The values of rows of a matrix of so many inputs and outputs by their numbers `[n]`: float32
    /// `[n, inputs]`. The matrix is one that [rows are multiplied](Self::multiplies) with.
    pub fn rows(
        &self,
        (sections, storage): (&Sections, &Tensor),
        (inputs, outputs): (i64, i64),
        rows: &Tensor,
    ) -> Result<Tensor> {
        let of = |tensor: Tensor| -> Result<Tensor> {
            Ok(tensor.f_view([outputs, -1])?.f_index_select(0, rows)?)
        };
        let out = Tensor::f_empty([rows.size()[0], inputs], (Kind::Float, self.device))?;
        match self.quantization.format {
            QuantizedFormat::Nf4 { .. } => {
                let codes = of(sections.codes.view(storage, Kind::Uint8)?)?.f_view([-1])?;
                let scales = of(self.scales(sections, storage)?)?.f_view([-1])?;
                self.tables.nf4.decode(&codes, &scales, &out)?;
            }
            QuantizedFormat::Int8 => {
                let codes = of(sections.codes.view(storage, Kind::Int8)?)?.f_view([-1])?;
                let scales = of(sections.scales.view(storage, Kind::Float)?)?.f_view([-1])?;
                int8::decode(&codes, &scales, &out)?;
            }
        }
        Ok(out)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{manual_seed, no_grad};

    /// A product with codes is that with their values, and a row is the same alone.
    #[test]
    fn rows_are_multiplied_with_codes_as_with_their_values() {
        const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);
        let nf4 = [false, true].map(|double_quant| QuantizedFormat::Nf4 { double_quant });
        for format in [nf4[0], nf4[1], QuantizedFormat::Int8] {
            for (outputs, inputs) in [(7, 128), (70, 64), (5, 96)] {
                manual_seed(11);
                let quantization = Quantization::of_blocks(format);
                let quantizer = Quantizer::new(quantization, Device::Cpu).unwrap();
                let (sections, bytes) = quantizer.layout([(outputs, inputs)]);
                let storage = Tensor::zeros([bytes], (Kind::Uint8, Device::Cpu));
                quantizer
                    .encode(&Tensor::randn([outputs, inputs], CPU), &sections[0], &storage)
                    .unwrap();
                if !quantizer.multiplies(inputs) {
                    assert_eq!(inputs, 96);
                    continue;
                }
                let values = Tensor::zeros([outputs, inputs], CPU);
                quantizer.decode(&sections[0], &storage, &values).unwrap();
                let (x, bias) = (Tensor::randn([6, inputs], CPU), Tensor::randn([outputs], CPU));
                let views = quantizer.views(&sections[0], &storage).unwrap();
                let (sections, bias) = (&sections[0], Some(&bias));
                let matrix = CodedMatrix { sections, views: &views, outputs, bias };
                let multiply = |x: &Tensor| {
                    let made =
                        no_grad(|| quantizer.multiply(x, &storage, &[matrix])).unwrap().remove(0);
                    // Beside another one, and for rows of more dimensions.
                    let twice = no_grad(|| {
                        quantizer.multiply(&x.unsqueeze(1), &storage, &[matrix, matrix])
                    });
                    assert!(twice.unwrap().iter().all(|y| y.squeeze_dim(1).equal(&made)));
                    made
                };
                let found = multiply(&x);
                let exact = x.to_kind(Kind::Double).matmul(&values.to_kind(Kind::Double).tr())
                    + bias.unwrap();
                // Sums of up to 128 products of about 1 in float32.
                let off = (found.to_kind(Kind::Double) - exact).abs().max().double_value(&[]);
                assert!(off < 2e-5, "{format:?} {outputs} x {inputs}: {off:.1e}");
                let rows = Tensor::from_slice(&[outputs - 1, 0, 3]);
                let found_rows =
                    quantizer.rows((sections, &storage), (inputs, outputs), &rows).unwrap();
                assert!(found_rows.equal(&values.index_select(0, &rows)));
                for row in 0..6 {
                    let alone = multiply(&x.narrow(0, row, 1));
                    assert!(alone.equal(&found.narrow(0, row, 1)));
                }
            }
        }
    }
}
