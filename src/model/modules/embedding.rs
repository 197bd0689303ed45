//! Embeddings: a row of a table for each token, and for each position.
//!
//! Their gradients are written by hand: autograd would make one of the size of the whole table, only
//! to add it to the one that exists.

use std::rc::Rc;

use super::{Divided, Linear, Norm, dropout};
use crate::{
    bridge::{
        autograd::own_gradient,
        memory::{self, count_as},
    },
    error::{Code, Error, Result},
    model::{
        cost::{LayerCost, Operation, Tape, Workload},
        layer::{Context, Flow, Layer},
        param_id::ParamId,
        param_spec::Init,
        params::{LayerBuilder, Params},
        profile::ModuleProfile,
    },
    tensor::{Kind, Tensor, no_grad},
    tensor_parallel::{LocalIds, Split},
};

/// The rows of a table by id.
#[derive(Debug)]
pub(crate) struct Embedding {
    weight: ParamId,
    rows: i64,
    width: i64,
    /// The factor of the rows.
    scale: Option<f64>,
    /// Whether ranks that share the layer divide the rows, which are those of a vocabulary.
    is_divided: bool,
    /// The row that has no gradient of a lookup, as torch's `nn.Embedding` has it.
    padding_idx: Option<i64>,
}

impl Embedding {
    /// A table of tokens, `name`. A row of padding in `init` has no gradient where it is looked up.
    pub(crate) fn new(
        b: &mut LayerBuilder,
        name: &str,
        (rows, width): (i64, i64),
        init: Init,
    ) -> Self {
        let weight = b.add_of_tokens(name, (rows, width), init);
        let padding_idx = init.padding_idx();
        Self { weight, rows, width, scale: None, is_divided: true, padding_idx }
    }

    fn of_positions(
        b: &mut LayerBuilder,
        name: &str,
        (rows, width): (i64, i64),
        init: Init,
    ) -> Self {
        let weight = b.add(name, &[rows, width], init);
        Self { weight, rows, width, scale: None, is_divided: false, padding_idx: None }
    }

    /// The table of another layer, by its full name.
    pub(crate) fn borrowed(b: &mut LayerBuilder, name: &str, (rows, width): (i64, i64)) -> Self {
        let weight = b.borrow(name);
        Self { weight, rows, width, scale: None, is_divided: true, padding_idx: None }
    }

    /// The same table, which ranks that share the layer have whole.
    pub(crate) fn whole(self) -> Self {
        Self { is_divided: false, ..self }
    }

    /// How ranks divide the table.
    pub(crate) fn splits(&self) -> Vec<(ParamId, Split)> {
        let split = Split::Rows(self.rows);
        self.is_divided.then_some((self.weight, split)).into_iter().collect()
    }

    /// The table.
    pub(crate) fn weight(&self) -> ParamId {
        self.weight
    }

    /// The same with rows that are multiplied by `scale`, rounded to the format of the model.
    pub(crate) fn scaled(self, scale: f64) -> Self {
        Self { scale: Some(scale), ..self }
    }

    /// The rows of `ids` `[B, T]`: `[B, T, width]`; of this rank's tokens where ranks have parts of them.
    pub(crate) fn lookup(&self, p: &Params<'_>, ids: &Tensor) -> Result<Tensor> {
        let part = p.vocabulary(self.rows).filter(|_| self.is_divided);
        let rows = match part {
            None => self.rows(p, ids, None)?,
            Some(part) => {
                let local = LocalIds::of(&ids.f_reshape([-1i64])?, part.here())?;
                // All other ranks have zeros in the place of a row.
                p.sum(self.rows(p, ids, Some(Rc::new(local)))?)?
            }
        };
        match self.scale {
            None => Ok(rows),
            Some(scale) => {
                let scale = Tensor::f_full([0i64; 0], scale, (rows.kind(), rows.device()))?;
                Ok(rows.f_mul(&scale)?)
            }
        }
    }

    /// Adds the sum over ranks that divide the rows, whose gradient has zeros for the rows of others.
    fn cost(&self, work: &Workload, tape: &mut Tape) {
        if self.is_divided && work.sharing.ranks > 1 {
            let transient = work.bytes(self.width);
            tape.push(Operation { transient, ..Operation::default() });
            tape.leave(work, self.width);
        }
    }

