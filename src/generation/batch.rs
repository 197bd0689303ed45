//! The running texts of a batch: prompts enter free slots, all grow together, and leave at their end.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{
    ended::{Ended, FinishReason, Watch},
    passes::{Running, decode, prefill},
    prompt::{Prompt, check},
    sampling::{Choice, Chooser, Sampling},
};
use crate::{
    error::{Code, Error, Result},
    kv_cache::LayerCache,
    model::{Model, Prediction},
    tensor::{Tensor, guard},
};

/// Most rows of a pass in which several prompts enter: a product of so many is no longer bound by the
/// memory of its matrix, and more would only let running texts wait.
const MOST_ROWS: usize = 512;

/// The same where each pass brings the parameters from elsewhere.
const MOST_ROWS_OF_SHARDED: usize = 8192;

/// Goes on with each of `prompts` until one of `eos`, `max_new_tokens` or the watch ends it; the ends
/// are in the order of the prompts.
///
/// A text does not depend on the others, nor on how many run at a time. Where ranks share the
/// parameters out, all of them must call it, each with prompts of its own: a rank whose texts have
/// ended takes part in the passes of the others.
pub fn generate(
    model: &Model,
    prompts: &[Prompt],
    sampling: &Sampling,
    eos: &[i64],
    watch: &mut dyn Watch,
) -> Result<Vec<Ended>> {
    for prompt in prompts {
        check(model, &prompt.tokens, sampling.max_new_tokens)?;
    }
    generate_checked(model, prompts, sampling, eos, watch)
}

/// [`generate`] for prompts that were checked.
pub(super) fn generate_checked(
    model: &Model,
    prompts: &[Prompt],
    sampling: &Sampling,
    eos: &[i64],
    watch: &mut dyn Watch,
) -> Result<Vec<Ended>> {
    let mut batch = Batch::new(model, prompts, sampling, eos)?;
    guard("generate", || {
        while batch.pass(watch)? {}
        Ok(())
    })?;
    let ended = batch.ended.into_iter().collect::<Option<Vec<_>>>();
    ended.ok_or_else(|| Error::new(Code::Internal, "a text without an end"))
}

struct Batch<'a> {
    model: &'a Model,
    prompts: &'a [Prompt],
    sampling: &'a Sampling,
    chooser: Chooser<'a>,
    /// A cache for each layer; `None` for a model whose layers keep nothing.
    caches: Option<Vec<LayerCache>>,
    /// Texts that can run at a time.
    slots: usize,
    /// The texts in the slots, from the first on.
    running: Vec<Running>,
    /// The next prompt.
    next: usize,
    ended: Vec<Option<Ended>>,
}

/// The part of a rank in a pass.
enum Pass {
    /// The whole texts of these slots.
    Prefill(Vec<usize>),
    /// One more token of each.
    Decode,
    /// Nothing, while others do.
    Idle,
}

impl<'a> Batch<'a> {
    fn new(
        model: &'a Model,
        prompts: &'a [Prompt],
        sampling: &'a Sampling,
        eos: &'a [i64],
    ) -> Result<Self> {
        let slots = sampling.batch_size.min(prompts.len()).max(1);
        // The last token of all is not looked at again.
        let new = sampling.max_new_tokens as i64 - 1;
        let longest = prompts.iter().map(|p| p.tokens.len() as i64).max().unwrap_or(0);
        let capacity = match model.facts().objective {
            Prediction::Causal { is_cached: true } => Some((longest + new, 0)),
            Prediction::Causal { is_cached: false } => None,
            Prediction::Seq2Seq { .. } => Some((1 + new, longest)),
        };
        let caches = capacity.map(|(tokens, encoded)| {
            let cache = |_| LayerCache::new(slots as i64, tokens, encoded);
            model.layers().iter().map(cache).collect()
        });
        let ended = prompts.iter().map(|_| None).collect();
        let chooser = Chooser::new(sampling, eos);
        let running = Vec::with_capacity(slots);
        Ok(Self { model, prompts, sampling, chooser, caches, slots, running, next: 0, ended })
    }

