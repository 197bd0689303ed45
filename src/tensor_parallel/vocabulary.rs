//! A vocabulary whose rows are divided among ranks: embedding, logits and loss as Megatron-LM divides
//! them (Shoeybi et al. 2019).
//!
//! A rank's logits are those of its own tokens. Their softmax needs of the other ranks one number for
//! each position, the logarithm of the sum of their exponentials, and of the one that has the target
//! its logit.

use std::{fmt, rc::Rc};

use super::{ranks::LayerRanks, split::RowsHere};
use crate::{
    bridge::autograd::own_gradient,
    error::Result,
    tensor::{Kind, Tensor, no_grad},
};

/// The rows that a rank has.
pub(crate) struct VocabularyPart {
    ranks: Rc<dyn LayerRanks>,
    here: RowsHere,
}

impl fmt::Debug for VocabularyPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VocabularyPart({:?})", self.here)
    }
}

/// Ids among a rank's rows.
pub(crate) struct LocalIds {
    /// The rows; the first in the place of those that another rank has.
    pub(crate) ids: Tensor,
    /// Whether another rank has the row.
    pub(crate) elsewhere: Tensor,
}

impl LocalIds {
    /// Of token ids.
    pub(crate) fn of(ids: &Tensor, here: RowsHere) -> Result<Self> {
        let local = ids.f_sub_scalar(here.first)?;
        let elsewhere = local.f_lt(0)?.f_logical_or(&local.f_ge(here.count)?)?;
        Ok(Self { ids: local.f_masked_fill(&elsewhere, 0)?, elsewhere })
    }

    /// `rows`, one for each id along the first dimensions, with zeros for those of other ranks.
    pub(crate) fn masked(&self, rows: &Tensor) -> Result<Tensor> {
        Ok(rows.f_masked_fill(&self.elsewhere.f_unsqueeze(-1)?, 0.0)?)
    }
}

impl VocabularyPart {
    pub(crate) fn new(ranks: Rc<dyn LayerRanks>, here: RowsHere) -> Self {
        Self { ranks, here }
    }

    /// The rows.
    pub(crate) fn here(&self) -> RowsHere {
        self.here
    }

    /// The logarithm of the sum of all ranks' exponentials, and the targets' logits, `[n, 1]` each, from
    /// this rank's `normalizer` and from the `logits` of the targets that it has.
    pub(crate) fn over_ranks(
        &self,
        normalizer: &Tensor,
        logits: &Tensor,
        LocalIds { elsewhere, .. }: &LocalIds,
    ) -> Result<(Tensor, Tensor)> {
        let own = logits.f_masked_fill(elsewhere, 0.0)?;
        let all =
            Tensor::f_stack(&self.ranks.gather(&Tensor::f_stack(&[normalizer, &own], 0)?)?, 1)?;
        let (normalizers, logits) = (all.f_select(0, 0)?, all.f_select(0, 1)?);
        let sum = logits.f_sum_dim_intlist(0i64, false, Kind::Float)?;
        Ok((normalizers.f_logsumexp(0i64, false)?, sum))
    }

    /// The columns of all ranks from this rank's `part`, `[.., V / ranks]`; the gradient of each is what
    /// comes of its own.
    pub(crate) fn columns(&self, part: &Tensor, vocab: i64) -> Result<Tensor> {
        let RowsHere { first, count, room } = self.here;
        let all = no_grad(|| -> Result<Tensor> {
            let parts = self.ranks.gather(&part.f_contiguous()?)?;
            Ok(Tensor::f_cat(&parts, -1)?.f_narrow(-1, 0, vocab)?)
        })?;
        if part.requires_grad() {
            own_gradient(&[part], &all, move |grad| {
                let own = grad.f_narrow(-1, first, count)?;
                let own = own.f_constant_pad_nd([0, room - count])?;
                Ok(vec![Some(own)])
            })?;
        }
        Ok(all)
    }
}
