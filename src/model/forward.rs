//! The forward pass without gradients: logits, and the losses of an evaluation.

use super::{Adapter, Context, Direction, Flow, Masks, Model, ModelLayer, Objective};
use crate::{
    bridge::decode::FEW_ROWS,
    error::{Code, Error, Result},
    kv_cache::{CachePass, LayerCache},
    tensor::{Kind, Tensor, guard, no_grad},
};

/// The inputs of a forward pass without gradients, beside token ids.
#[derive(Debug, Default)]
pub struct Inference<'a> {
    /// Makes the result the sum of the losses instead of logits.
    pub objective: Option<Objective<'a>>,
    /// The keys and values that the pass keeps and goes on with, a cache for each layer.
    pub caches: Option<(&'a CachePass, &'a mut [LayerCache])>,
    /// Whether the logits of the last position are enough.
    pub last_only: bool,
}

impl Model {
    /// The logits of every position: `input_ids` `[B, T]` to `[B, T, V]`, float32, without dropout.
    /// Of a model with an encoder they are those of the decoder's positions.
    pub fn logits(&self, input_ids: &Tensor, masks: &Masks) -> Result<Tensor> {
        self.check_input_ids(input_ids)?;
        self.check_masks(input_ids, masks)?;
        guard("logits", || self.infer(input_ids, masks, Inference::default()))
    }

    fn check_masks(&self, input_ids: &Tensor, masks: &Masks) -> Result<()> {
        let size = input_ids.size();
        if let Some(found) = masks.padding().map(Tensor::size).filter(|found| *found != size) {
            bail!(Code::Shape, "attention_mask has the shape {found:?}, input_ids {size:?}");
        }
        let is_seq2seq = self.facts().is_seq2seq();
        match masks.decoder_input_ids() {
            Some(_) if !is_seq2seq => Err(Error::new(
                Code::BadValue,
                "decoder_input_ids are for a model with an encoder, which this one has not",
            )),
            None if is_seq2seq => Err(Error::new(
                Code::Missing,
                "a model with an encoder needs decoder_input_ids too",
            )
            .hint("they are the labels moved one to the right, behind decoder_start_token_id")),
            Some(ids) if ids.size().first() != size.first() => {
                let found = ids.size();
                bail!(
                    Code::Shape,
                    "decoder_input_ids have the shape {found:?}, input_ids {size:?}"
                );
            }
            Some(ids) => self.check_input_ids(ids),
            None => Ok(()),
        }
    }

    /// Runs the layers on `input_ids` `[B, T]` without gradients; the result is that of the last, on
    /// all stages of a pipeline, which must all call it.
    ///
    /// A pass that goes on with texts begins at the decoder, if there is one: what it looks at of the
    /// encoder's output is in the caches.
    ///
    /// Panics where libtorch refuses, to be called under [`guard`].
    pub fn infer(
        &self,
        input_ids: &Tensor,
        masks: &Masks,
        Inference { objective, mut caches, last_only }: Inference<'_>,
    ) -> Result<Tensor> {
        no_grad(|| {
            let resumes = matches!(caches, Some((CachePass::Decode(_), _)));
            // A magnitude is for the length of the whole matrix's rows.
            let reads_matrices = self.adapter().is_some_and(Adapter::use_dora);
            let few_rows = resumes && input_ids.numel() as i64 <= FEW_ROWS && !reads_matrices;
            let first = if resumes { self.first_of_decoder() } else { 0 };
            let (pipeline, end) = (self.pipeline(), self.all_layers().len());
            let here = |layer: &&ModelLayer| layer.number >= first;
            let begins = self.layers().iter().find(here).map(|layer| layer.number);
            let sparse = self.sparse_attention();
            let sparse = sparse.as_deref();
            let mut flow = match (&pipeline, begins) {
                (Some(pipeline), Some(begin)) if begin > first => pipeline.receive_any()?,
                _ => Flow::of(input_ids.shallow_clone()),
            };
            let of_pass = self.layers().iter().enumerate();
            for (i, layer) in of_pass.filter(|(_, layer)| layer.number >= first) {
                let gathered = match few_rows {
                    true => self.gather_for_rows(i)?,
                    false => self.gather(i, Direction::Forward)?,
                };
                let cache = caches.as_mut().map(|(pass, caches)| (&**pass, &mut caches[i]));
                let tiled_mlp = self.tiled_mlp();
                let of_model = Context { sparse, tiled_mlp, ..Context::new(masks) };
                let mut context = Context { objective, cache, last_only, ..of_model };
                flow = layer.layer().forward(&gathered.params(i, None), &flow, &mut context)?;
            }
            let Some(pipeline) = pipeline else { return Ok(flow.hidden) };
            let is_last = self.layers().last().is_some_and(|layer| layer.number + 1 == end);
            if !is_last && begins.is_some() {
                pipeline.send_any(&flow)?;
            }
            pipeline.share(is_last.then_some(&flow.hidden))
        })
    }

    /// The first layer, of the whole model, of a pass that goes on with texts.
    pub fn first_of_decoder(&self) -> usize {
        let begins = |layer: &ModelLayer| layer.layer().begins_decoder();
        self.all_layers().iter().position(begins).unwrap_or(0)
    }
}

/// The mask of padding that queries must not see: that of `attention_mask`, if any is 0.
pub fn padding_of(attention_mask: &Tensor) -> Option<Tensor> {
    let has_padding = attention_mask.min().int64_value(&[]) == 0;
    has_padding.then(|| attention_mask.to_kind(Kind::Int64))
}
