//! Keys and values of texts that are being generated: a slot of memory for each text.
//!
//! Texts enter their slots whole (*prefill*, one row of texts one after another), and then all running
//! texts grow together by one token a pass (*decode*). Their lengths differ, so that nothing is padded.

mod decode_rows;

pub use self::decode_rows::DecodeRows;
use crate::{
    bridge::{
        attention::flash_of_slots,
        decode::{attend, attends},
        key_ranges::KeyRanges,
        rows::keep,
    },
    error::{Code, Error, Result},
    tensor::{Kind, Tensor},
};

/// How a pass uses the caches.
#[derive(Debug)]
pub enum CachePass {
    /// The one row is texts from their start, one after another, whose keys and values are kept in these
    /// slots. Of several texts the masks have the lengths, as documents.
    Prefill(Vec<i64>),
    /// Each row is the next token of a text: row `i` of that in slot `i`.
    Decode(DecodeRows),
}

/// The keys and values of the attentions of one layer.
#[derive(Debug)]
pub struct LayerCache {
    /// Of the tokens themselves.
    pub own: KeyValues,
    /// Of what an encoder made.
    pub cross: KeyValues,
}

/// The keys and values of one attention.
#[derive(Debug)]
pub struct KeyValues {
    slots: i64,
    capacity: i64,
    /// `[slots, H, capacity, D]` each; made for the first tokens, whose shape and format they have.
    memory: Option<(Tensor, Tensor)>,
    /// Tokens of each slot's text.
    tokens: Vec<i64>,
}

impl LayerCache {
    /// For `slots` texts of at most `tokens` tokens, behind at most `encoded` ones of an encoder.
    pub fn new(slots: i64, tokens: i64, encoded: i64) -> Self {
        Self { own: KeyValues::new(slots, tokens), cross: KeyValues::new(slots, encoded) }
    }

    /// Moves the text in slot `from` to slot `to`.
    pub fn move_slot(&mut self, from: i64, to: i64) -> Result<()> {
        self.own.move_slot(from, to)?;
        self.cross.move_slot(from, to)
    }
}

impl KeyValues {
    fn new(slots: i64, capacity: i64) -> Self {
        Self { slots, capacity, memory: None, tokens: vec![0; slots as usize] }
    }

    /// Keeps the keys and values of a whole text, `[1, H, T, D]`, of which queries will see the last
    /// `window`.
    pub fn fill(
        &mut self,
        slot: i64,
        (k, v): (&Tensor, &Tensor),
        window: Option<i64>,
    ) -> Result<()> {
        let tokens = k.size()[2];
        self.tokens[slot as usize] = tokens;
        let (keys, values) = self.memory(k, window)?;
        for (memory, x) in [(keys, k), (values, v)] {
            let memory = memory.f_narrow(0, slot, 1)?;
            let capacity = memory.size()[2];
            let kept = tokens.min(capacity);
            // A position has its place modulo the capacity.
            let first = (tokens - kept) % capacity;
            let until_end = kept.min(capacity - first);
            for (to, from, len) in [(first, 0, until_end), (0, until_end, kept - until_end)] {
                let part = x.f_narrow(2, tokens - kept + from, len)?;
                memory.f_narrow(2, to, len)?.f_copy_(&part)?;
            }
        }
        Ok(())
    }

    /// Adds the keys and values of one token a row, `[B, H, 1, D]`.
    pub fn append(
        &mut self,
        (k, v): (&Tensor, &Tensor),
        rows: &DecodeRows,
        window: Option<i64>,
    ) -> Result<()> {
        let (keys, values) = self.memory(k, window)?;
        let capacity = keys.size()[2];
        let places: Vec<i64> = rows.past().iter().map(|past| past % capacity).collect();
        if !keep((keys, values), (k, v), &places)? {
            let [slots, places] = &*rows.places(capacity)?;
            for (memory, x) in [(keys, k), (values, v)] {
                let mut memory = memory.shallow_clone();
                let at = [Some(slots), None, Some(places)];
                let _ = memory.f_index_put_(&at, &x.f_squeeze_dim(2)?, false)?;
            }
        }
        for (tokens, past) in self.tokens.iter_mut().zip(rows.past()) {
            *tokens = past + 1;
        }
        Ok(())
    }

