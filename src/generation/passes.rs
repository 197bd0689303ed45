//! The passes of a model over running texts: whole texts that enter, and one more token of each.

use rand_chacha::ChaCha8Rng;

use crate::{
    error::Result,
    kv_cache::{CachePass, DecodeRows, LayerCache},
    model::{Inference, Masks, Model},
    tensor::{Tensor, to_device},
};

/// A text in a slot.
pub(super) struct Running {
    /// The number of its prompt.
    pub(super) text: usize,
    /// The encoder's tokens.
    pub(super) encoder: Option<Vec<i64>>,
    /// The tokens so far, the prompt's included.
    pub(super) tokens: Vec<i64>,
    /// The number of tokens before the first new one.
    pub(super) start: usize,
    pub(super) logprobs: Vec<f64>,
    /// Whether the slot holds all tokens but the last.
    pub(super) is_cached: bool,
    pub(super) rng: ChaCha8Rng,
}

impl Running {
    /// The tokens that a pass over the whole text reads: the encoder's, if there is one.
    pub(super) fn whole(&self) -> &[i64] {
        self.encoder.as_deref().unwrap_or(&self.tokens)
    }

    pub(super) fn drawing(&mut self) -> (&[i64], usize, &mut ChaCha8Rng) {
        (&self.tokens, self.tokens.len() - self.start, &mut self.rng)
    }
}

/// The logits `[n, V]` behind the whole texts of these slots.
pub(super) fn prefill(
    model: &Model,
    running: &mut [Running],
    slots: &[usize],
    caches: &mut Option<Vec<LayerCache>>,
) -> Result<Tensor> {
    // Short texts stand beside each other, since products of theirs are taken together.
    let mut places: Vec<usize> = (0..slots.len()).collect();
    places.sort_by_key(|&place| running[slots[place]].whole().len());
    let slots: Vec<usize> = places.iter().map(|&place| slots[place]).collect();
    let texts = || slots.iter().map(|&slot| &running[slot]);
    let row = |tokens: Vec<i64>| to_device(&tokens, &[1, tokens.len() as i64], model.device());
    let input = row(texts().flat_map(Running::whole).copied().collect())?;
    let masks = match model.facts().is_seq2seq() {
        false => Masks::default(),
        true => {
            let tokens = texts().flat_map(|text| &text.tokens).copied().collect();
            Masks::default().with_decoder(Some(row(tokens)?))
        }
    };
    let lengths: Vec<i64> = texts().map(|text| text.whole().len() as i64).collect();
    let masks = match lengths.len() {
        1 => masks,
        _ => masks.with_documents(&[lengths], model.device()),
    };
    let pass = CachePass::Prefill(slots.iter().map(|&slot| slot as i64).collect());
    for &slot in &slots {
        running[slot].is_cached = caches.is_some();
    }
    let logits = last_logits(model, (&input, &masks), &pass, caches)?;
    let mut from: Vec<i64> = vec![0; places.len()];
    for (row, place) in (0..).zip(places) {
        from[place] = row;
    }
    Ok(logits.f_index_select(0, &to_device(&from, &[from.len() as i64], logits.device())?)?)
}

/// The logits `[B, V]` behind the last token of each running text.
pub(super) fn decode(
    model: &Model,
    running: &[Running],
    caches: &mut Option<Vec<LayerCache>>,
) -> Result<Tensor> {
    let past = running.iter().map(|text| text.tokens.len() as i64 - 1).collect();
    let rows = DecodeRows::new(past, model.device())?;
    let last: Vec<i64> = running.iter().filter_map(|text| text.tokens.last().copied()).collect();
    let input = to_device(&last, &[last.len() as i64, 1], model.device())?;
    let pass = CachePass::Decode(rows);
    last_logits(model, (&input, &Masks::default()), &pass, caches)
}

fn last_logits(
    model: &Model,
    (input, masks): (&Tensor, &Masks),
    pass: &CachePass,
    caches: &mut Option<Vec<LayerCache>>,
) -> Result<Tensor> {
    let caches = caches.as_deref_mut().map(|caches| (pass, caches));
    let logits =
        model.infer(input, masks, Inference { objective: None, caches, last_only: true })?;
    let tokens = logits.size()[1];
    match pass {
        // Each position is the last one of a text.
        CachePass::Prefill(texts) if texts.len() > 1 => Ok(logits.f_squeeze_dim(0)?),
        _ => Ok(logits.f_select(1, tokens - 1)?),
    }
}
