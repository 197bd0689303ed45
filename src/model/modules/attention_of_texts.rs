//! Attention in rows of several texts, text by text: no mask of all tokens is made.

use super::{Attention, Projections};
use crate::{
    error::Result,
    kv_cache::CachePass,
    model::{
        layer::Context,
        masks::{Documents, Masks},
        params::Params,
    },
    tensor::Tensor,
};

impl Attention {
    /// The attention of texts one after another in one row, each to itself, or to what the encoder made
    /// of it; the bias is that of the longest text.
    pub(super) fn of_texts(
        &self,
        p: &Params<'_>,
        (q, k, v): (Tensor, Tensor, Tensor),
        (texts, bias): (&[i64], Option<&Tensor>),
        context: &mut Context<'_>,
    ) -> Result<Tensor> {
        let masks = context.masks.documents().map_or(context.masks, Documents::masks);
        let of_keys = context.texts(k.size()[1]).unwrap_or_default();
        let split = |x: &Tensor, lengths: &[i64]| x.f_split_with_sizes(lengths, 1);
        let (k, v) = (split(&k, &of_keys)?, split(&v, &of_keys)?);
        let mut made = Vec::with_capacity(texts.len());
        for (i, (q, (k, v))) in split(&q, texts)?.into_iter().zip(k.into_iter().zip(v)).enumerate()
        {
            let tokens = texts[i];
            let own = |bias: &Tensor| -> Result<Tensor> {
                if bias.dim() == 2 {
                    // Of each distance, 0 in the middle.
                    let middle = bias.size()[1] / 2;
                    return Ok(bias.f_narrow(1, middle - tokens + 1, 2 * tokens - 1)?);
                }
                Ok(bias.f_narrow(2, 0, tokens)?.f_narrow(3, 0, tokens)?.f_contiguous()?)
            };
            let bias = bias.map(own).transpose()?;
            made.push(self.of_text(p, i, (q, k, v), (bias.as_ref(), masks), context)?);
        }
        Ok(Tensor::f_cat(&made, 2)?)
    }

    /// The attention of rows, `[B, T, H, D]` each; a pass that fills slots keeps keys and values of this
    /// one as those of its text `i`.
    pub(super) fn of_text(
        &self,
        p: &Params<'_>,
        i: usize,
        (q, k, v): (Tensor, Tensor, Tensor),
        of: (Option<&Tensor>, &Masks),
        context: &mut Context<'_>,
    ) -> Result<Tensor> {
        let (q, k) = self.placed(p, q, k, context)?;
        let [q, k, v] = [q, k, v].map(|x| x.transpose(1, 2));
        if let Some((CachePass::Prefill(slots), cache)) = &mut context.cache {
            let slot = slots[i];
            match &self.projections {
                Projections::Cross(..) => cache.cross.fill(slot, (&k, &v), None)?,
                _ if self.is_causal => cache.own.fill(slot, (&k, &v), self.window)?,
                _ => {}
            }
        }
        self.attend_tokens(p, (&q, &k, &v), of, context)
    }

    /// The attention of rows of several texts, text by text: no mask of all tokens is made, and none of a
    /// text sees another. Positions begin anew in each.
    pub(super) fn of_documents(
        &self,
        p: &Params<'_>,
        (q, k, v): (Tensor, Tensor, Tensor),
        documents: &Documents,
        context: &mut Context<'_>,
    ) -> Result<Tensor> {
        let mut rows = Vec::new();
        for (row, lengths) in (0..).zip(documents.lengths()) {
            let texts = |x: &Tensor| -> Result<Vec<Tensor>> {
                Ok(x.f_narrow(0, row, 1)?.f_split_with_sizes(&lengths[..], 1)?)
            };
            let mut made = Vec::new();
            for ((q, k), v) in texts(&q)?.into_iter().zip(texts(&k)?).zip(texts(&v)?) {
                made.push(self.of_text(p, 0, (q, k, v), (None, documents.masks()), context)?);
            }
            rows.push(Tensor::f_cat(&made, 2)?);
        }
        Ok(Tensor::f_cat(&rows, 0)?)
    }
}
