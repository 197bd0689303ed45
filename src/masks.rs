//! Masks of the scores: padding, causality and windows.

use std::cell::RefCell;

use crate::tensor::{Device, Kind, Tensor};

/// The padding and the decoder's tokens of a batch, and the masks made of them, each once a
/// pass.
#[derive(Debug, Default)]
pub struct Masks {
    /// 0 for padding, `[B, T]`; `None` where no query would see padding anyway.
    padding: Option<Tensor>,
    /// The decoder's input of a model with an encoder, `[B, T]`.
    decoder_input_ids: Option<Tensor>,
    documents: Option<Box<Documents>>,
    made: RefCell<Vec<(Shape, Tensor)>>,
}

/// The texts of each row, of which none sees another.
#[derive(Debug)]
pub(crate) struct Documents {
    /// Tokens of each text of each row.
    lengths: Vec<Vec<i64>>,
    /// The place of each token in its text, `[B, T]`.
    positions: Tensor,
    /// The masks of single texts.
    masks: Masks,
}

impl Documents {
    /// Tokens of each text of each row.
    pub(crate) fn lengths(&self) -> &[Vec<i64>] {
        &self.lengths
    }

    /// The place of each token in its text, int64 `[B, T]`.
    pub(crate) fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// The masks of single texts.
    pub(crate) fn masks(&self) -> &Masks {
        &self.masks
    }
}

/// The kind of a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shape {
    queries: i64,
    window: Option<i64>,
    /// Bool, or that of a bias.
    kind: Kind,
    /// The heads of ALiBi's bias.
    alibi: Option<AlibiHeads>,
}

/// Heads with ALiBi's bias: those of one rank, whose slopes depend on how many there are on all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlibiHeads {
    /// Heads of the layer.
    pub all: i64,
    /// The first of the rank.
    pub first: i64,
    /// Heads of the rank.
    pub count: i64,
}

impl Masks {
    /// For rows whose padding, 0 in `padding` `[B, T]`, must be hidden.
    pub fn new(padding: Option<Tensor>) -> Self {
        Self { padding, ..Self::default() }
    }

    /// The same with what the decoder is given.
    pub fn with_decoder(self, decoder_input_ids: Option<Tensor>) -> Self {
        Self { decoder_input_ids, ..self }
    }

    /// The same for rows of several texts, of which none sees another: `lengths` are the tokens of each
    /// text, equally many in each row.
    pub fn with_documents(self, lengths: &[Vec<i64>], device: Device) -> Self {
        let places: Vec<i64> = lengths.iter().flatten().flat_map(|&length| 0..length).collect();
        let positions = Tensor::from_slice(&places).to_device(device);
        let positions = positions.view([lengths.len() as i64, -1]);
        let documents = Documents { lengths: lengths.to_vec(), positions, masks: Self::default() };
        Self { documents: Some(Box::new(documents)), ..self }
    }

    /// The texts of the rows, where they are several.
    pub(crate) fn documents(&self) -> Option<&Documents> {
        self.documents.as_deref()
    }

    /// The decoder's input.
    pub fn decoder_input_ids(&self) -> Option<&Tensor> {
        self.decoder_input_ids.as_ref()
    }

    /// 0 for padding, `[B, T]`, where some must be hidden.
    pub fn padding(&self) -> Option<&Tensor> {
        self.padding.as_ref()
    }

    /// The mask of `queries` tokens, `[B or 1, 1, T, T]`: a query sees the tokens up to its own place, of
    /// them the last `window`. `None` where causality is all that there is, which kernels know themselves.
    /// It is bool, or, in a floating format, 0 for what is seen and minus infinity for the rest: kernels
    /// would make that of a bool mask for every layer, and keep it for the backward pass.
    pub fn causal(
        &self,
        queries: i64,
        window: Option<i64>,
        (kind, device): (Kind, Device),
    ) -> Option<Tensor> {
        // A window that nothing is outside of.
        let window = window.filter(|&window| window < queries);
        let is_plain = window.is_none() && self.padding.is_none();
        (!is_plain).then(|| self.get(Shape { queries, window, kind, alibi: None }, device))
    }

    /// The causal mask as a bias of the scores, with ALiBi's, `[B or 1, H, T, T]`: each head adds
    /// its slope times the key's place. The place of the query would add the same to a whole row of
    /// scores, and is left out, as in transformers.
    pub fn alibi(&self, queries: i64, heads: AlibiHeads, (kind, device): (Kind, Device)) -> Tensor {
        self.get(Shape { queries, window: None, kind, alibi: Some(heads) }, device)
    }

    /// The causal mask of a decoder's tokens behind an encoder, bool, `[1, 1, T, T]`. Padding stands
    /// behind its tokens, where no query sees it.
    pub fn decoder(&self, tokens: i64, device: Device) -> Tensor {
        let seen = Tensor::ones([tokens, tokens], (Kind::Bool, device)).tril(0);
        seen.view([1, 1, tokens, tokens])
    }

    /// The mask of an encoder's tokens, bool, `[B, 1, 1, T]`; `None` without padding.
    pub fn encoder(&self) -> Option<Tensor> {
        self.padding.as_ref().map(|padding| {
            let &[rows, tokens] = padding.size().as_slice() else { unreachable!("it is [B, T]") };
            padding.not_equal(0).view([rows, 1, 1, tokens])
        })
    }

    fn get(&self, shape: Shape, device: Device) -> Tensor {
        if let Some((_, mask)) = self.made.borrow().iter().find(|(known, _)| *known == shape) {
            return mask.shallow_clone();
        }
        let mask = self.make(shape, device);
        self.made.borrow_mut().push((shape, mask.shallow_clone()));
        mask
    }

