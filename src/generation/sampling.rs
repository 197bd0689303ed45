//! The next token of each text, from its logits.
//!
//! The options have the names and meanings of transformers' sampling (`do_sample=True`), in its order:
//! the logits of tokens that a text has are lowered by `repetition_penalty` (Keskar et al. 2019), all
//! are divided by the temperature, cut to the `top_k` largest, then to the smallest set whose
//! probabilities sum to `top_p` (Holtzman et al. 2020) and to those of at least `min_p` times the
//! largest (Nguyen et al. 2024), and one is drawn. A GPU sorts the logits, and the candidates come to
//! the host in one copy a pass; the draw is made here, by a seed of each text, so that a seed gives
//! the same text on every device that computes the same logits, and in every batch.

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use crate::{
    config::options::{OneOrMany, option_table},
    error::{Code, Result},
    tensor::{Device, Kind, Tensor},
};

option_table! {
    /// How next tokens are chosen, and when texts end.
    #[derive(Debug, Clone, PartialEq)]
    #[check(check)]
    pub struct Sampling {
        /// the most tokens to generate
        #[option(default = 50, range = 1..=1_000_000_000)]
        pub max_new_tokens: usize,
        /// the tokens before which no end-of-text token is given
        #[option(default = 0)]
        pub min_new_tokens: usize,
        /// what logits are divided by; 0 takes the most likely token each time
        #[option(default = 1.0, must = |t: &f64| *t >= 0.0 && t.is_finite() => "0 or more, and finite")]
        pub temperature: f64,
        /// how many of the most likely tokens are drawn from; 0 is all
        #[option(default = 50)]
        pub top_k: usize,
        /// the sum of the probabilities of the most likely tokens that are drawn from
        #[option(default = 1.0, must = |p: &f64| *p > 0.0 && *p <= 1.0 => "above 0 and at most 1")]
        pub top_p: f64,
        /// the least probability of a token that is drawn, as a part of the largest
        #[option(default = 0.0, range = 0.0..=1.0)]
        pub min_p: f64,
        /// what the logits of tokens that the text has are divided by, or multiplied if negative
        #[option(default = 1.0, must = |p: &f64| *p > 0.0 && p.is_finite() => "above 0, and finite")]
        pub repetition_penalty: f64,
        /// texts that end the generation; they are left out of the result
        #[option(default = OneOrMany(Vec::new()))]
        pub stop: OneOrMany<String>,
        /// texts for each prompt, each from draws of its own
        #[option(default = 1, range = 1..=100_000)]
        pub num_return_sequences: usize,
        /// the seed of each text's draws, or an array with one for each prompt
        #[option(default = OneOrMany(vec![0]))]
        pub seed: OneOrMany<u64>,
        /// the most texts that run at a time
        #[option(default = 16, range = 1..)]
        pub batch_size: usize,
        /// whether details have the logarithm of each token's probability
        #[option(default = false)]
        pub logprobs: bool,
    }
}

fn check(sampling: &Sampling) -> Result<()> {
    if sampling.temperature == 0.0 && sampling.num_return_sequences > 1 {
        bail!(
            Code::BadValue,
            "`num_return_sequences` {} needs a `temperature` above 0: the most likely text is one",
            sampling.num_return_sequences
        );
    }
    let Sampling { min_new_tokens, max_new_tokens, .. } = *sampling;
    if min_new_tokens > max_new_tokens {
        bail!(
            Code::BadValue,
            "`min_new_tokens` {min_new_tokens} is more than `max_new_tokens` {max_new_tokens}"
        );
    }
    if sampling.stop.0.iter().any(String::is_empty) {
        bail!(Code::BadValue, "`stop` must not have an empty text, which is everywhere");
    }
    Ok(())
}

/// A token for a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Choice {
    pub(super) token: i64,
    /// The logarithm of its probability by the model's own logits, if asked for.
    pub(super) logprob: Option<f64>,
}

/// Chooses by the options.
#[derive(Debug)]
pub(super) struct Chooser<'a> {
    sampling: &'a Sampling,
    eos: &'a [i64],
}

