//! Where codes and scales lie in the bytes of a unit.

use super::{blocks, dynamic, nf4};
use crate::{
    config::QuantizedFormat,
    error::Result,
    tensor::{Kind, Tensor},
};

/// Every section starts at a multiple of this many bytes.
const ALIGNMENT: i64 = 16;

/// A range of bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Section {
    start: i64,
    bytes: i64,
}

impl Section {
    /// Its part of `storage` as numbers of this format.
    pub(super) fn view(self, storage: &Tensor, kind: Kind) -> Result<Tensor> {
        Ok(storage.f_narrow(0, self.start, self.bytes)?.f_view_dtype(kind)?)
    }
}

/// The sections of one matrix.
#[derive(Debug)]
pub struct Sections {
    /// The codes of its values.
    pub(super) codes: Section,
    /// Factors of the values, or the codes of these factors.
    pub(super) scales: Section,
    /// Factors and offset of the codes of the scales.
    pub(super) nested: Option<Nested>,
}

/// The sections of quantized scales.
#[derive(Debug)]
pub(super) struct Nested {
    pub(super) scales: Section,
    pub(super) offset: Section,
}

/// The sections of matrices of so many outputs and inputs, and how many bytes they take.
pub(super) fn layout(
    matrices: impl IntoIterator<Item = (i64, i64)>,
    format: QuantizedFormat,
) -> (Vec<Sections>, i64) {
    let mut end = 0;
    let mut section = |bytes: i64| {
        let start = end;
        end += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        Section { start, bytes }
    };
    let sections = matrices.into_iter().map(|(outputs, inputs)| {
        let numel = outputs * inputs;
        let scales = blocks::count(numel, nf4::BLOCK);
        match format {
            QuantizedFormat::Nf4 { double_quant: false } => Sections {
                codes: section((numel + 1) / 2),
                scales: section(4 * scales),
                nested: None,
            },
            QuantizedFormat::Nf4 { double_quant: true } => Sections {
                codes: section((numel + 1) / 2),
                scales: section(scales),
                nested: Some(Nested {
                    scales: section(4 * blocks::count(scales, dynamic::BLOCK)),
                    offset: section(4),
                }),
            },
            QuantizedFormat::Int8 => {
                Sections { codes: section(numel), scales: section(4 * outputs), nested: None }
            }
        }
    });
    let sections = sections.collect();
    (sections, end)
}