    fn make(&self, shape: Shape, device: Device) -> Tensor {
        let seen = self.seen(shape, device);
        if shape.kind == Kind::Bool {
            return seen;
        }
        let bias = match shape.alibi {
            Some(heads) => {
                let bias = match &self.padding {
                    Some(padding) => alibi_at(heads, &places(padding)),
                    None => alibi_of_keys(heads, shape.queries, device),
                };
                bias.unsqueeze(2).to_kind(shape.kind)
            }
            None => Tensor::zeros([1], (shape.kind, device)),
        };
        bias.masked_fill(&seen.logical_not(), f64::NEG_INFINITY)
    }

    fn seen(&self, Shape { queries, window, .. }: Shape, device: Device) -> Tensor {
        let mut seen = Tensor::ones([queries, queries], (Kind::Bool, device)).tril(0);
        if let Some(window) = window {
            seen = seen.triu(1 - window);
        }
        let seen = seen.view([1, 1, queries, queries]);
        let Some(padding) = &self.padding else { return seen };
        let real = padding.not_equal(0);
        // A padding token sees itself: a row without any key has no softmax.
        let itself = Tensor::eye(queries, (Kind::Int64, device)).not_equal(0);
        real.view([-1, 1, 1, queries]).logical_or(&itself).logical_and(&seen)
    }
}

/// ALiBi's bias of the scores of `keys` keys, float32 `[1, H, T]`.
pub(crate) fn alibi_of_keys(heads: AlibiHeads, keys: i64, device: Device) -> Tensor {
    alibi_at(heads, &Tensor::arange(keys, (Kind::Float, device)))
}

/// ALiBi's bias of the scores of keys in these places, float32 `[B or 1, 1, T]`: `[B or 1, H, T]`.
fn alibi_at(heads: AlibiHeads, places: &Tensor) -> Tensor {
    alibi_slopes(heads, places.device()).view([1, heads.count, 1]) * places
}

/// The place of each key among the tokens of its row, float32 `[B, 1, T]`: padding counts for none, as in
/// transformers.
fn places(padding: &Tensor) -> Tensor {
    let real = padding.not_equal(0).to_kind(Kind::Float);
    ((real.cumsum(1, Kind::Float) - 1) * real).unsqueeze(1)
}

/// ALiBi's slope of each head, float32 `[H]`.
pub(crate) fn alibi_slopes(AlibiHeads { all, first, count }: AlibiHeads, device: Device) -> Tensor {
    Tensor::from_slice(&slopes(all)).narrow(0, first, count).to_device(device)
}

/// ALiBi's slope of each of `heads` heads: powers of two for a power of two heads, and then those of twice
/// as many heads, every other one.
fn slopes(heads: i64) -> Vec<f32> {
    let whole = 1 << heads.max(1).ilog2();
    let of = |count: i64, i: i64| 2f64.powf(-8.0 * i as f64 / count as f64) as f32;
    let first = (1..=whole).map(|i| of(whole, i));
    let rest = (0..heads - whole).map(|i| of(2 * whole, 2 * i + 1));
    first.chain(rest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOL: (Kind, Device) = (Kind::Bool, Device::Cpu);

    fn seen(mask: &Tensor) -> Vec<i64> {
        Vec::try_from(mask.to_kind(Kind::Int64).reshape([-1])).unwrap()
    }

    #[test]
    fn a_token_sees_no_padding_and_padding_sees_itself() {
        let padding = Tensor::from_slice(&[1i64, 1, 1, 0, 1, 1]).view([2, 3]);
        let mask = Masks::new(Some(padding)).causal(3, None, BOOL).unwrap();
        assert_eq!(mask.size(), [2, 1, 3, 3]);
        assert_eq!(seen(&mask), [1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 1]);
    }

    #[test]
    fn a_window_has_the_token_and_those_before_it() {
        let masks = Masks::default();
        let mask = masks.causal(3, Some(2), BOOL).unwrap();
        assert_eq!(seen(&mask), [1, 0, 0, 1, 1, 0, 0, 1, 1]);
        assert!(masks.causal(3, Some(3), BOOL).is_none(), "nothing is outside");
    }

    #[test]
    fn padding_inside_of_a_row_takes_no_place() {
        let heads = AlibiHeads { all: 2, first: 0, count: 2 };
        let of = |padding: &[i64]| {
            let padding = Tensor::from_slice(padding).view([1, -1]);
            let tokens = padding.size()[1];
            let bias = Masks::new(Some(padding)).alibi(tokens, heads, (Kind::Float, Device::Cpu));
            bias.select(2, tokens - 1).squeeze()
        };
        let keys = Tensor::from_slice(&[0i64, 2, 3]);
        assert!(of(&[1, 0, 1, 1]).index_select(1, &keys).equal(&of(&[1, 1, 1])));
    }

    #[test]
    fn a_bias_hides_what_the_mask_hides() {
        let padding = Tensor::from_slice(&[0i64, 1, 1, 1, 1, 1]).view([2, 3]);
        let masks = Masks::new(Some(padding));
        let bias = masks.causal(3, Some(2), (Kind::Half, Device::Cpu)).unwrap();
        let mask = masks.causal(3, Some(2), BOOL).unwrap();
        assert_eq!((bias.kind(), bias.size()), (Kind::Half, mask.size()));
        assert_eq!(seen(&bias.eq(0)), seen(&mask));
        assert_eq!(seen(&bias.eq(f64::NEG_INFINITY)), seen(&mask.logical_not()));
    }
}
