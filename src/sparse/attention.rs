//! The sparse attention of a model: its layout at every length, in passes of whole rows and of next tokens.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use super::{by_distance::BlockRows, layout::Layout, operation::Calls};
use crate::{
    bridge::key_ranges::KeyRanges,
    config::{Sides, SparseAttention},
    error::{Code, Result},
    tensor::{Device, Kind, Tensor},
};

/// The block-sparse attention of a model.
#[derive(Debug)]
pub struct BlockSparse {
    options: SparseAttention,
    extent: Extent,
    /// The calls for each length that there was.
    known: RefCell<Vec<(Key, Rc<Calls>)>>,
    /// The rows for each length that there was, where there is a trained bias.
    known_rows: RefCell<Vec<(Key, Rc<BlockRows>)>>,
    /// The layouts for generation, by their blocks.
    layouts: RefCell<Option<(usize, Rc<Layout>)>>,
    /// The keys that the last next tokens see, which all layers of a pass share.
    ranges: RefCell<Option<(RowsKey, Rc<KeyRanges>)>>,
    /// The last density, and its tokens.
    known_density: Cell<Option<(i64, f64)>>,
}

/// The length, the heads and the device of a pass.
type Key = (usize, (i64, i64), Device);

/// The tokens before each row's next, and the heads of a pass.
type RowsKey = (Vec<i64>, (i64, i64));

/// The sides, heads and rows of a layout.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// The sides that a query sees.
    pub sides: Sides,
    /// Heads of a layer.
    pub heads: i64,
    /// Tokens of the longest row, where there is one.
    pub longest: Option<i64>,
}

/// Padding and ALiBi's slopes, which are added to the scores of each key.
#[derive(Debug, Clone, Copy, Default)]
pub struct Hidden<'a> {
    /// 0 for padding, `[B, T]`, which no query sees.
    pub padding: Option<&'a Tensor>,
    /// ALiBi's slope of each head, float32 `[H]`: that many times its place.
    pub slopes: Option<&'a Tensor>,
}

/// The score that hides a key, before it is scaled: a float16 can hold it.
const HIDDEN: f64 = -30_000.0;
/// Columns that queries, keys and values get for what is added to scores: as many as a GPU's kernel wants.
const COLUMNS: i64 = 8;
/// Places are given in two columns, which a bfloat16 holds exactly.
const PLACES: i64 = 128;

impl BlockSparse {
    /// The attention that these options ask for.
    ///
    /// # Errors
    /// The options do not fit the sides or the longest row.
    pub fn new(options: SparseAttention, extent: Extent) -> Result<Self> {
        options.check_sides(extent.sides)?;
        let sparse = Self {
            options,
            extent,
            known: RefCell::default(),
            known_rows: RefCell::default(),
            layouts: RefCell::default(),
            ranges: RefCell::default(),
            known_density: Cell::default(),
        };
        if let Some(longest) = extent.longest {
            Layout::check(&sparse.options, sparse.blocks(longest))?;
        }
        Ok(sparse)
    }

    /// The options.
    pub fn options(&self) -> &SparseAttention {
        &self.options
    }

    /// The sides that a query sees.
    pub fn sides(&self) -> Sides {
        self.extent.sides
    }

    /// The part of dense attention's scores that rows of so many tokens compute.
    pub fn density(&self, tokens: i64) -> Result<f64> {
        if let Some((_, density)) = self.known_density.get().filter(|(known, _)| *known == tokens) {
            return Ok(density);
        }
        let layout = self.layout(self.blocks(tokens))?;
        let density = layout.density(self.is_causal(), self.options.block);
        self.known_density.set(Some((tokens, density)));
        Ok(density)
    }

