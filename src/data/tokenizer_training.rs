//! A tokenizer made from the text of a dataset: byte-level BPE as GPT-2's, learned on all cores.

use std::{sync::mpsc::sync_channel, thread};

use tokenizers::{
    AddedToken,
    decoders::byte_level::ByteLevel,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainer},
    },
    tokenizer::Tokenizer as Inner,
};

use super::{
    dataset::Dataset,
    stage::{no_column, no_rows},
    tokenizer::Tokenizer,
};
use crate::{
    config::options::{option_table, option_words},
    error::{Code, Error, Result},
    panics::catch,
};

/// Texts that wait for the thread that counts their words.
const READY: usize = 1024;
/// The tokens that every text can be written with.
const BYTES: usize = 256;

option_words! {
    /// How a text is cut into tokens.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum TokenizerType {
        /// Byte-level BPE, GPT-2's.
        Bpe = "bpe",
    }
}

option_table! {
    /// How a tokenizer is trained.
    #[derive(Debug, Clone)]
    pub struct TokenizerTraining {
        /// how a text is cut: byte-level BPE as GPT-2's
        #[option(default = TokenizerType::Bpe)]
        pub r#type: TokenizerType,
        /// the number of tokens, the 256 bytes and special tokens included
        #[option(default = 32_000)]
        pub vocab_size: usize,
        /// how often a pair of tokens must be found to become one
        #[option(default = 2)]
        pub min_frequency: u64,
        /// tokens that stand for no text; the first ids are theirs
        #[option(default = vec!["<|endoftext|>".to_owned()])]
        pub special_tokens: Vec<String>,
        /// the column that holds the text
        #[option(default = "text".to_owned())]
        pub field: String,
    }
}

impl Tokenizer {
    /// Learns a vocabulary from the rows of the first epoch.
    pub fn train(dataset: &Dataset, options: &TokenizerTraining) -> Result<Self> {
        let TokenizerTraining { vocab_size, min_frequency, special_tokens, field, .. } = options;
        let least = BYTES + special_tokens.len();
        if *vocab_size < least {
            let message = format!(
                "vocab_size must be {least} or more, for {BYTES} bytes and the special tokens, found \
                 {vocab_size}"
            );
            return Err(Error::new(Code::BadValue, message).option("vocab_size"));
        }
        if dataset.schema().field_with_name(field).is_err() {
            return Err(no_column(field, &dataset.schema()).option("field"));
        }
        let special = special_tokens.iter().map(|token| AddedToken::from(token.as_str(), true));
        let trainer = BpeTrainer::builder()
            .vocab_size(*vocab_size)
            .min_frequency(*min_frequency)
            .show_progress(false)
            .special_tokens(special.collect())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build();
        let inner = learn(dataset, field, TrainerWrapper::BpeTrainer(trainer))?;
        let json = inner.to_string(false).map_err(failed)?;
        Self::from_bytes(json.as_bytes())
    }
}

/// Counts in threads of a pool of its own what this thread reads: those that wait for texts would hold the
/// threads that files are read with.
fn learn(dataset: &Dataset, field: &str, mut trainer: TrainerWrapper) -> Result<Inner> {
    let mut inner = Inner::new(BPE::default());
    inner.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    inner.with_decoder(Some(ByteLevel::default()));
    let pool = rayon::ThreadPoolBuilder::new().build().map_err(|e| failed(e.into()))?;
    let (sender, texts) = sync_channel::<String>(READY);
    thread::scope(|scope| {
        let learning = scope.spawn(move || {
            catch(|| pool.install(|| inner.train(&mut trainer, texts.into_iter()).map(drop)))
                .unwrap_or_else(|words| Err(words.into()))
                .map(|()| inner)
        });
        let mut read = Err(no_rows(&dataset.describe()));
        for (number, row) in dataset.rows()?.enumerate() {
            read = row.and_then(|row| {
                let Some(text) = row.get(field).and_then(|text| text.as_str()) else {
                    bail!(Code::Data, "row {number}: \"{field}\" is no text");
                };
                // Line by line, as Hugging Face trains on files: all cores count a long text.
                for line in text.split_inclusive('\n') {
                    // A closed channel has its reason in the other thread.
                    let _ = sender.send(line.to_owned());
                }
                Ok(())
            });
            if read.is_err() {
                break;
            }
        }
        drop(sender);
        let learned = learning.join().map_err(|_| failed("a thread ended".into()))?;
        read?;
        learned.map_err(failed)
    })
}

fn failed(e: tokenizers::Error) -> Error {
    Error::new(Code::Tokenizer, format!("the tokenizer cannot be trained: {e}"))
}