    /// The rows of `ids`; with `local` those that this rank has.
    fn rows(&self, p: &Params<'_>, ids: &Tensor, local: Option<Rc<LocalIds>>) -> Result<Tensor> {
        let weight = p.tensor(self.weight);
        let places = ids.size();
        let all_ids = ids.f_reshape([-1i64])?;
        let ids = local.as_ref().map_or(&all_ids, |local| &local.ids).shallow_clone();
        let masked = move |rows: Tensor| match &local {
            Some(local) => local.masked(&rows),
            None => Ok(rows),
        };
        let rows = || -> Result<Tensor> {
            let rows = match p.codes(self.weight) {
                Some((codes, index)) => codes.rows(index, p.spec(self.weight), &ids)?,
                None => weight.f_index_select(0, &ids)?,
            };
            let rows = masked(rows)?;
            Ok(rows.f_view(&[&places[..], &rows.size()[1..]].concat()[..])?)
        };
        let Some(sink) = p.sink(self.weight) else { return rows() };
        let rows: Tensor = no_grad(rows)?;
        let padding = self.padding_idx.map(|id| all_ids.f_eq(id)?.f_unsqueeze(1)).transpose()?;
        own_gradient(&[weight], &rows, move |grad| {
            let width = grad.size().last().copied().unwrap_or(1);
            let mut rows = masked(grad.f_reshape([-1, width])?)?;
            if let Some(padding) = &padding {
                rows = rows.f_masked_fill(padding, 0.0)?;
            }
            sink.with(|gradient, i| gradient.add_at(i, &ids, &rows))?;
            Ok(vec![None])
        })?;
        Ok(rows)
    }
}

/// Learned positions.
#[derive(Debug)]
pub(crate) struct Positions {
    table: Embedding,
    /// The row of the first position.
    first: i64,
    /// Whether a position is counted from the row's first token that is no padding.
    skips_padding: bool,
}

impl Positions {
    /// A table of so many positions.
    pub(crate) fn new(b: &mut LayerBuilder, name: &str, shape: (i64, i64), init: Init) -> Self {
        Self {
            table: Embedding::of_positions(b, name, shape, init),
            first: 0,
            skips_padding: false,
        }
    }

    /// OPT's: the first position has row 2, and padding counts as none.
    pub(crate) fn opt(
        b: &mut LayerBuilder,
        name: &str,
        (positions, width): (i64, i64),
        init: Init,
    ) -> Self {
        let table = Embedding::of_positions(b, name, (positions + 2, width), init);
        Self { table, first: 2, skips_padding: true }
    }

    /// `x` `[B, T, C]` with the rows of their positions added.
    fn add(&self, p: &Params<'_>, x: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let tokens = x.size()[1];
        if let Some(documents) = context.masks.documents() {
            let rows = p.own_tokens(documents.positions(), tokens)?.f_add_scalar(self.first)?;
            return Ok(x.f_add(&self.table.lookup(p, &rows)?)?);
        }
        if let (true, Some(padding)) = (self.skips_padding, context.masks.padding()) {
            let counted = padding.f_cumsum(1, Kind::Int64)?.f_mul(padding)?;
            let counted = p.own_tokens(&counted, tokens)?;
            let rows = self.table.lookup(p, &counted.f_add_scalar(self.first - 1)?)?;
            return Ok(x.f_add(&rows)?);
        }
        if let Some(rows) = context.decode_rows() {
            let rows = rows.positions().f_add_scalar(self.first)?.f_view([-1, 1])?;
            return Ok(x.f_add(&self.table.lookup(p, &rows)?)?);
        }
        let weight = p.tensor(self.table.weight);
        let from = self.first + p.first_token(tokens);
        let sum = || Ok(x.f_add(&weight.f_narrow(0, from, tokens)?)?);
        let Some(sink) = p.sink(self.table.weight) else { return sum() };
        let sum = no_grad(sum)?;
        own_gradient(&[x, weight], &sum, move |grad| {
            sink.with(|gradient, i| gradient.add_rows(i, from, grad))?;
            Ok(vec![Some(grad.shallow_clone()), None])
        })?;
        Ok(sum)
    }
}

/// The first layer of a decoder behind an encoder: the end of the encoder, and the decoder's tokens.
#[derive(Debug)]
pub(crate) struct DecoderStart {
    /// Of what the encoder made.
    pub(crate) norm: Norm,
    pub(crate) tokens: Embedding,
    /// Of both.
    pub(crate) dropout: f64,
}