    /// The attention of queries `[B, H, T, D]` to keys and values, whose heads may be fewer, for the heads from
    /// `first` on.
    pub fn attend(
        &self,
        [q, k, v]: [&Tensor; 3],
        hidden: Hidden<'_>,
        (first, scale): (i64, Option<f64>),
    ) -> Result<Tensor> {
        let size = q.size();
        let (heads, tokens, width) = (size[1], size[2], size[3]);
        let scale = scale.unwrap_or_else(|| (width as f64).powf(-0.5));
        let groups = heads / k.size()[1];
        let [k, v] = [k, v].map(|x| match groups {
            1 => Ok(x.shallow_clone()),
            _ => x.f_repeat_interleave_self_int(groups, 1, None),
        });
        let (k, v) = (k?, v?);
        let blocks = self.blocks(tokens);
        let more = blocks as i64 * self.options.block as i64 - tokens;
        // Behind a row no query of a causal layout looks.
        let hides = hidden.padding.is_some() || (more > 0 && !self.is_causal());
        let with = (hides, more, scale);
        let [q, k, v] = [(Part::Query, q), (Part::Key, &k), (Part::Value, &v)]
            .map(|(part, x)| widened(part, x, hidden, with));
        let (q, k, v) = (q?, k?, v?);
        let calls = self.calls((blocks, (first, heads), q.device()))?;
        let made = calls.attend([&q, &k, &v], scale)?;
        Ok(made.f_narrow(2, 0, tokens)?.f_narrow(3, 0, width)?)
    }

    /// The attention of queries `[B, H, T, D]` to keys and values of as many heads, for the heads from `first`
    /// on, with a bias that is trained: of each distance, key less query and T - 1 more, `[H, 2 * T - 1]`.
    pub fn attend_by_distance(
        &self,
        [q, k, v]: [&Tensor; 3],
        (bias, padding): (&Tensor, Option<&Tensor>),
        (first, scale): (i64, Option<f64>),
    ) -> Result<Tensor> {
        let size = q.size();
        let (heads, tokens, width) = (size[1], size[2], size[3]);
        let scale = scale.unwrap_or_else(|| (width as f64).powf(-0.5));
        let key = (self.blocks(tokens), (first, heads), q.device());
        let known = self
            .known_rows
            .borrow()
            .iter()
            .find(|(known, _)| *known == key)
            .map(|(_, rows)| Rc::clone(rows));
        let rows = match known {
            Some(rows) => rows,
            None => {
                let (layout, block) = (self.layout(key.0)?, self.options.block as i64);
                let rows = Rc::new(BlockRows::new(&layout, block, key.1, key.2)?);
                self.known_rows.borrow_mut().push((key, Rc::clone(&rows)));
                rows
            }
        };
        rows.attend([q, k, v], bias, padding, scale)
    }

    /// The keys that the next token of each row sees, in its heads from the first on: rows have so many tokens
    /// before it.
    pub(crate) fn ranges_of_rows(&self, past: &[i64], heads: (i64, i64)) -> Result<Rc<KeyRanges>> {
        let is_known =
            |((before, of), _): &&(RowsKey, Rc<KeyRanges>)| before == past && *of == heads;
        if let Some((_, ranges)) = self.ranges.borrow().as_ref().filter(is_known) {
            return Ok(Rc::clone(ranges));
        }
        let ranges = Rc::new(self.new_ranges_of_rows(past, heads)?);
        *self.ranges.borrow_mut() = Some(((past.to_vec(), heads), Rc::clone(&ranges)));
        Ok(ranges)
    }

    fn new_ranges_of_rows(&self, past: &[i64], (first, heads): (i64, i64)) -> Result<KeyRanges> {
        let longest = past.iter().max().map_or(1, |past| past + 1);
        let layout = self.layout_for_rows(self.blocks(longest))?;
        let block = self.options.block as i64;
        let mut ranges = KeyRanges::new(heads.unsigned_abs() as usize);
        for &past in past {
            for head in first..first + heads {
                let matrix = layout.groups.iter().find(|(_, heads)| heads.contains(&head));
                let Some((matrix, _)) = matrix else {
                    bail!(Code::Internal, "a head without a layout");
                };
                let row = past / block;
                let seen = |col: &i64| matrix.get(row as usize, *col as usize);
                let blocks = (0..=row).filter(seen);
                ranges.push(blocks.map(|col| col * block..((col + 1) * block).min(past + 1)));
            }
        }
        Ok(ranges)
    }

    fn is_causal(&self) -> bool {
        self.extent.sides == Sides::Unidirectional
    }

    fn blocks(&self, tokens: i64) -> usize {
        (tokens.unsigned_abs() as usize).div_ceil(self.options.block)
    }

