//! Frozen weights in fewer bits, under bitsandbytes' names.

use serde::{Deserialize, Serialize};

use super::options::{Options, option_table, option_words};
use crate::error::Code;

option_words! {
    /// How the matrices of a model's blocks are kept.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum QuantizationKind {
        /// Codes of 4 bits, whose values are equally likely under a normal distribution, with a scale
        /// for each 64 (Dettmers et al. 2023).
        Nf4 = "nf4",
        /// Whole numbers from -127 to 127 with a scale for each output (Dettmers et al. 2022).
        Int8 = "int8",
    }
}

option_table! {
    /// The options of `load_model` and `new_model` that quantize.
    #[derive(Debug, Clone, Copy)]
    #[check_map(QuantizeOptions::check)]
    pub struct QuantizeOptions {
        /// keeps the matrices of the blocks frozen in fewer bits, and computes with what they stand
        /// for, one layer at a time: "nf4", bitsandbytes' 4 bits, or "int8"; an adapter is what trains
        #[option(optional)]
        pub quantize: Option<QuantizationKind>,
        /// nf4: keeps the scales in 8 bits too, as bnb_4bit_use_double_quant of transformers
        #[option(default = false)]
        pub double_quant: bool,
        /// quantizes the embedding of tokens and the projection to the vocabulary as well, as torchao's
        /// option of this name
        #[option(default = false)]
        pub include_input_output_embeddings: bool,
    }
}

/// How the quantized matrices of a model are kept, and which they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantization {
    /// How.
    pub format: QuantizedFormat,
    /// Whether the rows of tokens are quantized too: the embedding and the projection to the vocabulary.
    pub embeddings: bool,
}

/// How a quantized matrix is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuantizedFormat {
    /// NF4.
    Nf4 {
        /// Whether the scales are quantized as well.
        double_quant: bool,
    },
    /// Int8 with a scale for each output.
    Int8,
}

impl QuantizeOptions {
    fn check(&self, o: &mut Options<'_>) {
        // A word that is none is told already.
        let is_other = self.quantize.is_some() || !o.has("quantize");
        if self.double_quant && is_other && self.quantize != Some(QuantizationKind::Nf4) {
            let message = "`double_quant` quantizes the scales of quantize: \"nf4\" alone";
            o.fault("double_quant", Code::BadValue, message);
        }
        if self.include_input_output_embeddings && !o.has("quantize") {
            let message = "`include_input_output_embeddings` goes with `quantize`";
            o.fault("include_input_output_embeddings", Code::BadValue, message);
        }
    }

    /// The quantization that they ask for.
    pub fn quantization(self) -> Option<Quantization> {
        let format = match self.quantize? {
            QuantizationKind::Nf4 => QuantizedFormat::Nf4 { double_quant: self.double_quant },
            QuantizationKind::Int8 => QuantizedFormat::Int8,
        };
        Some(Quantization { format, embeddings: self.include_input_output_embeddings })
    }
}

impl Quantization {
    /// The matrices of the blocks in this format.
    pub const fn of_blocks(format: QuantizedFormat) -> Self {
        Self { format, embeddings: false }
    }

    /// Its name.
    pub fn name(self) -> String {
        let format = match self.format {
            QuantizedFormat::Nf4 { double_quant: false } => "nf4",
            QuantizedFormat::Nf4 { double_quant: true } => "nf4, double_quant",
            QuantizedFormat::Int8 => "int8",
        };
        let embeddings = if self.embeddings { " with embeddings" } else { "" };
        format!("{format}{embeddings}")
    }
}