    /// Makes one pass; false once nothing is left on any rank.
    fn pass(&mut self, watch: &mut dyn Watch) -> Result<bool> {
        if self.model.any_stage(watch.must_stop())? {
            let all = (0..self.running.len()).map(|slot| (slot, FinishReason::Interrupted));
            self.end(all.collect(), watch)?;
            for text in self.next..self.prompts.len() {
                self.settle(text, Ended::none(FinishReason::Interrupted), watch)?;
            }
            self.next = self.prompts.len();
        }
        self.admit();
        let pass = self.plan();
        if !self.model.any(!matches!(pass, Pass::Idle))? {
            return Ok(false);
        }
        // A pass of whole texts runs the encoder, too, on all ranks.
        let is_whole = self.model.any(matches!(pass, Pass::Prefill(_)))?;
        let first = self.model.first_of_decoder();
        if !matches!(pass, Pass::Prefill(_)) && is_whole {
            self.model.participate(0..first)?;
        }
        match pass {
            Pass::Prefill(slots) => {
                let logits = prefill(self.model, &mut self.running, &slots, &mut self.caches)?;
                self.grow(&slots, &logits, watch)?;
            }
            Pass::Decode => {
                let logits = decode(self.model, &self.running, &mut self.caches)?;
                let slots: Vec<usize> = (0..self.running.len()).collect();
                self.grow(&slots, &logits, watch)?;
            }
            Pass::Idle => self.model.participate(first..self.model.all_layers().len())?,
        }
        Ok(true)
    }

    /// Puts waiting prompts into free slots.
    fn admit(&mut self) {
        while self.running.len() < self.slots && self.next < self.prompts.len() {
            let prompt = &self.prompts[self.next];
            let (encoder, tokens) = match self.model.facts().objective {
                Prediction::Causal { .. } => (None, prompt.tokens.clone()),
                Prediction::Seq2Seq { decoder_start_token_id } => {
                    (Some(prompt.tokens.clone()), vec![decoder_start_token_id])
                }
            };
            self.running.push(Running {
                text: self.next,
                encoder,
                start: tokens.len(),
                tokens,
                logprobs: Vec::new(),
                is_cached: false,
                rng: ChaCha8Rng::seed_from_u64(prompt.seed),
            });
            self.next += 1;
        }
    }

    fn plan(&self) -> Pass {
        let slots = self.entering();
        match (slots.is_empty(), self.running.is_empty()) {
            (false, _) => Pass::Prefill(slots),
            (true, false) => Pass::Decode,
            (true, true) => Pass::Idle,
        }
    }

    /// The slots of texts that enter in one pass: as many as its rows may be, or one where the layers
    /// keep nothing, and may not know where a text ends.
    fn entering(&self) -> Vec<usize> {
        let most = match (&self.caches, self.model.is_sharded()) {
            (None, _) => 0,
            (Some(_), false) => MOST_ROWS,
            (Some(_), true) => MOST_ROWS_OF_SHARDED,
        };
        let waiting = (0..self.running.len()).filter(|&slot| !self.running[slot].is_cached);
        let rows = waiting.scan(0, |rows, slot| {
            let is_first = *rows == 0;
            *rows += self.running[slot].whole().len();
            (is_first || *rows <= most).then_some(slot)
        });
        rows.collect()
    }

    /// Adds the token that the logits `[n, V]` lead to, to each text in these slots, given from the first
    /// on; the texts that end leave.
    fn grow(&mut self, slots: &[usize], logits: &Tensor, watch: &mut dyn Watch) -> Result<()> {
        let running = self.running.iter_mut().enumerate();
        let texts = running.filter(|(slot, _)| slots.contains(slot));
        let choices = self.chooser.choose(logits, texts.map(|(_, text)| text.drawing()))?;
        let mut ends = Vec::new();
        for (&slot, choice) in slots.iter().zip(choices) {
            if let Some(reason) = self.add(slot, &choice, watch)? {
                ends.push((slot, reason));
            }
        }
        self.end(ends, watch)
    }