    fn layout(&self, blocks: usize) -> Result<Layout> {
        let Extent { sides, heads, longest } = self.extent;
        let longest = longest.map(|tokens| self.blocks(tokens));
        let layout = Layout::new(&self.options, sides, heads, (blocks, longest))?;
        Ok(if self.is_causal() { layout.lower() } else { layout })
    }

    /// A layout of at least so many blocks, made anew when texts have grown by half.
    fn layout_for_rows(&self, blocks: usize) -> Result<Rc<Layout>> {
        let mut layouts = self.layouts.borrow_mut();
        if let Some((_, layout)) = layouts.as_ref().filter(|(known, _)| *known >= blocks) {
            return Ok(Rc::clone(layout));
        }
        let longest = self.extent.longest.map_or(usize::MAX, |tokens| self.blocks(tokens));
        let more = (blocks + blocks / 2 + 1).min(longest).max(blocks);
        let layout = Rc::new(self.layout(more)?);
        *layouts = Some((more, Rc::clone(&layout)));
        Ok(layout)
    }

    fn calls(&self, key: Key) -> Result<Rc<Calls>> {
        if let Some((_, calls)) = self.known.borrow().iter().find(|(known, _)| *known == key) {
            return Ok(Rc::clone(calls));
        }
        let (blocks, heads, device) = key;
        let layout = self.layout(blocks)?;
        let block = self.options.block as i64;
        let calls = Rc::new(Calls::new(&layout, self.is_causal(), block, heads, device)?);
        self.known.borrow_mut().push((key, Rc::clone(&calls)));
        Ok(calls)
    }
}

/// A part of an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Query,
    Key,
    Value,
}

