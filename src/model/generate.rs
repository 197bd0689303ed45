//! Generation: one token after another, with the keys and values of earlier tokens kept.
//!
//! The options have the names and defaults of transformers' sampling (`do_sample=True`): the logits
//! are divided by the temperature, cut to the `top_k` largest, then to the smallest set whose
//! probabilities sum to `top_p` (Holtzman et al. 2020), and one is drawn. A GPU sorts the logits, and
//! the candidates come to the host in one copy a token; the draw is made here, so that a seed gives
//! the same text on every device that computes the same logits.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{KeyValues, Masks, Model, Prediction, forward::Inference};
use crate::{
    config::options::option_table,
    error::{Code, Error, Result},
    tensor::{Device, Kind, Tensor, guard, to_device},
};

option_table! {
    /// How the next token is chosen, and when to stop.
    #[derive(Debug, Clone, PartialEq)]
    pub struct Sampling {
        /// the most tokens to generate
        #[option(default = 50, range = 1..)]
        pub max_new_tokens: usize,
        /// what logits are divided by; 0 takes the most likely token each time
        #[option(default = 1.0, range = 0.0..)]
        pub temperature: f64,
        /// how many of the most likely tokens are drawn from; 0 is all
        #[option(default = 50)]
        pub top_k: usize,
        /// the sum of the probabilities of the most likely tokens that are drawn from
        #[option(default = 1.0, must = |p: &f64| *p > 0.0 && *p <= 1.0 => "above 0 and at most 1")]
        pub top_p: f64,
        /// the seed of the draws
        #[option(default = 0)]
        pub seed: u64,
    }
}

