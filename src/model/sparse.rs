//! Block-sparse attention in the place of a model's own.

use std::rc::Rc;

use super::{AttentionFacts, Model};
use crate::{
    config::{Dtype, SPARSE_ATTENTION, Sides, SparseAttention},
    cost::SparseWork,
    error::{Code, Error, Result},
    sparse::{BlockSparse, Extent},
    tensor::Device,
};

/// The widest head of a GPU's kernel.
const WIDEST_HEAD: i64 = 256;
/// The width of a head is a multiple of this for a GPU's kernel.
const HEAD_UNIT: i64 = 8;

impl Model {
    /// Makes all attentions see the blocks of keys that `options` name, in training, evaluation and generation;
    /// `None` makes them see all keys again.
    ///
    /// # Errors
    /// The model has an attention that cannot, or the options do not fit it.
    pub fn attend_sparsely(&self, options: Option<&SparseAttention>, dtype: Dtype) -> Result<()> {
        let made = match options {
            Some(options) => Some(Rc::new(self.block_sparse(options, dtype)?)),
            None => None,
        };
        *self.sparse.borrow_mut() = made;
        Ok(())
    }

    /// The blocks that attention sees; `None` is all.
    pub fn sparse_attention(&self) -> Option<Rc<BlockSparse>> {
        self.sparse.borrow().clone()
    }

    /// How block-sparse attention computes on rows of so many tokens.
    pub(super) fn sparse_work(&self, tokens: u64) -> Option<SparseWork> {
        let sparse = self.sparse_attention()?;
        // A model without so long rows has refused them.
        let density = sparse.density(tokens as i64).unwrap_or(1.0);
        let block = sparse.options().block as u64;
        Some(SparseWork { sides: sparse.sides(), density, block })
    }

    /// Block-sparse attention in words, for rows of so many tokens; `None` where all keys are seen.
    pub fn sparse_line(&self, tokens: i64) -> Result<Option<String>> {
        let Some(sparse) = self.sparse_attention() else { return Ok(None) };
        let density = sparse.density(tokens)?;
        Ok(Some(format!(
            "{SPARSE_ATTENTION}: {}; at {tokens} tokens {:.1} % of the scores of dense {} attention, which can \
             be at most {:.1} times as fast",
            sparse.options().summary(),
            100.0 * density,
            if sparse.sides() == Sides::Unidirectional { "causal" } else { "encoder" },
            1.0 / density,
        )))
    }

    fn block_sparse(&self, options: &SparseAttention, dtype: Dtype) -> Result<BlockSparse> {
        let attentions = self.layers.iter().filter_map(|layer| layer.layer().attention());
        let mut attentions: Vec<AttentionFacts> = attentions.collect();
        // The decoder behind an encoder stays as it is.
        let has_encoder = attentions.iter().any(|attention| !attention.is_causal);
        attentions.retain(|attention| !has_encoder || !attention.is_causal);
        let sides = if has_encoder { Sides::Bidirectional } else { Sides::Unidirectional };
        let Some(first) = attentions.first() else {
            return Err(refusal(
                "this model has no attention of dsr's, whose keys could be chosen",
            ));
        };
        for attention in &attentions {
            self.check_attention(attention, dtype)?;
        }
        let longest = self.facts.max_positions;
        BlockSparse::new(options.clone(), Extent { sides, heads: first.heads, longest })
    }

    fn check_attention(&self, attention: &AttentionFacts, dtype: Dtype) -> Result<()> {
        let AttentionFacts { head_dim, has_bias, window, dropout, .. } = *attention;
        if let Some(window) = window {
            let message = format!("this model has a sliding window of its own, of {window} tokens");
            return Err(refusal(&message));
        }
        if dropout > 0.0 {
            let message = format!(
                "the kernel drops out no weights, and the attention of this model has a dropout of {dropout}"
            );
            return Err(refusal(&message).hint(
                "set it to 0 where the model is made: attn_pdrop, attention_dropout, dropout_rate",
            ));
        }
        // A trained bias goes without the kernel.
        if self.device == Device::Cpu || has_bias {
            return Ok(());
        }
        if dtype == Dtype::Fp32 {
            return Err(refusal("on a GPU the kernel is for 16 bits")
                .hint("write precision: \"bf16\" or \"fp16\""));
        }
        if head_dim % HEAD_UNIT != 0 || head_dim > WIDEST_HEAD - HEAD_UNIT {
            let message = format!(
                "on a GPU heads must be a multiple of {HEAD_UNIT} wide and at most {}, found {head_dim}",
                WIDEST_HEAD - HEAD_UNIT
            );
            return Err(refusal(&message));
        }
        Ok(())
    }
}

fn refusal(why: &str) -> Error {
    let message = format!("`{SPARSE_ATTENTION}` cannot be honoured: {why}");
    Error::new(Code::BadValue, message).option(SPARSE_ATTENTION)
}