    /// The attention of the rows' queries, `[B, H, 1, D]`, to what their texts have, the tokens of `rows`
    /// included where they were added, or to ranges of it; `bias` is added to the scores, float32
    /// `[1 or B, H, T]`.
    pub(crate) fn attend(
        &self,
        query: &Tensor,
        (bias, rows): (Option<&Tensor>, Option<&DecodeRows>),
        ranges: Option<&KeyRanges>,
        scale: Option<f64>,
    ) -> Result<Tensor> {
        let [b, heads, width] = [query.size()[0], query.size()[1], query.size()[3]];
        let Some((keys, values)) = &self.memory else {
            bail!(Code::Internal, "an attention to a cache that was never filled");
        };
        let capacity = keys.size()[2];
        let tokens = self.tokens.iter().take(b as usize);
        let seen: Vec<i64> = tokens.map(|&tokens| tokens.min(capacity)).collect();
        let one = query.f_reshape([b, heads, width])?;
        let factor = scale.unwrap_or((width as f64).powf(-0.5));
        if let Some(made) = attend(&one, (keys, values), bias, (&seen, ranges), factor)? {
            return Ok(made.f_unsqueeze(2)?);
        }
        let longest = seen.iter().copied().max().unwrap_or(1);
        let hidden = ranges.map(|ranges| ranges.hidden(longest, query.device())).transpose()?;
        let both = match (bias, hidden) {
            (Some(bias), Some(hidden)) => Some(bias.f_narrow(2, 0, longest)?.f_add(hidden)?),
            (bias, hidden) => bias.or(hidden).map(Tensor::shallow_clone),
        };
        let bias = both.as_ref();
        if let (None, Some(rows)) = (bias, rows.filter(|_| query.device().is_cuda())) {
            let lengths = rows.lengths(keys.size()[1], capacity)?;
            let [keys, values] = [keys, values].map(|x| x.f_narrow(0, 0, b));
            if let Some(made) = flash_of_slots([&one, &keys?, &values?], &lengths, factor)? {
                return Ok(made.f_unsqueeze(2)?);
            }
        }
        let mask = match rows {
            Some(rows) => rows.hidden(capacity, query.kind())?.map(|hidden| hidden.shallow_clone()),
            None => hidden_of(&seen, longest, query)?,
        };
        let mask = match (bias, mask) {
            (Some(bias), mask) => {
                let bias = bias.f_narrow(2, 0, longest)?.f_unsqueeze(2)?.f_to_kind(query.kind())?;
                Some(mask.map_or(Ok(bias.shallow_clone()), |mask| bias.f_add(&mask))?)
            }
            (None, mask) => mask,
        };
        let part = |x: &Tensor| x.f_narrow(0, 0, b)?.f_narrow(2, 0, longest);
        of_shared_heads(query, [&part(keys)?, &part(values)?], mask, scale)
    }

    /// The memory, made for keys like `k`.
    fn memory(&mut self, k: &Tensor, window: Option<i64>) -> Result<&(Tensor, Tensor)> {
        let made = match self.memory.take() {
            Some(made) => made,
            None => {
                let capacity = window.map_or(self.capacity, |window| window.min(self.capacity));
                let size = [self.slots, k.size()[1], capacity, k.size()[3]];
                let place = (k.kind(), k.device());
                // libtorch's attention multiplies what the mask hides, too: there a NaN of memory that nobody
                // has written to would reach every row.
                let make = || match attends(k.kind(), k.device()) {
                    true => Tensor::f_empty(size, place),
                    false => Tensor::f_zeros(size, place),
                };
                make().and_then(|keys| Ok((keys, make()?))).map_err(|e| self.too_large(e, size))?
            }
        };
        Ok(self.memory.insert(made))
    }

    /// The error where such a memory cannot be made.
    fn too_large(&self, e: impl Into<Error>, size: [i64; 4]) -> Error {
        let e = e.into();
        match e.code() {
            Code::Memory => {
                let [slots, _, tokens, _] = size;
                let message = format!(
                    "no memory for the keys and values of {slots} texts of {tokens} tokens"
                );
                Error::new(Code::Memory, message)
                    .caused_by(e)
                    .hint("lower max_new_tokens, or batch_size, the most texts that run at a time")
            }
            _ => e,
        }
    }

    fn move_slot(&mut self, from: i64, to: i64) -> Result<()> {
        self.tokens[to as usize] = self.tokens[from as usize];
        let Some((keys, values)) = &self.memory else { return Ok(()) };
        for memory in [keys, values] {
            memory.f_select(0, to)?.f_copy_(&memory.f_select(0, from)?)?;
        }
        Ok(())
    }
}

/// The keys among `longest` that rows do not see, of which each sees so many: 0 and minus infinity,
/// `[B, 1, 1, T]`. `None` where every row sees all.
fn hidden_of(seen: &[i64], longest: i64, query: &Tensor) -> Result<Option<Tensor>> {
    if seen.iter().all(|&seen| seen == longest) {
        return Ok(None);
    }
    let device = query.device();
    let seen = Tensor::f_from_slice(seen)?.f_to_device(device)?.f_view([-1, 1, 1, 1])?;
    let hidden = Tensor::f_arange(longest, (Kind::Int64, device))?.f_ge_tensor(&seen)?;
    let none = Tensor::f_zeros([1], (query.kind(), device))?;
    Ok(Some(none.f_masked_fill(&hidden, f64::NEG_INFINITY)?))
}

