//! Attention: queries, keys and values, their positions, the fused kernel, and the projection back.

use std::rc::Rc;

use super::{Divided, Linear, Norm, Rotary};
use crate::{
    bridge::attention::scaled_dot_product,
    config::Sides,
    error::{Code, Error, Result},
    kv_cache::{DecodeRows, LayerCache},
    model::{
        cost::{Operation, Tape, Workload},
        layer::{AttentionFacts, Context},
        masks::{AlibiHeads, Masks, alibi_of_keys, alibi_slopes},
        param_id::ParamId,
        params::Params,
        profile::{ModuleProfile, record},
    },
    sparse::{BlockSparse, Hidden, attend_window},
    tensor::Tensor,
    tensor_parallel::Split,
};

/// Attention of `heads` heads, of which groups may share their keys and values (GQA, Ainslie et al.
/// 2023).
#[derive(Debug)]
pub(crate) struct Attention {
    pub(crate) name: &'static str,
    pub(crate) projections: Projections,
    pub(crate) out: Linear,
    pub(crate) heads: i64,
    pub(crate) kv_heads: i64,
    pub(crate) head_dim: i64,
    /// Norms of each head's queries and keys.
    pub(crate) qk_norm: Option<(Norm, Norm)>,
    pub(crate) position: Position,
    /// The factor of the scores; `None` is one over the square root of the head dim.
    pub(crate) scale: Option<f64>,
    /// How many tokens a query sees, its own included; `None` is all.
    pub(crate) window: Option<i64>,
    /// Whether a query sees nothing behind itself.
    pub(crate) is_causal: bool,
    /// Of the attention's weights.
    pub(crate) dropout: f64,
}

/// Where queries, keys and values come from.
#[derive(Debug)]
pub(crate) enum Projections {
    /// A layer for each.
    Apart(Linear, Linear, Linear),
    /// One layer whose outputs are all queries, then all keys, then all values.
    InParts(Linear),
    /// One layer whose outputs are a query, a key and a value for each head.
    ByHeads(Linear),
    /// Queries of the decoder, keys and values of what the encoder made.
    Cross(Linear, Linear, Linear),
}

/// How scores know of positions.
#[derive(Debug)]
pub(crate) enum Position {
    /// Not at all.
    None,
    /// Queries and keys turn.
    Rotary(Rc<Rotary>),
    /// A bias that grows with the distance (ALiBi, Press et al. 2022).
    Alibi,
    /// The bias that the flow carries.
    Carried,
}

impl Attention {
    /// Causal attention that is scaled as usual, without positions and dropout.
    pub(crate) fn new(
        name: &'static str,
        projections: Projections,
        out: Linear,
        (heads, head_dim): (i64, i64),
    ) -> Self {
        Self {
            name,
            projections,
            out,
            heads,
            kv_heads: heads,
            head_dim,
            qk_norm: None,
            position: Position::None,
            scale: None,
            window: None,
            is_causal: true,
            dropout: 0.0,
        }
    }

    /// The attention of `x` `[B, T, C]`, before the block's dropout; `bias` and `encoded` are the
    /// flow's.
    pub(crate) fn forward(
        &self,
        p: &Params<'_>,
        x: &Tensor,
        (bias, encoded): (Option<&Tensor>, Option<&Tensor>),
        context: &mut Context<'_>,
    ) -> Result<Tensor> {
        let recorder = context.recorder;
        record(recorder, self.name, || {
            let x = &p.enter(x)?;
            let [b, t] = [x.size()[0], x.size()[1]];
            let y = match context.decode_rows() {
                None => self.of_whole_rows(p, x, (bias, encoded), context)?,
                Some(rows) => self.of_next_tokens(p, x, (bias, rows), context)?,
            };
            let y = y.f_transpose(1, 2)?.f_reshape([b, t, self.heads_of(p).0 * self.head_dim])?;
            self.out.forward_sum(p, &y, context)
        })
    }

    /// The heads, and those of keys and values, of this rank.
    fn heads_of(&self, p: &Params<'_>) -> (i64, i64) {
        let (_, ranks) = p.tp_place();
        (self.heads / ranks, self.kv_heads / ranks)
    }