    /// Adds a token to the text of a slot; the reason, if it ends it.
    fn add(
        &mut self,
        slot: usize,
        choice: &Choice,
        watch: &mut dyn Watch,
    ) -> Result<Option<FinishReason>> {
        if self.chooser.ends(choice.token) {
            return Ok(Some(FinishReason::EosToken));
        }
        let text = &mut self.running[slot];
        // Behind this many tokens positions turn otherwise, so that the text is looked at anew.
        let limit = self.model.facts().cache_ends_behind;
        text.is_cached &= limit != Some(text.tokens.len() as i64);
        text.tokens.push(choice.token);
        text.logprobs.extend(choice.logprob);
        let is_full = text.tokens.len() - text.start == self.sampling.max_new_tokens;
        let goes_on = watch.token(text.text, choice.token)?;
        Ok(match (goes_on, is_full) {
            (false, _) => Some(FinishReason::StopSequence),
            (true, true) => Some(FinishReason::Length),
            (true, false) => None,
        })
    }

    /// Ends the texts in these slots, given from the first on.
    fn end(&mut self, ends: Vec<(usize, FinishReason)>, watch: &mut dyn Watch) -> Result<()> {
        // From the last on: the text of the last slot moves into one that becomes free.
        let freed = ends.into_iter().rev().map(|(slot, reason)| self.free(slot, reason));
        let mut ended = freed.collect::<Result<Vec<_>>>()?;
        ended.sort_unstable_by_key(|(text, _)| *text);
        ended.into_iter().try_for_each(|(text, ended)| self.settle(text, ended, watch))
    }

    /// Frees a slot; the text of the last slot moves there.
    fn free(&mut self, slot: usize, reason: FinishReason) -> Result<(usize, Ended)> {
        let last = self.running.len() - 1;
        if slot < last {
            let caches = self.caches.iter_mut().flatten();
            for cache in caches {
                cache.move_slot(last as i64, slot as i64)?;
            }
        }
        let Running { text, mut tokens, start, logprobs, .. } = self.running.swap_remove(slot);
        Ok((text, Ended { tokens: tokens.split_off(start), logprobs, reason }))
    }

