//! How well a model predicts a text.

use crate::{
    error::{Code, Error, Result},
    model::{Inference, Masks, Model, Objective, Targets},
    tensor::{IGNORE_INDEX, guard, to_device},
};

/// The most tokens of a window where a model's positions have no end.
const USUAL_WINDOW: usize = 2048;

/// The windows over a text, as in transformers' guide to the perplexity of models with a fixed length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// Tokens of a window.
    pub tokens: usize,
    /// Tokens from the start of one window to that of the next. Each token is scored in the first window
    /// that has it: a smaller stride gives it more context, and takes longer.
    pub stride: usize,
}

/// The loss of a text.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// The sum of the losses, in nats.
    pub loss_sum: f64,
    /// Tokens that were predicted: all but the first of each text.
    pub predicted: u64,
    /// Tokens of the text.
    pub tokens: u64,
    /// Bytes of the text.
    pub bytes: u64,
}

impl Score {
    /// The mean loss of a predicted token, in nats.
    pub fn loss(&self) -> f64 {
        self.loss_sum / self.predicted as f64
    }

    /// `exp(loss)`.
    pub fn perplexity(&self) -> f64 {
        self.loss().exp()
    }

    /// Bits for each byte of text, which models with different tokenizers can be compared by.
    pub fn bits_per_byte(&self) -> f64 {
        self.loss_sum / std::f64::consts::LN_2 / self.bytes as f64
    }

    /// The score of both texts.
    pub fn plus(self, other: Self) -> Self {
        Self {
            loss_sum: self.loss_sum + other.loss_sum,
            predicted: self.predicted + other.predicted,
            tokens: self.tokens + other.tokens,
            bytes: self.bytes + other.bytes,
        }
    }
}

impl Windows {
    /// Windows of so many tokens, those of the model's positions by default, half of a window apart by
    /// default.
    pub fn new(model: &Model, tokens: Option<usize>, stride: Option<usize>) -> Result<Self> {
        let most = model.facts().max_positions.map(|positions| positions as usize);
        let tokens = tokens.unwrap_or_else(|| most.unwrap_or(USUAL_WINDOW).min(USUAL_WINDOW));
        let stride = stride.unwrap_or_else(|| (tokens / 2).max(1));
        if let Some(most) = most.filter(|&most| tokens > most) {
            let message =
                format!("a window of {tokens} tokens is longer than the model's {most} positions");
            return Err(Error::new(Code::Shape, message).hint("make the window shorter"));
        }
        if tokens < 2 || stride == 0 || stride >= tokens {
            bail!(
                Code::BadValue,
                "a window of {tokens} tokens with a stride of {stride}: a window needs 2 tokens, and a \
                 stride is from 1 to below the window"
            );
        }
        Ok(Self { tokens, stride })
    }

    /// The windows over `tokens` tokens: from, to, and the first token that is scored.
    fn over(self, tokens: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let mut next = Some((0, 1));
        std::iter::from_fn(move || {
            let (from, first) = next?;
            let to = (from + self.tokens).min(tokens);
            next = (to < tokens).then_some((from + self.stride, to));
            (first < to).then_some((from, to, first))
        })
    }
}

/// The score of the tokens of a text of `bytes` bytes; `None` where `stop` says so between two windows.
pub fn score(
    model: &Model,
    tokens: &[i64],
    bytes: u64,
    windows: Windows,
    stop: &dyn Fn() -> bool,
) -> Result<Option<Score>> {
    if model.facts().is_seq2seq() {
        bail!(Code::BadValue, "a model with an encoder has no loss of a text alone");
    }
    if let (Some(&low), Some(&high)) = (tokens.iter().min(), tokens.iter().max()) {
        model.check_ids(low, high)?;
    }
    let mut score = Score { bytes, tokens: tokens.len() as u64, ..Score::default() };
    for (from, to, first) in windows.over(tokens.len()) {
        if stop() {
            return Ok(None);
        }
        score.loss_sum += guard("score", || loss_sum(model, &tokens[from..to], first - from))?;
        score.predicted += (to - first) as u64;
    }
    if score.loss_sum.is_nan() {
        bail!(Code::Diverged, "the model's loss is NaN");
    }
    Ok(Some(score))
}

/// The sum of the losses of the tokens of one window from `first` on.
fn loss_sum(model: &Model, window: &[i64], first: usize) -> Result<f64> {
    let (len, device) = (window.len() as i64, model.device());
    let positions: Vec<i64> = (first as i64 - 1..len - 1).collect();
    let scored = &window[first..];
    let mut ids = vec![IGNORE_INDEX; window.len()];
    ids[first - 1..window.len() - 1].copy_from_slice(scored);
    let row = |x: &[i64], size: &[i64]| to_device(x, size, device);
    let count = scored.len() as i64;
    let targets =
        Targets::new(row(&ids, &[1, len])?, row(&positions, &[count])?, row(scored, &[count])?);
    let objective = Objective { targets: &targets, loss_normalizer: 1.0, function: None };
    let how = Inference { objective: Some(objective), ..Inference::default() };
    let sum = model.infer(&row(window, &[1, len])?, &Masks::default(), how)?;
    Ok(sum.f_double_value(&[])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::tiny_gpt2,
        tensor::{Device, Kind, Tensor},
    };

    #[test]
    fn each_token_but_the_first_is_scored_once() {
        for (tokens, window, stride) in [(1, 4, 2), (2, 4, 2), (4, 4, 3), (9, 4, 3), (23, 8, 1)] {
            let windows = Windows { tokens: window, stride };
            let scored: Vec<usize> =
                windows.over(tokens).flat_map(|(_, to, first)| first..to).collect();
            assert_eq!(scored, (1..tokens).collect::<Vec<_>>(), "{tokens} {window} {stride}");
            assert!(
                windows.over(tokens).all(|(from, to, first)| from < first && to <= from + window)
            );
        }
    }

    /// A text within one window: the cross-entropy of its logits, in float32: 1e-5.
    #[test]
    fn the_loss_is_the_cross_entropy_of_the_logits() {
        let sizes = [("vocab_size", 31), ("n_positions", 16), ("n_embd", 16)];
        let model = Model::from_scratch(&tiny_gpt2(&sizes, 0.1, true), 3, Device::Cpu).unwrap();
        let tokens: Vec<i64> = (0..12).map(|i| (7 * i) % 31).collect();
        let windows = Windows::new(&model, None, None).unwrap();
        assert_eq!(windows, Windows { tokens: 16, stride: 8 });
        let found = score(&model, &tokens, 40, windows, &|| false).unwrap().unwrap();
        let ids = Tensor::from_slice(&tokens).view([1, -1]);
        let logits = model.logits(&ids, &Masks::default()).unwrap().squeeze_dim(0);
        let all = logits.narrow(0, 0, 11).log_softmax(1, Kind::Double);
        let expected = -all.gather(1, &ids.narrow(1, 1, 11).view([11, 1]), false).sum(Kind::Double);
        assert_eq!((found.predicted, found.tokens), (11, 12));
        assert!((found.loss_sum - expected.double_value(&[])).abs() < 1e-5 * found.loss_sum);
        assert!((found.perplexity() - found.loss().exp()).abs() < 1e-12);
        assert!(score(&model, &tokens, 40, windows, &|| true).unwrap().is_none());
        assert!(Windows::new(&model, Some(17), None).is_err());
        assert!(Windows::new(&model, Some(8), Some(8)).is_err());
    }
}