impl Layer for DecoderStart {
    fn forward(&self, params: &Params<'_>, flow: &Flow, context: &mut Context<'_>) -> Result<Flow> {
        let _counting = count_as(memory::Kind::Activations)?;
        if context.decode_rows().is_some() {
            return Ok(Flow::of(self.tokens.lookup(params, &flow.hidden)?));
        }
        let Some(ids) = context.masks.decoder_input_ids() else {
            return Err(Error::new(Code::Internal, "a decoder without tokens"));
        };
        let encoded = self.norm.forward(params, &flow.hidden, context)?;
        let encoded = dropout(encoded, self.dropout, context.train);
        let hidden = dropout(self.tokens.lookup(params, ids)?, self.dropout, context.train);
        Ok(Flow { hidden, encoded: Some(encoded), bias: None })
    }

    fn cost(&self, work: &Workload) -> Option<LayerCost> {
        let (mut tape, width) = (Tape::new(), self.tokens.width);
        let norm = self.norm.cost(&work.between(), &mut tape, false);
        self.tokens.cost(&work.of_decoder(), &mut tape);
        let work = &work.between();
        let mut output = work.bytes(width) + work.of_decoder().bytes(width);
        if self.dropout > 0.0 {
            output += work.mask_bytes(width) + work.of_decoder().mask_bytes(width);
        }
        let profile = ModuleProfile::new("", "DecoderStart").with(vec![norm]);
        Some(tape.cost(profile, output))
    }

    fn begins_decoder(&self) -> bool {
        true
    }

    fn draws(&self) -> bool {
        self.dropout > 0.0
    }
}

/// The first layer: token ids to hidden states.
#[derive(Debug)]
pub(crate) struct Embed {
    pub(crate) tokens: Embedding,
    /// From the width of the table to that of the hidden states.
    pub(crate) projection: Option<Linear>,
    pub(crate) positions: Option<Positions>,
    pub(crate) norm: Option<Norm>,
    pub(crate) dropout: f64,
}

impl Embed {
    /// The rows of a table alone.
    pub(crate) fn new(tokens: Embedding) -> Self {
        Self { tokens, projection: None, positions: None, norm: None, dropout: 0.0 }
    }

    /// The hidden states of token ids `[B, T]`.
    fn embed(&self, p: &Params<'_>, ids: &Tensor, context: &Context<'_>) -> Result<Tensor> {
        let mut x = self.tokens.lookup(p, ids)?;
        if let Some(projection) = &self.projection {
            x = projection.forward(p, &x, context)?;
        }
        if let Some(positions) = &self.positions {
            x = positions.add(p, &x, context)?;
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(p, &x, context)?;
        }
        Ok(dropout(x, self.dropout, context.train))
    }

    fn width(&self) -> i64 {
        self.projection.as_ref().map_or(self.tokens.width, Linear::outputs)
    }
}

impl Layer for Embed {
    fn forward(&self, params: &Params<'_>, flow: &Flow, context: &mut Context<'_>) -> Result<Flow> {
        let _counting = count_as(memory::Kind::Activations)?;
        if flow.hidden.kind() != Kind::Int64 {
            bail!(Code::Internal, "the first layer takes token ids");
        }
        Ok(Flow::of(self.embed(params, &flow.hidden, context)?))
    }

    fn cost(&self, work: &Workload) -> Option<LayerCost> {
        let mut tape = Tape::new();
        self.tokens.cost(work, &mut tape);
        let work = &work.between();
        let hidden = work.bytes(self.width());
        let tables =
            [Some(&self.tokens), self.positions.as_ref().map(|positions| &positions.table)];
        let params = tables.into_iter().flatten().map(|table| table.rows * table.width);
        let mut profile = ModuleProfile {
            params: params.sum::<i64>().unsigned_abs(),
            ..ModuleProfile::new("", "Embedding")
        };
        let mut children = Vec::new();
        if let Some(projection) = &self.projection {
            children.push(Linear::cost([projection], (work, Divided::Nothing), &mut tape, true));
        }
        if let Some(norm) = &self.norm {
            children.push(norm.cost(work, &mut tape, true));
        }
        if self.dropout > 0.0 {
            // The sum stays for as long as the mask, since the output is another tensor.
            let kept = work.mask_bytes(self.width());
            tape.push(Operation { kept, gradient: hidden, ..Operation::default() });
        }
        profile = profile.with(children);
        Some(tape.cost(profile, hidden))
    }

    fn splits(&self) -> Vec<(ParamId, Split)> {
        self.tokens.splits()
    }

    fn draws(&self) -> bool {
        self.dropout > 0.0
    }

    fn backward_reads_params(&self) -> bool {
        self.projection.is_some() || self.norm.is_some()
    }
}
