//! The last layer: a final norm, the projection to the vocabulary, and the loss.
//!
//! The plain loss, cross-entropy of the targets, is made in slices of the logits (`loss.rs`). A loss of
//! a recipe's own gets them whole, and autograd goes back through it.

use super::{Divided, Linear, Norm, dropout};
use crate::{
    bridge::{
        decode::Matrix,
        memory::{self, count_as},
        texts::product_of_texts,
    },
    error::Result,
    model::{
        cost::{FLOAT_BYTES, LayerCost, Tape, Workload},
        layer::{Context, Flow, Layer},
        loss::{self, row_width, slice_rows},
        param_id::ParamId,
        params::Params,
        profile::ModuleProfile,
    },
    tensor::{Kind, Tensor},
    tensor_parallel::Split,
};

/// Bytes of a token id.
const ID_BYTES: u64 = 8;

/// The head of a language model.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) norm: Option<Norm>,
    /// From the width of the hidden states to that of the projection.
    pub(crate) narrow: Option<Linear>,
    /// The matrix `[V, C]`, the head's own or borrowed.
    pub(crate) projection: ParamId,
    /// V and C.
    pub(crate) shape: (i64, i64),
    /// The factor of the hidden states before the projection.
    pub(crate) scale: Option<f64>,
    /// Of the norm's output.
    pub(crate) dropout: f64,
    /// Whether it is that of a decoder behind an encoder.
    pub(crate) is_decoder: bool,
}

impl Head {
    /// A norm, if there is one, and the projection `[V, C]`.
    pub(crate) fn new(norm: Option<Norm>, projection: ParamId, shape: (i64, i64)) -> Self {
        let (narrow, scale, dropout, is_decoder) = (None, None, 0.0, false);
        Self { norm, narrow, projection, shape, scale, dropout, is_decoder }
    }

    /// The input of the projection for hidden states `[B, T, C]`.
    fn hidden(&self, p: &Params<'_>, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let mut x = match context.last_only {
            true => last_of_texts(x, context)?,
            false => x.shallow_clone(),
        };
        if let Some(norm) = &self.norm {
            x = norm.forward(p, &x, context)?;
        }
        x = dropout(x, self.dropout, context.train);
        if let Some(narrow) = &self.narrow {
            x = narrow.forward(p, &x, context)?;
        }
        match self.scale {
            Some(scale) => Ok(x.f_mul_scalar(scale)?),
            None => Ok(x),
        }
    }

    /// Bytes that stand for what ranks that divide the vocabulary gather of each target: two numbers.
    fn summed_of_targets(&self, work: &Workload) -> u64 {
        let ranks = work.sharing.ranks;
        let last = if self.is_decoder { 0 } else { work.rows };
        if ranks == 1 { 0 } else { ranks * (work.places() - last) * FLOAT_BYTES }
    }

    /// Bytes of the norm's output, its rows with a target, their gradient, and the slice of the logits;
    /// with whole logits of the gradient of the norm's output and targets.
    fn buffers(&self, work: &Workload) -> u64 {
        let (vocab, width) = (work.part(self.shape.0), self.shape.1);
        let (places, element, hidden) = (work.places(), work.element_bytes, work.bytes(width));
        let between = work.between();
        let statistics = 2 * between.places() * FLOAT_BYTES;
        if work.whole_logits {
            let vocab = self.shape.0;
            // In float32 probabilities, their gradient and that of the logits, which goes on in 16
            // bits.
            let also = if work.is_narrow() { element } else { 0 };
            let logits = places * vocab.unsigned_abs() * (3 * FLOAT_BYTES + also);
            return 2 * hidden + statistics + places * ID_BYTES + logits;
        }
        let most = i64::try_from(places).unwrap_or(i64::MAX);
        let rows = slice_rows(most, vocab, work.device).unsigned_abs();
        let row = row_width(vocab, work.device).unsigned_abs();
        let formats = if work.is_narrow() { element + FLOAT_BYTES } else { element };
        let made = work.matrix_gradient_bytes(vocab * width);
        3 * hidden + statistics + rows * row * formats + made
    }
}

/// The last position of each row, or of each text of the one row, of `x` `[B, T, C]`.
fn last_of_texts(x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
    let tokens = x.size()[1];
    let Some(texts) = context.texts(tokens) else { return Ok(x.f_narrow(1, tokens - 1, 1)?) };
    let ends = texts.iter().scan(-1, |end, length| {
        *end += length;
        Some(*end)
    });
    let ends = Tensor::f_from_slice(&ends.collect::<Vec<i64>>())?.f_to_device(x.device())?;
    Ok(x.f_index_select(1, &ends)?)
}

impl Layer for Head {
    fn forward(&self, params: &Params<'_>, flow: &Flow, context: &mut Context<'_>) -> Result<Flow> {
        let _counting = count_as(memory::Kind::Buffers)?;
        let x = params.enter_loss(&self.hidden(params, &flow.hidden, context)?)?;
        let vocabulary = params.vocabulary(self.shape.0);
        let projection = params.tensor(self.projection);
        let logits = || -> Result<Tensor> {
            let rows = x.f_reshape([-1, self.shape.1])?;
            let logits = match params.codes(self.projection) {
                Some((codes, index)) => {
                    codes.multiply(&rows, &[(index, self.shape.0, None)])?.swap_remove(0)
                }
                None => {
                    let texts = context.rows_of_texts(rows.size()[0]);
                    product_of_texts(&rows, Matrix::ByOutputs(projection), None, texts.as_deref())?
                }
            };
            let logits = match &vocabulary {
                Some(part) => part.columns(&logits, self.shape.0)?,
                None => logits,
            };
            Ok(logits.f_view([x.size()[0], -1, self.shape.0])?)
        };
        let hidden = match context.objective {
            None => logits()?.f_to_kind(Kind::Float)?,
            Some(objective) if objective.function.is_none() => {
                let matrix = (projection, vocabulary.as_ref());
                loss::sum_in_slices(&x, matrix, params.backward(self.projection), objective)?
            }
            Some(objective) => loss::sum_of_logits(&logits()?, objective)?,
        };
        Ok(Flow::of(hidden))
    }

    fn cost(&self, work: &Workload) -> Option<LayerCost> {
        let work = &if self.is_decoder { work.of_decoder() } else { *work };
        let (vocab, width) = self.shape;
        let (mut tape, mut modules) = (Tape::new(), Vec::new());
        let between = &work.between();
        if let Some(norm) = &self.norm {
            modules.push(norm.cost(between, &mut tape, false));
        }
        if let Some(narrow) = &self.narrow {
            let part = (between, Divided::Nothing);
            modules.push(Linear::cost([narrow], part, &mut tape, true));
        }
        tape.share(work, width);
        let rows = work.places() as i64;
        let shape = (width, work.part(vocab));
        modules.push(ModuleProfile::linear("lm_head", "Linear", rows, shape, false));
        let profile = ModuleProfile::new("", "Head").with(modules);
        let forward = self.buffers(work);
        let cost = LayerCost { kept: 0, forward, ..tape.cost(profile, 0) };
        Some(cost.and_sums(self.summed_of_targets(work)))
    }

    fn splits(&self) -> Vec<(ParamId, Split)> {
        vec![(self.projection, Split::Rows(self.shape.0))]
    }

    fn draws(&self) -> bool {
        self.dropout > 0.0
    }
}