impl Model {
    /// The tokens that follow `prompt`, without it; ends at one of `eos` (which is not returned), at
    /// `max_new_tokens`, or when `stop` says so after a token. A model with an encoder reads the prompt
    /// there, and the tokens are the decoder's.
    pub fn generate(
        &self,
        prompt: &[i64],
        sampling: &Sampling,
        eos: &[i64],
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<i64>> {
        self.check_prompt(prompt.len(), sampling.max_new_tokens)?;
        let lowest_and_highest = prompt.iter().min().zip(prompt.iter().max());
        if let Some((&low, &high)) = lowest_and_highest {
            self.check_ids(low, high)?;
        }
        let prompt = to_device(prompt, &[1, prompt.len() as i64], self.device())?;
        let (encoded, mut input) = match self.facts().objective {
            Prediction::Causal { .. } => (None, prompt),
            Prediction::Seq2Seq { decoder_start_token_id } => {
                (Some(prompt), to_device(&[decoder_start_token_id], &[1, 1], self.device())?)
            }
        };
        guard("generate", || {
            let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
            // The last token of all is not looked at again.
            let capacity = input.size()[1] + (sampling.max_new_tokens as i64 - 1).max(0);
            let mut caches = self.caches(capacity);
            let mut all = input.shallow_clone();
            let mut generated = Vec::new();
            let mut done = false;
            loop {
                done = done || generated.len() == sampling.max_new_tokens || stop();
                // Ranks that share the parameters out end together.
                if !self.any(!done)? {
                    break;
                }
                if done {
                    self.participate()?;
                    continue;
                }
                let logits = self.last_logits(encoded.as_ref(), &input, caches.as_deref_mut())?;
                let token = choose(&logits, sampling, &mut rng)?;
                if eos.contains(&token) {
                    done = true;
                    continue;
                }
                generated.push(token);
                let token = to_device(&[token], &[1, 1], self.device())?;
                all = Tensor::f_cat(&[&all, &token], 1)?;
                if self.facts().cache_ends_behind == Some(all.size()[1] - 1) {
                    caches = self.caches(capacity);
                    input = all.shallow_clone();
                    continue;
                }
                // Where nothing is kept, all tokens each time.
                input = if caches.is_some() { token } else { all.shallow_clone() };
            }
            Ok(generated)
        })
    }

    /// A cache for each layer, where layers use them.
    fn caches(&self, capacity: i64) -> Option<Vec<KeyValues>> {
        let is_cached = self.facts().objective == Prediction::Causal { is_cached: true };
        let caches = || self.layers().iter().map(|_| KeyValues::new(capacity)).collect();
        is_cached.then(caches)
    }

    fn check_prompt(&self, prompt: usize, new: usize) -> Result<()> {
        if prompt == 0 {
            return Err(Error::new(Code::BadValue, "the prompt has no token")
                .hint("begin with the end-of-text token, which models see before each text"));
        }
        let positions = self.facts().max_positions;
        if let Some(positions) = positions.filter(|&positions| (prompt + new) as i64 > positions) {
            return Err(Error::new(
                Code::Shape,
                format!(
                    "a prompt of {prompt} tokens and max_new_tokens {new} are more than the model's \
                     {positions} positions"
                ),
            )
            .hint("shorten the prompt or lower max_new_tokens"));
        }
        Ok(())
    }

    /// The logits after the last of `input_ids` `[1, T]`, which follow what the caches hold: `[V]`. With
    /// `encoded` they are the decoder's.
    fn last_logits(
        &self,
        encoded: Option<&Tensor>,
        input_ids: &Tensor,
        caches: Option<&mut [KeyValues]>,
    ) -> Result<Tensor> {
        let how = Inference { caches, last_only: true, ..Inference::default() };
        let logits = match encoded {
            None => self.infer(input_ids, &Masks::default(), how)?,
            Some(encoded) => {
                let masks = Masks::default().with_decoder(Some(input_ids.shallow_clone()));
                self.infer(encoded, &masks, how)?
            }
        };
        Ok(logits.narrow(1, logits.size()[1] - 1, 1).reshape([-1]))
    }
}

/// Draws one token.
fn choose(logits: &Tensor, sampling: &Sampling, rng: &mut impl Rng) -> Result<i64> {
    if sampling.temperature == 0.0 {
        return Ok(logits.f_argmax(0, false)?.f_int64_value(&[])?);
    }
    let most_likely = most_likely(logits, sampling.top_k)?;
    // NaN comes before all others.
    if most_likely.first().is_none_or(|(_, logit)| logit.is_nan()) {
        bail!(Code::Diverged, "the model's logits are NaN: no token can be drawn");
    }
    let candidates = candidates(&most_likely, sampling);
    let total: f64 = candidates.iter().map(|(_, weight)| weight).sum();
    let mut left = rng.random::<f64>() * total;
    for &(token, weight) in &candidates {
        left -= weight;
        if left < 0.0 {
            return Ok(token);
        }
    }
    // Rounding can leave a little over after the last one.
    Ok(candidates.last().map_or(0, |&(token, _)| token))
}

/// The `top_k` tokens with the largest logits, all for 0, and these, the largest first.
fn most_likely(logits: &Tensor, top_k: usize) -> Result<Vec<(i64, f64)>> {
    let vocab = logits.numel();
    let k = if top_k == 0 { vocab } else { top_k.min(vocab) };
    match logits.device() {
        Device::Cpu => most_likely_here(logits, k),
        _ => most_likely_there(logits, k),
    }
}

/// [`most_likely`] for logits on the CPU, where it is faster to sort no more than is asked for.
fn most_likely_here(logits: &Tensor, k: usize) -> Result<Vec<(i64, f64)>> {
    let logits = Vec::<f64>::try_from(&logits.f_to_kind(Kind::Double)?)?;
    let mut tokens: Vec<(i64, f64)> = (0..).zip(logits).collect();
    let likely_first = |a: &(i64, f64), b: &(i64, f64)| {
        let by_logit = b.1.partial_cmp(&a.1);
        let by_logit = by_logit.unwrap_or_else(|| b.1.is_nan().cmp(&a.1.is_nan()));
        // The id breaks ties, so that the order is one on every machine.
        by_logit.then(a.0.cmp(&b.0))
    };
    if k < tokens.len() {
        tokens.select_nth_unstable_by(k, likely_first);
        tokens.truncate(k);
    }
    tokens.sort_unstable_by(likely_first);
    Ok(tokens)
}

/// [`most_likely`] for logits on a GPU, in one copy. `topk` would leave open which of equal logits it
/// takes, of which there are many in 16 bits; a stable sort takes those with the lower ids.
fn most_likely_there(logits: &Tensor, k: usize) -> Result<Vec<(i64, f64)>> {
    let (sorted, ids) = logits.f_sort_stable(true, 0, true)?;
    let first = |x: &Tensor| x.f_narrow(0, 0, k as i64)?.f_to_kind(Kind::Double);
    let both = Vec::<f64>::try_from(&Tensor::f_cat(&[first(&sorted)?, first(&ids)?], 0)?)?;
    let (logits, ids) = both.split_at(k);
    Ok(ids.iter().map(|&id| id as i64).zip(logits.iter().copied()).collect())
}

/// The tokens that may be drawn with their weights, of the most likely ones with their logits.
fn candidates(most_likely: &[(i64, f64)], sampling: &Sampling) -> Vec<(i64, f64)> {
    let max = most_likely.first().map_or(0.0, |&(_, logit)| logit);
    let weight = |logit: f64| ((logit - max) / sampling.temperature).exp();
    let mut tokens: Vec<_> = most_likely.iter().map(|&(id, logit)| (id, weight(logit))).collect();
    if sampling.top_p < 1.0 {
        let most = sampling.top_p * tokens.iter().map(|(_, weight)| weight).sum::<f64>();
        let mut sum = 0.0;
        let reached = tokens.iter().position(|(_, weight)| {
            sum += weight;
            sum >= most
        });
        tokens.truncate(reached.map_or(tokens.len(), |i| i + 1));
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tiny_gpt2;

    fn sampling() -> Sampling {
        Sampling { top_k: 0, ..Sampling::default() }
    }

    fn ids(candidates: &[(i64, f64)]) -> Vec<i64> {
        candidates.iter().map(|&(id, _)| id).collect()
    }

    #[test]
    fn top_k_and_top_p_keep_the_most_likely() {
        // Probabilities 0.1, 0.5, 0.25, 0.15.
        let logits = Tensor::from_slice(&[0.1f64, 0.5, 0.25, 0.15].map(f64::ln));
        let with = |top_k, top_p| {
            let most_likely = most_likely(&logits, top_k).unwrap();
            ids(&candidates(&most_likely, &Sampling { top_k, top_p, ..sampling() }))
        };
        assert_eq!(with(0, 1.0), [1, 2, 3, 0]);
        assert_eq!(with(2, 1.0), [1, 2]);
        assert_eq!(with(0, 0.74), [1, 2]);
        assert_eq!(with(0, 0.76), [1, 2, 3]);
        assert_eq!(with(0, 0.1), [1], "at least one stays");
    }

    /// Both ways to find them, with the many equal logits of 16 bits.
    #[test]
    fn the_most_likely_are_the_same_on_every_device() {
        let logits = Tensor::randn([2000], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        for k in [1, 7, 50, 1999, 2000] {
            let here = most_likely_here(&logits, k).unwrap();
            assert_eq!(here, most_likely_there(&logits, k).unwrap(), "{k}");
            assert_eq!(here.len(), k);
        }
        let with_nan = Tensor::from_slice(&[1.0f32, f32::NEG_INFINITY, -f32::NAN, f32::INFINITY]);
        for way in [most_likely_here, most_likely_there] {
            assert_eq!(ids(&way(&with_nan, 4).unwrap()), [2, 3, 0, 1]);
            let e = choose(&with_nan, &sampling(), &mut ChaCha8Rng::seed_from_u64(1)).unwrap_err();
            assert_eq!(e.code(), Code::Diverged);
        }
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = Tensor::from_slice(&[0.25f64.ln(), 0.75f64.ln()]);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let draws = 4000;
        let ones: i64 = (0..draws).map(|_| choose(&logits, &sampling(), &mut rng).unwrap()).sum();
        // Four standard deviations of the binomial.
        let deviation = 4.0 * (0.75 * 0.25 / draws as f64).sqrt();
        assert!((ones as f64 / draws as f64 - 0.75).abs() < deviation, "{ones}");
    }

    /// The cache changes the cost, not the tokens.
    #[test]
    fn the_cache_gives_the_tokens_of_the_whole_sequence() {
        let sizes = [("vocab_size", 31), ("n_positions", 16), ("n_embd", 16)];
        let config = tiny_gpt2(&sizes, 0.1, true);
        let model = Model::from_scratch(&config, 3, Device::Cpu).unwrap();
        let greedy = Sampling { max_new_tokens: 8, temperature: 0.0, ..sampling() };
        let with_cache = model.generate(&[5, 6, 7], &greedy, &[], &|| false).unwrap();
        let mut all = vec![5i64, 6, 7];
        for _ in 0..8 {
            let logits =
                model.logits(&Tensor::from_slice(&all).view([1, -1]), &Masks::default()).unwrap();
            let last = logits.select(1, logits.size()[1] - 1);
            all.push(last.argmax(1, false).int64_value(&[0]));
        }
        assert_eq!(with_cache, all[3..]);
        let until = model.generate(&[5, 6, 7], &greedy, &[all[4]], &|| false).unwrap();
        assert!(until.len() <= 1, "the end-of-text token ends the text");
    }

    #[test]
    fn what_the_model_has_no_position_for_is_refused() {
        let sizes = [("vocab_size", 8), ("n_positions", 4), ("n_embd", 4)];
        let config = tiny_gpt2(&sizes, 0.1, true);
        let model = Model::from_scratch(&config, 0, Device::Cpu).unwrap();
        let new = |prompt: &[i64], max_new_tokens| {
            model.generate(prompt, &Sampling { max_new_tokens, ..sampling() }, &[], &|| false)
        };
        assert_eq!(new(&[1, 2], 3).unwrap_err().code(), Code::Shape);
        assert_eq!(new(&[1, 8], 1).unwrap_err().code(), Code::TokenId);
        assert_eq!(new(&[], 1).unwrap_err().code(), Code::BadValue);
        assert_eq!(new(&[1, 2], 2).unwrap().len(), 2);
    }
}