    fn settle(&mut self, text: usize, ended: Ended, watch: &mut dyn Watch) -> Result<()> {
        watch.ended(text, &ended)?;
        self.ended[text] = Some(ended);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Masks, tiny_gpt2},
        tensor::Device,
    };

    fn model(n_positions: i64) -> Model {
        model_of(&[("vocab_size", 31), ("n_positions", n_positions), ("n_embd", 16)])
    }

    fn model_of(sizes: &[(&str, i64)]) -> Model {
        Model::from_scratch(&tiny_gpt2(sizes, 0.1, true), 3, Device::Cpu).unwrap()
    }

    fn greedy(max_new_tokens: usize) -> Sampling {
        Sampling { max_new_tokens, temperature: 0.0, ..Sampling::default() }
    }

    fn prompts(tokens: &[&[i64]]) -> Vec<Prompt> {
        tokens.iter().map(|tokens| Prompt { tokens: tokens.to_vec(), seed: 7 }).collect()
    }

    fn run(model: &Model, prompts: &[Prompt], sampling: &Sampling, eos: &[i64]) -> Vec<Ended> {
        generate(model, prompts, sampling, eos, &mut ()).unwrap()
    }

    /// The cache changes the cost, not the tokens.
    #[test]
    fn the_cache_gives_the_tokens_of_the_whole_sequence() {
        let model = model(16);
        let with_cache = run(&model, &prompts(&[&[5, 6, 7]]), &greedy(8), &[]).remove(0);
        let mut all = vec![5i64, 6, 7];
        for _ in 0..8 {
            let ids = Tensor::from_slice(&all).view([1, -1]);
            let logits = model.logits(&ids, &Masks::default()).unwrap();
            let last = logits.select(1, logits.size()[1] - 1);
            all.push(last.argmax(1, false).int64_value(&[0]));
        }
        assert_eq!(
            (with_cache.tokens, with_cache.reason),
            (all[3..].to_vec(), FinishReason::Length)
        );
        let until = run(&model, &prompts(&[&[5, 6, 7]]), &greedy(8), &[all[4]]).remove(0);
        assert_eq!(until.reason, FinishReason::EosToken);
        assert!(
            until.tokens.len() <= 1,
            "the end-of-text token ends the text and is no part of it"
        );
    }

    /// To the bit: log-probabilities, too. Texts end at different times, and others take their slots.
    #[test]
    fn a_text_is_the_same_alone_and_beside_any_others() {
        let model = model_of(&[("vocab_size", 31), ("n_positions", 64), ("n_embd", 48)]);
        let texts: Vec<Vec<i64>> =
            (0..45).map(|i| (0..1 + 7 * (i % 7)).map(|j| (5 * i + 7 * j) % 31).collect()).collect();
        let prompts = prompts(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>());
        for temperature in [0.0, 1.0] {
            let of = |prompts: &[Prompt], batch_size| {
                let sampling = Sampling { temperature, batch_size, logprobs: true, ..greedy(20) };
                run(&model, prompts, &sampling, &[3, 11])
            };
            let alone: Vec<Ended> = prompts
                .iter()
                .map(|prompt| of(std::slice::from_ref(prompt), 1).remove(0))
                .collect();
            for slots in [1, 2, 3, 16, texts.len()] {
                assert_eq!(of(&prompts, slots), alone, "{slots} slots, temperature {temperature}");
            }
            let lengths: std::collections::BTreeSet<_> =
                alone.iter().map(|ended| ended.tokens.len()).collect();
            assert!(temperature == 0.0 || lengths.len() > 2, "{lengths:?}");
        }
    }

    /// Passes are counted by the question before each; the last one finds nothing to do.
    #[test]
    fn prompts_enter_in_one_pass_up_to_its_rows() {
        #[derive(Default)]
        struct Passes(std::cell::Cell<usize>);
        impl Watch for Passes {
            fn must_stop(&self) -> bool {
                self.0.set(self.0.get() + 1);
                false
            }
        }
        let model = model(512);
        let passes = |lengths: &[usize]| {
            let texts: Vec<Vec<i64>> = lengths.iter().map(|&length| vec![1; length]).collect();
            let prompts = prompts(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let mut watch = Passes::default();
            generate(&model, &prompts, &greedy(1), &[], &mut watch).unwrap();
            watch.0.get() - 1
        };
        assert_eq!(passes(&[5, 80, 1, 200]), 1);
        assert_eq!(passes(&[200, MOST_ROWS - 200, 1]), 2);
        assert_eq!(passes(&[MOST_ROWS - 1, 2, 3]), 2);
    }

    #[test]
    fn a_watch_ends_one_text_or_all() {
        struct Ends(usize);
        impl Watch for Ends {
            fn token(&mut self, text: usize, _: i64) -> Result<bool> {
                self.0 += 1;
                Ok(text != 1)
            }

            fn ended(&mut self, _: usize, _: &Ended) -> Result<()> {
                Ok(())
            }

            fn must_stop(&self) -> bool {
                self.0 >= 8
            }
        }
        let model = model(64);
        let sampling = Sampling { batch_size: 3, ..greedy(50) };
        let prompts = prompts(&[&[1], &[2, 3], &[4], &[5]]);
        let ended = generate(&model, &prompts, &sampling, &[], &mut Ends(0)).unwrap();
        let reasons: Vec<_> = ended.iter().map(|ended| ended.reason).collect();
        assert_eq!(reasons[1], FinishReason::StopSequence);
        assert!([0, 2, 3].iter().all(|&text| reasons[text] == FinishReason::Interrupted));
        assert_eq!(ended[1].tokens.len(), 1);
        assert!(ended[0].tokens.len() > 1, "what was made stays");
    }

    #[test]
    fn a_prompt_without_a_position_for_each_token_is_refused() {
        let model = model(4);
        let new = |prompt: &[i64], max_new_tokens| {
            generate(&model, &prompts(&[prompt]), &greedy(max_new_tokens), &[], &mut ())
        };
        assert_eq!(new(&[1, 2], 3).unwrap_err().code(), Code::Shape);
        assert_eq!(new(&[1, 31], 1).unwrap_err().code(), Code::TokenId);
        assert_eq!(new(&[], 1).unwrap_err().code(), Code::BadValue);
        assert_eq!(new(&[1, 2], 2).unwrap()[0].tokens.len(), 2);
    }
}