    /// This rank's heads, where they have ALiBi's bias.
    fn alibi(&self, p: &Params<'_>) -> Option<AlibiHeads> {
        let (first, count) = (self.first_head(p), self.heads_of(p).0);
        let heads = AlibiHeads { all: self.heads, first, count };
        matches!(self.position, Position::Alibi).then_some(heads)
    }

    /// How ranks divide the parameters: by heads.
    pub(crate) fn splits(&self) -> Vec<(ParamId, Split)> {
        let (wide, narrow) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut splits = self.out.by_inputs();
        match &self.projections {
            Projections::Apart(q, k, v) | Projections::Cross(q, k, v) => {
                splits.extend(q.by_outputs(&[wide]));
                splits.extend(k.by_outputs(&[narrow]));
                splits.extend(v.by_outputs(&[narrow]));
            }
            Projections::InParts(qkv) => splits.extend(qkv.by_outputs(&[wide, narrow, narrow])),
            Projections::ByHeads(qkv) => splits.extend(qkv.by_outputs(&[3 * wide])),
        }
        // Each rank's heads make a part of their gradients.
        if let Some((q, k)) = &self.qk_norm {
            splits.extend([q, k].into_iter().flat_map(Norm::params).map(|id| (id, Split::Summed)));
        }
        splits
    }

    /// The attention of whole rows before the projection back, `[B, H, T, D]`.
    fn of_whole_rows(
        &self,
        p: &Params<'_>,
        x: &Tensor,
        (bias, encoded): (Option<&Tensor>, Option<&Tensor>),
        context: &mut Context<'_>,
    ) -> Result<Tensor> {
        let (q, k, v) = self.heads(p, x, encoded, context)?;
        if let Some(documents) = context.masks.documents() {
            return match context.texts(q.size()[1]) {
                Some(texts) => self.of_texts(p, (q, k, v), (&texts, bias), context),
                None => self.of_documents(p, (q, k, v), documents, context),
            };
        }
        self.of_text(p, 0, (q, k, v), (bias, context.masks), context)
    }

    /// The attention of the tokens of rows to each other, of all or of those in the blocks that they see.
    pub(super) fn attend_tokens(
        &self,
        p: &Params<'_>,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        (bias, masks): (Option<&Tensor>, &Masks),
        context: &Context<'_>,
    ) -> Result<Tensor> {
        let Some(sparse) = self.sparse(context) else {
            if let Some(window) = self.own_window(q, masks, context.train) {
                return attend_window([q, k, v], window, self.scale);
            }
            let mask = self.mask(p, q, (bias, masks));
            return self.attend((q, k, v), mask, context.train);
        };
        if let (Position::Carried, Some(bias)) = (&self.position, bias) {
            let how = (self.first_head(p), self.scale);
            return sparse.attend_by_distance([q, k, v], (bias, masks.padding()), how);
        }
        let slopes = self.alibi(p).map(|heads| alibi_slopes(heads, q.device()));
        let hidden = Hidden { padding: masks.padding(), slopes: slopes.as_ref() };
        sparse.attend([q, k, v], hidden, (self.first_head(p), self.scale))
    }