impl<'a> Chooser<'a> {
    pub(super) fn new(sampling: &'a Sampling, eos: &'a [i64]) -> Self {
        Self { sampling, eos }
    }

    /// Whether the token ends a text.
    pub(super) fn ends(&self, token: i64) -> bool {
        self.eos.contains(&token)
    }

    /// A token for each row of the logits `[B, V]`, whose texts have these tokens, so many of them
    /// new.
    pub(super) fn choose<'t>(
        &self,
        logits: &Tensor,
        texts: impl Iterator<Item = (&'t [i64], usize, &'t mut ChaCha8Rng)>,
    ) -> Result<Vec<Choice>> {
        let texts: Vec<_> = texts.collect();
        let changed = self.changed(logits, &texts)?;
        let seen = changed.as_ref().unwrap_or(logits);
        let tokens = if self.sampling.temperature == 0.0 {
            largest_of_rows(seen)?
        } else {
            let rows = most_likely(seen, self.sampling.top_k)?;
            let draw =
                |(row, (_, _, rng)): (Vec<_>, (_, _, &mut _))| draw(&row, self.sampling, rng);
            rows.into_iter().zip(texts).map(draw).collect::<Result<_>>()?
        };
        let mut logprobs = self.logprobs(logits, &tokens)?.into_iter();
        Ok(tokens.into_iter().map(|token| Choice { token, logprob: logprobs.next() }).collect())
    }

    /// The logits with what the options change of them; `None` where that is nothing.
    fn changed(
        &self,
        logits: &Tensor,
        texts: &[(&[i64], usize, &mut ChaCha8Rng)],
    ) -> Result<Option<Tensor>> {
        let Sampling { repetition_penalty, min_new_tokens, .. } = *self.sampling;
        let is_short = |new: usize| new < min_new_tokens && !self.eos.is_empty();
        if repetition_penalty == 1.0 && !texts.iter().any(|&(_, new, _)| is_short(new)) {
            return Ok(None);
        }
        let changed = logits.copy();
        for (row, &(tokens, new, _)) in (0..).zip(texts) {
            let mut logits = changed.f_select(0, row)?;
            if repetition_penalty != 1.0 {
                let ids = Tensor::f_from_slice(tokens)?.f_to_device(logits.device())?;
                let found = logits.f_gather(0, &ids, false)?;
                let lowered = found.f_div_scalar(repetition_penalty)?;
                let raised = found.f_mul_scalar(repetition_penalty)?;
                let _ = logits.f_scatter_(
                    0,
                    &ids,
                    &raised.f_where_self(&found.f_lt(0.0)?, &lowered)?,
                )?;
            }
            if is_short(new) {
                let ids = Tensor::f_from_slice(self.eos)?.f_to_device(logits.device())?;
                let _ = logits.f_index_fill_(0, &ids, f64::NEG_INFINITY)?;
            }
        }
        Ok(Some(changed))
    }

    /// The logarithm of the probability of each row's token; nothing unless asked for.
    fn logprobs(&self, logits: &Tensor, tokens: &[i64]) -> Result<Vec<f64>> {
        if !self.sampling.logprobs {
            return Ok(Vec::new());
        }
        let ids = Tensor::f_from_slice(tokens)?.f_to_device(logits.device())?.f_unsqueeze(1)?;
        let all = logits.f_log_softmax(1, Kind::Float)?;
        let chosen = all.f_gather(1, &ids, false)?.f_view([-1])?.f_to_kind(Kind::Double)?;
        Ok(Vec::try_from(&chosen)?)
    }
}