/// `x` `[B, H, T, D]` with `more` tokens, and with columns whose products hide keys and make ALiBi's bias.
fn widened(
    part: Part,
    x: &Tensor,
    hidden: Hidden<'_>,
    (hides, more, scale): (bool, i64, f64),
) -> Result<Tensor> {
    let size = x.size();
    let (tokens, options) = (size[2], (x.kind(), x.device()));
    let x = match more {
        0 => x.shallow_clone(),
        _ => x.f_constant_pad_nd([0, 0, 0, more])?,
    };
    if !hides && hidden.slopes.is_none() {
        return Ok(x);
    }
    let columns = Tensor::f_zeros([size[0], size[1], tokens + more, COLUMNS], options)?;
    let fill = |i: i64, (from, len): (i64, i64), values: &Tensor| -> Result<()> {
        let mut column = columns.f_select(3, i)?.f_narrow(2, from, len)?;
        Ok(column.f_copy_(values).map(drop)?)
    };
    let all = (0, tokens + more);
    let number = |number: f64| Tensor::f_full([1], number, options);
    match part {
        Part::Value => {}
        Part::Query => {
            fill(0, all, &number(1.0)?)?;
            if let Some(slopes) = hidden.slopes {
                let slopes = slopes.f_view([1, -1, 1])?.f_div_scalar(scale)?;
                fill(1, all, &slopes)?;
                fill(2, all, &slopes)?;
            }
        }
        Part::Key => {
            if let Some(padding) = hidden.padding {
                let hide = padding.f_eq(0)?.f_to_kind(options.0)?.f_mul_scalar(HIDDEN)?;
                fill(0, (0, tokens), &hide.f_unsqueeze(1)?)?;
            }
            fill(0, (tokens, more), &number(HIDDEN)?)?;
            let places = Tensor::f_arange(tokens + more, (Kind::Int64, options.1))?;
            let low = places.f_remainder(PLACES)?;
            fill(1, all, &low)?;
            fill(2, all, &places.f_sub(&low)?)?;
        }
    }
    Ok(Tensor::f_cat(&[x, columns], 3)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bridge::autograd::grad,
        config::SparseMode,
        sparse::golden::{cases, expected, tensors},
    };

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// An attention that has been given its layout for one length.
    fn fed(layout: Layout, block: usize, extent: Extent, blocks: usize) -> BlockSparse {
        let options = SparseAttention { block, ..SparseAttention::default() };
        let sparse = BlockSparse::new(options, extent).unwrap();
        let key = (blocks, (0, extent.heads), Device::Cpu);
        let causal = sparse.is_causal();
        let layout = if causal { layout.lower() } else { layout };
        let calls = Calls::new(&layout, causal, block as i64, key.1, Device::Cpu).unwrap();
        sparse.known.borrow_mut().push((key, Rc::new(calls)));
        sparse
    }

    /// Within 1e-5 of dense attention with the mask, which PyTorch computed.
    #[test]
    fn outputs_and_gradients_are_those_of_masked_dense_attention() {
        let tensors = tensors();
        let mut count = 0;
        for case in cases() {
            let Some(inputs) = case["attention_inputs"].as_str() else { continue };
            count += 1;
            let (heads, tokens) =
                (case["num_heads"].as_i64().unwrap(), case["seq_len"].as_i64().unwrap());
            let block = case["block"].as_u64().unwrap() as usize;
            let is_causal = case["causal"].as_bool().unwrap();
            let sides = if is_causal { Sides::Unidirectional } else { Sides::Bidirectional };
            let extent = Extent { sides, heads, longest: None };
            let sparse =
                fed(expected(&case["layout"], heads), block, extent, tokens as usize / block);
            let padding = case["masked_keys"].as_array().map(|masked| {
                let padding = Tensor::ones([1, tokens], (Kind::Int64, Device::Cpu));
                for key in masked {
                    let _ = padding.narrow(1, key.as_i64().unwrap(), 1).fill_(0);
                }
                padding
            });
            let of = |name: &str| tensors(&format!("{inputs}.{name}"));
            let [q, k, v] = ["q", "k", "v"].map(|name| of(name).set_requires_grad(true));
            let hidden = Hidden { padding: padding.as_ref(), slopes: None };
            let out = sparse.attend([&q, &k, &v], hidden, (0, None)).unwrap();
            let grads = grad(&[(&out, &of("grad_out"))], &[&q, &k, &v]).unwrap();
            let id = case["id"].as_str().unwrap();
            let grads: Vec<Tensor> = grads.into_iter().flatten().collect();
            for (name, found) in
                ["out", "dq", "dk", "dv"].into_iter().zip([&out].into_iter().chain(&grads))
            {
                let expected = tensors(&format!("{id}.{name}"));
                let difference = (found - &expected).abs().max().double_value(&[]);
                assert!(difference < 1e-5, "{id} {name}: {difference}");
            }
        }
        assert!(count > 25, "{count}");
    }

    #[test]
    fn a_dense_layout_is_dense_attention_to_the_bit() {
        for sides in [Sides::Unidirectional, Sides::Bidirectional] {
            let options = SparseAttention { mode: SparseMode::Dense, ..SparseAttention::default() };
            let extent = Extent { sides, heads: 4, longest: None };
            let sparse = BlockSparse::new(options, extent).unwrap();
            let [q, k, v] =
                [(); 3].map(|()| Tensor::randn([2, 4, 64, 8], CPU).set_requires_grad(true));
            let causal = sides == Sides::Unidirectional;
            let dense = Tensor::scaled_dot_product_attention(
                &q,
                &k,
                &v,
                None::<&Tensor>,
                0.0,
                causal,
                None,
                false,
            );
            let found = sparse.attend([&q, &k, &v], Hidden::default(), (0, None)).unwrap();
            assert!(found.equal(&dense));
            let weight = Tensor::randn([2, 4, 64, 8], CPU);
            let grads = [&found, &dense].map(|out| grad(&[(out, &weight)], &[&q, &k, &v]).unwrap());
            for (found, expected) in grads[0].iter().zip(&grads[1]) {
                assert!(found.as_ref().unwrap().equal(expected.as_ref().unwrap()));
            }
        }
    }

    /// Rows that no block divides, heads that share keys, heads of one rank of several, ALiBi and padding, beside
    /// dense attention with the mask. In float64, so that nothing but a mistake shows, and in float32, where
    /// ALiBi's scores of up to 75 and 350 round by 4e-6 and 3e-5.
    #[test]
    fn rows_are_padded_and_heads_share_keys_without_a_difference() {
        let options = SparseAttention {
            different_layout_per_head: true,
            num_different_global_patterns: Some(4),
            ..SparseAttention::default()
        };
        for sides in [Sides::Unidirectional, Sides::Bidirectional] {
            let extent = Extent { sides, heads: 8, longest: Some(768) };
            let sparse = BlockSparse::new(options.clone(), extent).unwrap();
            for (kind, tokens, tolerance) in
                [(Kind::Double, 150, 1e-10), (Kind::Float, 150, 1e-4), (Kind::Float, 700, 5e-4)]
            {
                is_as_dense(&sparse, (kind, tokens), tolerance);
            }
        }
    }

    fn is_as_dense(sparse: &BlockSparse, (kind, tokens): (Kind, i64), tolerance: f64) {
        let doubles = (Kind::Double, Device::Cpu);
        let random = |heads| {
            Tensor::randn([2, heads, tokens, 8], (kind, Device::Cpu)).set_requires_grad(true)
        };
        let inputs = [random(4), random(2), random(2)];
        let padding = Tensor::ones([2, tokens], (Kind::Int64, Device::Cpu));
        let _ = padding.narrow(0, 1, 1).narrow(1, 0, 7).fill_(0);
        let slopes = Tensor::from_slice(&[0.5, 0.25, 0.125, 0.0625]);
        // A query of padding may see nothing.
        let weight = Tensor::randn([2, 4, tokens, 8], doubles) * padding.view([2, 1, tokens, 1]);
        let expected = {
            let [q, k, v] = inputs.each_ref().map(|x| x.to_kind(Kind::Double));
            let mask = mask_of(sparse, tokens, (4, 4))
                + &slopes.view([1, 4, 1, 1]) * Tensor::arange(tokens, doubles);
            let mask = mask + padding.eq(0).to_kind(Kind::Double).view([2, 1, 1, tokens]) * -1e9;
            Tensor::scaled_dot_product_attention(&q, &k, &v, Some(&mask), 0.0, false, None, true)
        };
        let hidden = Hidden { padding: Some(&padding), slopes: Some(&slopes) };
        let [q, k, v] = &inputs;
        let found = sparse.attend([q, k, v], hidden, (4, None)).unwrap().to_kind(Kind::Double);
        let grads = [&found, &expected].map(|out| grad(&[(out, &weight)], &[q, k, v]).unwrap());
        let outs = [(&found * &weight, &expected * &weight)];
        let [of_found, of_expected] = grads;
        let grads = of_found.into_iter().zip(of_expected).map(|(a, b)| (a.unwrap(), b.unwrap()));
        for (found, expected) in outs.into_iter().chain(grads) {
            let difference = (found - expected).abs().max().double_value(&[]);
            assert!(difference < tolerance, "{kind:?} {tokens}: {difference}");
        }
    }

    /// What is added to the scores of dense attention, `[1, H, T, T]`.
    fn mask_of(sparse: &BlockSparse, tokens: i64, (first, heads): (i64, i64)) -> Tensor {
        let layout = sparse.layout(sparse.blocks(tokens)).unwrap();
        let block = sparse.options.block as i64;
        let mut mask = Vec::new();
        for head in first..first + heads {
            let (matrix, _) =
                layout.groups.iter().find(|(_, heads)| heads.contains(&head)).unwrap();
            for query in 0..tokens {
                for key in 0..tokens {
                    let seen = matrix.get((query / block) as usize, (key / block) as usize);
                    let hidden = sparse.is_causal() && key > query;
                    mask.push(if seen && !hidden { 0.0f32 } else { f32::NEG_INFINITY });
                }
            }
        }
        Tensor::from_slice(&mask).view([1, heads, tokens, tokens])
    }

    #[test]
    fn a_next_token_sees_what_it_sees_in_a_whole_row() {
        let options = SparseAttention {
            different_layout_per_head: true,
            num_different_global_patterns: Some(2),
            ..SparseAttention::default()
        };
        let extent = Extent { sides: Sides::Unidirectional, heads: 4, longest: Some(200) };
        let sparse = BlockSparse::new(options, extent).unwrap();
        let mask = mask_of(&sparse, 200, (2, 2));
        for past in [0i64, 15, 16, 130, 199] {
            let ranges = sparse.ranges_of_rows(&[past], (2, 2)).unwrap();
            let row = mask.narrow(2, past, 1).squeeze_dim(2).narrow(2, 0, past + 1);
            assert!(ranges.hidden(past + 1, Device::Cpu).unwrap().equal(&row), "{past}");
            let seen = row.eq(0.0).sum(Kind::Int64).int64_value(&[]);
            assert_eq!(ranges.count(), seen, "{past}");
        }
    }
}