    /// The blocks that queries see, where they do not see all.
    fn sparse<'a>(&self, context: &Context<'a>) -> Option<&'a BlockSparse> {
        context.sparse.filter(|sparse| self.may_be_sparse(sparse.sides()))
    }

    /// Whether queries see some blocks of keys.
    pub(super) fn is_sparse(&self, context: &Context<'_>) -> bool {
        self.sparse(context).is_some()
    }

    /// Whether block-sparse attention with these sides is for it: of a model with an encoder for that alone.
    pub(super) fn may_be_sparse(&self, sides: Sides) -> bool {
        let is_of_tokens = !matches!(self.projections, Projections::Cross(..));
        match sides {
            Sides::Unidirectional => self.is_causal && !matches!(self.position, Position::Carried),
            Sides::Bidirectional => !self.is_causal && is_of_tokens,
        }
    }

    /// The number of this rank's first head.
    fn first_head(&self, p: &Params<'_>) -> i64 {
        p.tp_place().0 * self.heads_of(p).0
    }

    /// Its facts.
    pub(crate) fn facts(&self) -> AttentionFacts {
        AttentionFacts {
            heads: self.heads,
            head_dim: self.head_dim,
            is_causal: self.is_causal,
            has_bias: matches!(self.position, Position::Carried),
            window: self.window,
            dropout: self.dropout,
        }
    }

    /// The attention of queries to keys and values, `[B, H, T, D]` each.
    fn attend(
        &self,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        mask: Option<Tensor>,
        trains: bool,
    ) -> Result<Tensor> {
        let is_causal = self.is_causal && mask.is_none() && q.size()[2] > 1;
        let dropout = if trains { self.dropout } else { 0.0 };
        scaled_dot_product([q, k, v], mask, (dropout, is_causal, self.scale))
    }

    /// The attention of the next token of each text, `[B, H, 1, D]`, which sees what the cache has.
    fn of_next_tokens(
        &self,
        p: &Params<'_>,
        x: &Tensor,
        (bias, rows): (Option<&Tensor>, &DecodeRows),
        context: &mut Context<'_>,
    ) -> Result<Tensor> {
        if let Projections::Cross(q, ..) = &self.projections {
            let q = q.forward(p, x, context)?;
            let q = q.f_view([x.size()[0], self.heads_of(p).0, 1, self.head_dim])?;
            let cache = cache(context)?;
            return cache.cross.attend(&q, (None, None), None, self.scale);
        }
        let (q, k, v) = self.heads(p, x, None, context)?;
        let (q, k) = self.placed(p, q, k, context)?;
        let [q, k, v] = [q, k, v].map(|x| x.transpose(1, 2));
        let heads = (self.first_head(p), self.heads_of(p).0);
        let ranges = self.sparse(context).map(|sparse| sparse.ranges_of_rows(rows.past(), heads));
        let ranges = ranges.transpose()?;
        let cache = cache(context)?;
        cache.own.append((&k, &v), rows, self.window)?;
        let alibi = self.alibi(p).map(|heads| {
            let make = || alibi_of_keys(heads, rows.longest(), q.device());
            rows.bias([heads.all, heads.first, heads.count], make)
        });
        let alibi = alibi.transpose()?;
        cache.own.attend(&q, (alibi.as_deref().or(bias), Some(rows)), ranges.as_deref(), self.scale)
    }

    /// Queries, keys and values, `[B, T, H, D]` each.
    fn heads(
        &self,
        p: &Params<'_>,
        x: &Tensor,
        encoded: Option<&Tensor>,
        context: &Context<'_>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let [b, t] = [x.size()[0], x.size()[1]];
        let split = |x: &Tensor| x.f_view([b, -1, x.size()[2] / self.head_dim, self.head_dim]);
        let (heads, kv_heads) = self.heads_of(p);
        let (wide, narrow) = (heads * self.head_dim, kv_heads * self.head_dim);
        let (q, k, v) = match &self.projections {
            Projections::Apart(q, k, v) => {
                let [q, k, v] = Linear::forward_all([q, k, v], p, x, context)?;
                (q, k, v)
            }
            Projections::InParts(qkv) => {
                let qkv = qkv.forward(p, x, context)?;
                // One split, whose gradient is one concatenation.
                let parts = match wide == narrow {
                    true => qkv.f_split(wide, 2)?,
                    false => qkv.f_split_with_sizes(&[wide, narrow, narrow][..], 2)?,
                };
                three(parts)?
            }
            Projections::ByHeads(qkv) => {
                let qkv = qkv.forward(p, x, context)?;
                return three(qkv.f_view([b, t, heads, 3, self.head_dim])?.f_unbind(3)?);
            }
            Projections::Cross(q, k, v) => {
                let encoded = encoded
                    .ok_or_else(|| Error::new(Code::Internal, "a decoder without an encoder"))?;
                let [k, v] = Linear::forward_all([k, v], p, &p.enter(encoded)?, context)?;
                (q.forward(p, x, context)?, k, v)
            }
        };
        Ok((split(&q)?, split(&k)?, split(&v)?))
    }

    /// Queries and keys with their norms and positions.
    pub(super) fn placed(
        &self,
        p: &Params<'_>,
        mut q: Tensor,
        mut k: Tensor,
        context: &Context<'_>,
    ) -> Result<(Tensor, Tensor)> {
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            q = q_norm.forward(p, &q, context)?;
            k = k_norm.forward(p, &k, context)?;
        }
        if let Position::Rotary(rotary) = &self.position {
            let turn = |x: &Tensor| match context.decode_rows() {
                None => rotary.turn(x),
                Some(rows) => rotary.turn_rows(x, rows),
            };
            (q, k) = (turn(&q)?, turn(&k)?);
        }
        Ok((q, k))
    }

    /// The bias of the scores, or the mask of those that count; `None` where the kernel knows.
    fn mask(
        &self,
        p: &Params<'_>,
        q: &Tensor,
        (bias, masks): (Option<&Tensor>, &Masks),
    ) -> Option<Tensor> {
        let (tokens, device) = (q.size()[2], q.device());
        match (&self.position, bias, self.alibi(p)) {
            (_, _, Some(heads)) => Some(masks.alibi(tokens, heads, (q.kind(), device))),
            (Position::Carried, Some(bias), _) => Some(bias.shallow_clone()),
            _ if self.is_causal => masks.causal(tokens, self.window, (q.kind(), device)),
            _ => masks.encoder(),
        }
    }

    /// Adds the cost; the input is kept if nothing before keeps it.
    pub(crate) fn cost(
        &self,
        work: &Workload,
        tape: &mut Tape,
        keeps_input: bool,
    ) -> ModuleProfile {
        let (heads, kv_heads) = (work.part(self.heads), work.part(self.kv_heads));
        let (wide, narrow) = (heads * self.head_dim, kv_heads * self.head_dim);
        let keys = self.keys(work);
        let (q, kv) = (work.bytes(wide), keys.bytes(narrow));
        let mut children = Vec::new();
        let width = self.out.outputs();
        tape.enter(work, width, keeps_input);
        // What was gathered is kept by no layer.
        let keeps_input = keeps_input && !work.has_part_of_tokens();
        let by_heads = (work, Divided::Outputs);
        let is_fused = match &self.projections {
            Projections::Apart(q, k, v) => {
                children.push(Linear::cost([q, k, v], by_heads, tape, keeps_input));
                false
            }
            Projections::Cross(of_q, k, v) => {
                tape.reads_encoded(keys.between().bytes(width));
                tape.goes_on_with(work.bytes(width));
                tape.enter(&keys, width, false);
                children.push(Linear::cost([k, v], (&keys, Divided::Outputs), tape, false));
                tape.goes_on_with(2 * kv);
                children.push(Linear::cost([of_q], by_heads, tape, keeps_input));
                tape.goes_on_with(q);
                false
            }
            Projections::InParts(qkv) | Projections::ByHeads(qkv) => {
                children.push(Linear::cost([qkv], by_heads, tape, keeps_input));
                // The parts' gradients are put together.
                tape.push(Operation { gradient: q + 2 * kv, ..Operation::default() });
                true
            }
        };
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            let rows = |heads: i64| work.places() * heads.unsigned_abs();
            children.push(k_norm.cost_of_rows(work, tape, rows(kv_heads), true));
            children.push(q_norm.cost_of_rows(work, tape, rows(heads), true));
        }
        if let Position::Rotary(rotary) = &self.position {
            tape.reads_angles(rotary.angles(work));
            // Values keep the storage of all three where one layer made them.
            let kept = if is_fused && !self.repeats_heads(work) { q + kv } else { 0 };
            tape.push(Operation { kept, gradient: q + kv, ..Operation::default() });
        }
        self.cost_of_scores(work, tape, (q, kv));
        children.push(Linear::cost([&self.out], (work, Divided::Inputs), tape, false));
        tape.leave(work, width);
        // Every query with every key, and every weight with every value, where they are not hidden.
        let macs = 2 * work.places() * keys.tokens * wide.unsigned_abs();
        let macs = match self.density(work) {
            Some(density) => (macs as f64 * density) as u64,
            None => macs,
        };
        let attention =
            ModuleProfile { macs, flops: 2 * macs, ..ModuleProfile::new(self.name, "Attention") };
        attention.with(children)
    }
}

/// The cache of a pass that has one.
fn cache<'a>(context: &'a mut Context<'_>) -> Result<&'a mut LayerCache> {
    let cache = context.cache.as_mut().map(|(_, cache)| &mut **cache);
    cache.ok_or_else(|| Error::new(Code::Internal, "a next token without a cache"))
}

fn three(parts: Vec<Tensor>) -> Result<(Tensor, Tensor, Tensor)> {
    match <[Tensor; 3]>::try_from(parts) {
        Ok([q, k, v]) => Ok((q, k, v)),
        Err(_) => Err(Error::new(Code::Internal, "queries, keys and values are three")),
    }
}