/// Draws one token of the most likely ones with their logits, the largest first.
fn draw(most_likely: &[(i64, f64)], sampling: &Sampling, rng: &mut impl Rng) -> Result<i64> {
    // NaN comes before all others.
    check_finite(most_likely.first().map_or(f64::NAN, |&(_, logit)| logit))?;
    let candidates = candidates(most_likely, sampling);
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

/// The token with the largest logit of each row `[B, V]`.
fn largest_of_rows(logits: &Tensor) -> Result<Vec<i64>> {
    let ids = logits.f_argmax(1, true)?;
    let largest = logits.f_gather(1, &ids, false)?.f_to_kind(Kind::Double)?;
    let both = Tensor::f_cat(&[ids.f_to_kind(Kind::Double)?, largest], 1)?.f_reshape([-1])?;
    let rows = Vec::<f64>::try_from(&both)?;
    rows.chunks(2).map(|row| check_finite(row[1]).map(|()| row[0] as i64)).collect()
}

/// Refuses the largest logit of a model that has diverged.
fn check_finite(largest: f64) -> Result<()> {
    match largest.is_finite() {
        true => Ok(()),
        false => bail!(Code::Diverged, "the model's logits are not finite: no token can be chosen"),
    }
}

/// Of each row of the logits `[B, V]` the `top_k` tokens with the largest, all for 0, and these, the
/// largest first.
fn most_likely(logits: &Tensor, top_k: usize) -> Result<Vec<Vec<(i64, f64)>>> {
    let vocab = logits.size()[1] as usize;
    let k = if top_k == 0 { vocab } else { top_k.min(vocab) };
    match logits.device() {
        Device::Cpu => most_likely_here(logits, k),
        _ => most_likely_there(logits, k),
    }
}

/// [`most_likely`] for logits on the CPU, where it is faster to sort no more than is asked for.
fn most_likely_here(logits: &Tensor, k: usize) -> Result<Vec<Vec<(i64, f64)>>> {
    let vocab = logits.size()[1] as usize;
    let logits = Vec::<f32>::try_from(&logits.f_to_kind(Kind::Float)?.f_reshape([-1])?)?;
    Ok(logits.chunks(vocab.max(1)).map(|row| largest(row, k)).collect())
}

/// The `k` largest of these logits with their tokens.
fn largest(logits: &[f32], k: usize) -> Vec<(i64, f64)> {
    let mut tokens: Vec<(i64, f32)> = (0..).zip(logits.iter().copied()).collect();
    let likely_first = |a: &(i64, f32), b: &(i64, f32)| {
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
    tokens.into_iter().map(|(token, logit)| (token, f64::from(logit))).collect()
}

/// [`most_likely`] for logits on a GPU, in one copy. `topk` would leave open which of equal logits it
/// takes, of which there are many in 16 bits; a stable sort takes those with the lower ids.
fn most_likely_there(logits: &Tensor, k: usize) -> Result<Vec<Vec<(i64, f64)>>> {
    let (sorted, ids) = logits.f_sort_stable(true, 1, true)?;
    let first = |x: &Tensor| x.f_narrow(1, 0, k as i64)?.f_to_kind(Kind::Double);
    let both = Tensor::f_cat(&[first(&sorted)?, first(&ids)?], 1)?.f_reshape([-1])?;
    let rows = Vec::<f64>::try_from(&both)?;
    let row = |row: &[f64]| {
        let (logits, ids) = row.split_at(k);
        ids.iter().map(|&id| id as i64).zip(logits.iter().copied()).collect()
    };
    Ok(rows.chunks(2 * k.max(1)).map(row).collect())
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
    // The largest weight is 1.
    tokens.retain(|&(_, weight)| weight >= sampling.min_p);
    tokens
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn sampling() -> Sampling {
        Sampling { top_k: 0, ..Sampling::default() }
    }

    fn ids(candidates: &[(i64, f64)]) -> Vec<i64> {
        candidates.iter().map(|&(id, _)| id).collect()
    }

    fn row(logits: &[f64]) -> Tensor {
        Tensor::from_slice(logits).to_kind(Kind::Float).view([1, -1])
    }

    #[test]
    fn top_k_top_p_and_min_p_keep_the_most_likely() {
        let logits = row(&[0.1f64, 0.5, 0.25, 0.15].map(f64::ln));
        let with = |top_k, top_p, min_p| {
            let most_likely = most_likely(&logits, top_k).unwrap().remove(0);
            ids(&candidates(&most_likely, &Sampling { top_k, top_p, min_p, ..sampling() }))
        };
        assert_eq!(with(0, 1.0, 0.0), [1, 2, 3, 0]);
        assert_eq!(with(2, 1.0, 0.0), [1, 2]);
        assert_eq!(with(0, 0.74, 0.0), [1, 2]);
        assert_eq!(with(0, 0.76, 0.0), [1, 2, 3]);
        assert_eq!(with(0, 0.1, 0.0), [1], "at least one stays");
        assert_eq!(with(0, 1.0, 0.29), [1, 2, 3], "0.15 is 0.3 of the largest");
        assert_eq!(with(0, 1.0, 1.0), [1]);
    }

    /// Both ways to find them, with the many equal logits of 16 bits.
    #[test]
    fn the_most_likely_are_the_same_on_every_device() {
        let logits = Tensor::randn([2, 2000], (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16);
        for k in [1, 7, 50, 1999, 2000] {
            let here = most_likely_here(&logits, k).unwrap();
            assert_eq!(here, most_likely_there(&logits, k).unwrap(), "{k}");
            assert_eq!((here.len(), here[1].len()), (2, k));
        }
        let with_nan = Tensor::from_slice(&[1.0f32, f32::NEG_INFINITY, -f32::NAN, f32::INFINITY]);
        for way in [most_likely_here, most_likely_there] {
            let rows = way(&with_nan.view([1, -1]), 4).unwrap();
            assert_eq!(ids(&rows[0]), [2, 3, 0, 1]);
            let e = draw(&rows[0], &sampling(), &mut ChaCha8Rng::seed_from_u64(1)).unwrap_err();
            assert_eq!(e.code(), Code::Diverged);
        }
        let e = largest_of_rows(&with_nan.view([1, -1])).unwrap_err();
        assert_eq!(e.code(), Code::Diverged, "the most likely token is none either");
    }

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = most_likely(&row(&[0.25f64.ln(), 0.75f64.ln()]), 0).unwrap().remove(0);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let draws = 4000;
        let ones: i64 = (0..draws).map(|_| draw(&logits, &sampling(), &mut rng).unwrap()).sum();
        // Four standard deviations of the binomial.
        let deviation = 4.0 * (0.75 * 0.25 / draws as f64).sqrt();
        assert!((ones as f64 / draws as f64 - 0.75).abs() < deviation, "{ones}");
    }

    /// As transformers' `RepetitionPenaltyLogitsProcessor` and `MinNewTokensLengthLogitsProcessor`.
    #[test]
    fn tokens_of_the_text_are_penalized_and_an_early_end_is_none() {
        let logits = row(&[2.0, -1.0, 1.5, 3.0]);
        let choose = |sampling: Sampling, tokens: &[i64], new: usize| {
            let mut rng = ChaCha8Rng::seed_from_u64(1);
            let sampling = Sampling { temperature: 0.0, logprobs: true, ..sampling };
            let chooser = Chooser::new(&sampling, &[3]);
            let texts = [(tokens, new, &mut rng)];
            chooser.choose(&logits, texts.into_iter()).unwrap()[0]
        };
        let plain = choose(sampling(), &[0], 0);
        assert_eq!(plain.token, 3);
        let sum: f64 = [2.0f64, -1.0, 1.5, 3.0].iter().map(|x| x.exp()).sum();
        // In float32.
        assert!((plain.logprob.unwrap() - (3.0 - sum.ln())).abs() < 1e-6);
        let penalized = Sampling { repetition_penalty: 2.5, ..sampling() };
        assert_eq!(choose(penalized.clone(), &[3], 0).token, 0, "3 is 1.2 now");
        assert_eq!(choose(penalized, &[3, 0, 3], 0).token, 2, "0 is 0.8, and each once");
        let at_least = Sampling { min_new_tokens: 2, ..sampling() };
        assert_eq!(choose(at_least.clone(), &[0], 1).token, 0);
        assert_eq!(choose(at_least, &[0], 2).token, 3);
    }
}