/// libtorch's attention of one query a row, `[B, H, 1, D]`, with a mask `[1 or B, 1 or H, 1, T]`. The queries that
/// share keys are those of one head: so each kernel shares them.
fn of_shared_heads(
    query: &Tensor,
    [keys, values]: [&Tensor; 2],
    mask: Option<Tensor>,
    scale: Option<f64>,
) -> Result<Tensor> {
    let size = query.size();
    let kv_heads = keys.size()[1];
    let by_head = |x: &Tensor, width: i64| x.f_reshape([x.size()[0], kv_heads, -1, width]);
    let mask = mask.map(|mask| match mask.size()[1] {
        1 => Ok(mask),
        _ => by_head(&mask, mask.size()[3]),
    });
    let q = by_head(query, size[3])?;
    let made = Tensor::f_scaled_dot_product_attention(
        &q,
        keys,
        values,
        mask.transpose()?,
        0.0,
        false,
        scale,
        false,
    )?;
    Ok(made.f_reshape(&size[..])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Device, cuda_is_available, no_grad};

    #[test]
    fn a_slot_keeps_the_window_of_its_text() {
        // The rounding of sums in another order.
        keeps_the_window(Kind::Float, Device::Cpu, 1e-5);
    }

    #[test]
    fn a_slot_keeps_the_window_of_its_text_where_libtorchs_attention_is_taken() {
        // Two roundings to fp16, whose numbers near 1 are 2^-11 apart.
        keeps_the_window(Kind::Half, Device::Cpu, 2e-3);
    }

    #[test]
    fn a_slot_keeps_the_window_of_its_text_on_a_gpu() {
        if !cuda_is_available() {
            return println!("skipped: libtorch sees no CUDA device here");
        }
        keeps_the_window(Kind::Float, Device::Cuda(0), 1e-5);
        // Two roundings to bf16, whose numbers near 1 are 2^-8 apart.
        keeps_the_window(Kind::BFloat16, Device::Cuda(0), 1e-2);
    }

    /// Whatever a text has been through, a query sees its last `window` tokens: as libtorch's attention
    /// to them in their order. The memory of the slots held no numbers before.
    fn keeps_the_window(kind: Kind, device: Device, tolerance: f64) {
        let random = |size: &[i64]| Tensor::randn(size, (kind, device));
        no_grad(|| {
            for (window, lengths) in [(None, [3i64, 9]), (Some(4), [3, 9]), (Some(4), [8, 4])] {
                let capacity = window.unwrap_or(20);
                let none = || Tensor::full([2, 2, capacity, 8], f64::NAN, (kind, device));
                drop((0..32).map(|_| none()).collect::<Vec<_>>());
                let mut cache = KeyValues::new(2, 20);
                let mut texts = lengths.map(|n| (random(&[1, 2, n, 8]), random(&[1, 2, n, 8])));
                for (slot, (k, v)) in (0..).zip(&texts) {
                    cache.fill(slot, (k, v), window).unwrap();
                }
                for _ in 0..6 {
                    let past = texts.iter().map(|(k, _)| k.size()[2]).collect();
                    let rows = DecodeRows::new(past, device).unwrap();
                    let [q, k, v] = [4, 2, 2].map(|heads| random(&[2, heads, 1, 8]));
                    cache.append((&k, &v), &rows, window).unwrap();
                    let made = cache.attend(&q, (None, Some(&rows)), None, None).unwrap();
                    for (row, (keys, values)) in (0..).zip(&mut texts) {
                        let longer = |x: &Tensor, new: &Tensor| {
                            Tensor::cat(&[x.shallow_clone(), new.narrow(0, row, 1)], 2)
                        };
                        (*keys, *values) = (longer(keys, &k), longer(values, &v));
                        let tokens = keys.size()[2];
                        let seen = window.map_or(tokens, |window| tokens.min(window));
                        let last = |x: &Tensor| x.narrow(2, tokens - seen, seen);
                        let expected = Tensor::scaled_dot_product_attention(
                            &q.narrow(0, row, 1),
                            &last(keys),
                            &last(values),
                            None::<&Tensor>,
                            0.0,
                            false,
                            None,
                            true,
                        );
                        assert!(
                            made.narrow(0, row, 1).allclose(&expected, tolerance, tolerance, false)
                        );
                    }
                }
            }
        });
    }
}
