//! Rows of tokens, one for each row of the input: made ahead by a thread, and kept for the next run.

use std::{collections::VecDeque, path::Path, sync::Arc};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::SchemaRef,
};

use super::{
    ahead::ahead,
    stage::{Batches, Stage, changed, identity_of, skip_rows},
    token_cache::{Part, TokenCache},
    tokenizer::Tokenizer,
    tokens::INPUT_IDS,
};
use crate::error::{Code, Error, Result};

/// The tokens after which a part is kept.
const TOKENS_PER_PART: usize = 1 << 18;

/// How rows become rows of tokens.
pub(super) trait TokenRule: Send + Sync {
    /// The columns of every batch.
    fn schema(&self) -> SchemaRef;

    /// The tokenizer of the tokens.
    fn tokenizer(&self) -> &Arc<Tokenizer>;

    /// A batch of as many rows as it is given; the first of them is row `first_row`.
    fn apply(&self, batch: &RecordBatch, first_row: u64) -> Result<RecordBatch>;

    /// Everything but the tokenizer that decides on the tokens, or `None` where none are to be kept.
    fn identity(&self) -> Option<String>;

    /// The rule in a few words.
    fn describe(&self) -> String;
}

/// The input's rows as tokens.
pub(super) struct Tokenized {
    plan: Arc<Plan>,
}

struct Plan {
    input: Arc<dyn Stage>,
    rule: Box<dyn TokenRule>,
}

impl Tokenized {
    pub(super) fn new(input: Arc<dyn Stage>, rule: impl TokenRule + 'static) -> Self {
        Self { plan: Arc::new(Plan { input, rule: Box::new(rule) }) }
    }
}

impl Stage for Tokenized {
    fn one_to_one(&self) -> Option<&dyn Stage> {
        Some(&*self.plan.input)
    }

    fn schema(&self) -> SchemaRef {
        self.plan.rule.schema()
    }

    fn tokenizer(&self) -> Option<Arc<Tokenizer>> {
        Some(Arc::clone(self.plan.rule.tokenizer()))
    }

    fn identity(&self) -> Result<Option<String>> {
        self.plan.identity()
    }

    fn read(&self, epoch: u64, from: u64) -> Result<Batches> {
        let plan = Arc::clone(&self.plan);
        if plan.input.is_local() {
            let input = plan.input.read(epoch, from)?;
            return Ok(changed(input, from, move |batch, first_row| {
                plan.rule.apply(batch, first_row)
            }));
        }
        let open = move |from| -> Result<Batches> {
            let cache = plan.cache()?;
            Ok(Box::new(Reader::new(Arc::clone(&plan), cache, epoch, from)))
        };
        Ok(ahead(Arc::new(open), from))
    }

    fn describe(&self) -> String {
        format!("{} -> {}", self.plan.input.describe(), self.plan.rule.describe())
    }
}

impl Plan {
    fn identity(&self) -> Result<Option<String>> {
        let Some(rule) = self.rule.identity() else { return Ok(None) };
        let tokenizer = self.rule.tokenizer().hash()?;
        let how = format!("{rule} by {tokenizer} as {:?}", self.rule.schema());
        identity_of(&[&*self.input], &how)
    }

    /// The place where the tokens are kept, if they are and it can be used.
    fn cache(&self) -> Result<Option<TokenCache>> {
        let Some(all) = self.input.token_cache() else { return Ok(None) };
        let Some(identity) = self.identity()? else { return Ok(None) };
        Ok(TokenCache::open(all, &identity).map_err(|e| warn(all, &e)).ok())
    }
}

/// Tokens that are not kept are made again: that is no reason to end a run.
fn warn(dir: &Path, e: &Error) {
    tracing::warn!("tokens are not kept in {}: {e}", dir.display());
}

/// The rows from one on: parts that are kept, and between them what is made, and kept, now.
struct Reader {
    plan: Arc<Plan>,
    cache: Option<TokenCache>,
    epoch: u64,
    /// The row behind those that wait.
    row: u64,
    /// The input's rows, once some are needed, from a row on.
    input: Option<(Batches, u64)>,
    waiting: VecDeque<Result<RecordBatch>>,
    has_ended: bool,
}

impl Iterator for Reader {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.waiting.is_empty() && !self.has_ended {
            match self.cache.take() {
                None => self.make(1),
                Some(mut cache) => match self.part(&mut cache) {
                    Ok(()) => self.cache = Some(cache),
                    Err(e) if e.code() == Code::Interrupted => self.fail(e),
                    Err(e) => tracing::warn!("tokens are not kept: {e}"),
                },
            }
        }
        self.waiting.pop_front()
    }
}

impl Reader {
    fn new(plan: Arc<Plan>, cache: Option<TokenCache>, epoch: u64, row: u64) -> Self {
        let waiting = VecDeque::new();
        Self { plan, cache, epoch, row, input: None, waiting, has_ended: false }
    }

    /// Takes the next part from the cache, or makes it and keeps it.
    fn part(&mut self, cache: &mut TokenCache) -> Result<()> {
        if self.take(cache)? {
            return Ok(());
        }
        let _lock = cache.lock()?;
        cache.look()?;
        if self.take(cache)? {
            return Ok(());
        }
        let first = self.row;
        self.make(TOKENS_PER_PART);
        let made: Vec<RecordBatch> = self.waiting.iter().flatten().cloned().collect();
        match (made.is_empty(), self.waiting.is_empty()) {
            // It failed at once.
            (true, false) => Ok(()),
            (is_empty, _) => {
                let schema = self.plan.rule.schema();
                cache.write(first, &made, &schema)?;
                let is_whole = self.has_ended && made.len() == self.waiting.len();
                if is_whole && !is_empty { cache.write(self.row, &[], &schema) } else { Ok(()) }
            }
        }
    }

    /// Whether the next part was kept.
    fn take(&mut self, cache: &mut TokenCache) -> Result<bool> {
        match cache.read(self.row, &self.plan.rule.schema())? {
            Some(Part::Rows(batches)) => batches.into_iter().for_each(|batch| self.push(batch)),
            Some(Part::End) => self.has_ended = true,
            None => return Ok(false),
        }
        Ok(true)
    }

    /// Makes rows until there are so many tokens, the input ends or something fails.
    fn make(&mut self, tokens: usize) {
        let mut made = 0;
        while made < tokens {
            match self.next_made() {
                Some(Ok(batch)) => {
                    made += token_count(&batch);
                    self.push(batch);
                }
                Some(Err(e)) => return self.fail(e),
                None => {
                    self.has_ended = true;
                    return;
                }
            }
        }
    }

    fn next_made(&mut self) -> Option<Result<RecordBatch>> {
        let input = match self.input.take() {
            Some((batches, row)) if row == self.row => Ok(batches),
            Some((batches, row)) => Ok(skip_rows(batches, self.row - row)),
            None => self.plan.input.read(self.epoch, self.row),
        };
        let mut input = match input {
            Ok(input) => input,
            Err(e) => return Some(Err(e)),
        };
        let batch = input.next()?;
        let made = batch.and_then(|batch| self.plan.rule.apply(&batch, self.row));
        if let Ok(made) = &made {
            self.input = Some((input, self.row + made.num_rows() as u64));
        }
        Some(made)
    }

    fn push(&mut self, batch: RecordBatch) {
        self.row += batch.num_rows() as u64;
        self.waiting.push_back(Ok(batch));
    }

    fn fail(&mut self, e: Error) {
        self.has_ended = true;
        self.waiting.push_back(Err(e));
    }
}

/// The tokens of a batch, 1 at least.
fn token_count(batch: &RecordBatch) -> usize {
    let ids = batch.column_by_name(INPUT_IDS).and_then(|ids| ids.as_list_opt::<i32>());
    ids.map_or(1, |ids| ids.values().len()).max(1)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::PathBuf,
        sync::atomic::{AtomicU64, Ordering},
        thread,
    };

    use arrow::datatypes::Schema;

    use super::*;
    use crate::data::{DataSource, Dataset, OpenOptions, tokens};

    /// Tokens of a row, so that a part has a few hundred rows.
    const TOKENS: usize = 512;

    /// Makes tokens of the number of a row, and counts the rows; refuses one.
    struct Counting {
        made: Arc<AtomicU64>,
        refused: Option<u64>,
        name: &'static str,
        tokenizer: Arc<Tokenizer>,
    }

    impl TokenRule for Counting {
        fn schema(&self) -> SchemaRef {
            Arc::new(Schema::new(vec![tokens::int32_list(INPUT_IDS)]))
        }

        fn tokenizer(&self) -> &Arc<Tokenizer> {
            &self.tokenizer
        }

        fn apply(&self, batch: &RecordBatch, first_row: u64) -> Result<RecordBatch> {
            let rows = first_row..first_row + batch.num_rows() as u64;
            if let Some(row) = self.refused.filter(|row| rows.contains(row)) {
                bail!(Code::Data, "row {row} is refused");
            }
            self.made.fetch_add(batch.num_rows() as u64, Ordering::SeqCst);
            let ids = rows.flat_map(|row| std::iter::repeat_n(row as i32, TOKENS));
            let lengths = std::iter::repeat_n(TOKENS, batch.num_rows());
            let list = tokens::lists(ids.collect(), lengths);
            RecordBatch::try_new(self.schema(), vec![list])
                .map_err(|e| Error::new(Code::Internal, e.to_string()))
        }

        fn identity(&self) -> Option<String> {
            Some(self.name.to_owned())
        }

        fn describe(&self) -> String {
            self.name.to_owned()
        }
    }

    /// A dataset in a directory of its own, with a directory for tokens.
    struct Rows {
        dir: tempfile::TempDir,
        made: Arc<AtomicU64>,
        tokenizer: Arc<Tokenizer>,
    }

    const ROWS: u64 = 5000;

    impl Rows {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let rows: String = (0..ROWS).map(|row| format!("row {row:08} of the text\n")).collect();
            fs::write(dir.path().join("rows.txt"), rows).unwrap();
            let tokenizer = Arc::new(Tokenizer::open("dsr:gpt2").unwrap());
            Self { dir, made: Arc::default(), tokenizer }
        }

        fn tokens(&self) -> PathBuf {
            self.dir.path().join("tokens")
        }

        fn dataset(&self, name: &'static str, refused: Option<u64>) -> Dataset {
            let options = OpenOptions {
                sample_by: crate::data::SampleBy::Line,
                token_cache: Some(self.tokens()),
                ..OpenOptions::default()
            };
            let path = self.dir.path().join("rows.txt");
            let source =
                crate::data::source::open(&DataSource::unguarded(path.to_str().unwrap()), &options)
                    .unwrap();
            let (made, tokenizer) = (Arc::clone(&self.made), Arc::clone(&self.tokenizer));
            let rule = Counting { made, refused, name, tokenizer };
            Dataset::from_stage(Tokenized::new(Arc::new(source), rule))
        }

        /// The rows that were made since this was asked last.
        fn made(&self) -> u64 {
            self.made.swap(0, Ordering::SeqCst)
        }

        /// The files of the parts.
        fn parts(&self) -> Vec<PathBuf> {
            let dirs = fs::read_dir(self.tokens()).unwrap().map(|dir| dir.unwrap().path());
            let files = dirs.flat_map(|dir| fs::read_dir(dir).unwrap());
            let files = files.map(|file| file.unwrap().path());
            let mut parts: Vec<_> = files.filter(|path| path.extension().is_some()).collect();
            parts.sort();
            parts
        }
    }

    /// The rows from one on, of which each is told by its tokens.
    fn read(dataset: &Dataset, from: u64) -> Vec<u64> {
        let batches = dataset.skip(from).unwrap().batches().unwrap();
        batches.flat_map(|batch| numbers(&batch.unwrap())).collect()
    }

    fn numbers(batch: &RecordBatch) -> Vec<u64> {
        let ids = tokens::TokenLists::of(batch, INPUT_IDS).unwrap().unwrap();
        (0..ids.len()).map(|row| ids.row(row)[0] as u64).collect()
    }

    #[test]
    fn the_next_run_takes_what_one_has_made() {
        let rows = Rows::new();
        let all: Vec<u64> = (0..ROWS).collect();
        assert_eq!(read(&rows.dataset("a", None), 0), all);
        assert_eq!(rows.made(), ROWS);
        assert!(rows.parts().len() > 3, "several parts, and the end");
        for from in [0, 1, 1023, 1024, 2500, ROWS - 1, ROWS, ROWS + 7] {
            let rest = all.get(from as usize..).unwrap_or_default();
            assert_eq!(read(&rows.dataset("a", None), from), rest, "from {from}");
        }
        assert_eq!(rows.made(), 0);
        assert_eq!(read(&rows.dataset("b", None), 0), all);
        assert_eq!(rows.made(), ROWS, "another rule has tokens of its own");
    }

    #[test]
    fn a_run_that_ends_early_loses_no_part() {
        let rows = Rows::new();
        rows.dataset("a", None).batches().unwrap().next().unwrap().unwrap();
        let before = rows.made();
        assert!(before < ROWS / 2, "a look at the first rows made {before} rows");
        assert_eq!(read(&rows.dataset("a", None), 0).len() as u64, ROWS);
        assert_eq!(rows.made(), ROWS - before);
    }

    #[test]
    fn rows_from_the_middle_on_are_kept_too() {
        let rows = Rows::new();
        read(&rows.dataset("a", None), 3000);
        assert_eq!(rows.made(), ROWS - 3000);
        assert_eq!(read(&rows.dataset("a", None), 0), (0..ROWS).collect::<Vec<_>>());
        read(&rows.dataset("a", None), 0);
        assert!(rows.made() < ROWS);
    }

    #[test]
    fn a_damaged_part_is_made_anew() {
        let rows = Rows::new();
        read(&rows.dataset("a", None), 0);
        rows.made();
        let part = rows.parts()[1].clone();
        let mut bytes = fs::read(&part).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        for damaged in [&bytes[..], &bytes[..middle], b""] {
            fs::write(&part, damaged).unwrap();
            assert_eq!(read(&rows.dataset("a", None), 0), (0..ROWS).collect::<Vec<_>>());
            let made = rows.made();
            assert!(0 < made && made < ROWS, "{made} rows");
        }
    }

    #[test]
    fn runs_at_the_same_time_share_the_work() {
        let rows = Rows::new();
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let all: Vec<u64> = (0..ROWS).collect();
                    assert_eq!(read(&rows.dataset("a", None), 0), all);
                });
            }
        });
        assert_eq!(rows.made(), ROWS);
    }

    #[test]
    fn a_row_that_fails_is_told_behind_those_before_it() {
        let rows = Rows::new();
        for _ in 0..2 {
            let dataset = rows.dataset("a", Some(4500));
            let mut batches = dataset.batches().unwrap();
            let mut found = 0;
            let e = loop {
                match batches.next().unwrap() {
                    Ok(batch) => found += batch.num_rows(),
                    Err(e) => break e,
                }
            };
            assert!(e.message().contains("row 4500 is refused"), "{e}");
            assert!(found > 4000, "{found} rows before it");
            assert!(batches.next().is_none());
        }
    }

    #[test]
    fn text_that_has_changed_is_made_into_tokens_again() {
        let rows = Rows::new();
        read(&rows.dataset("a", None), 0);
        rows.made();
        let path = rows.dir.path().join("rows.txt");
        let mut text = fs::read(&path).unwrap();
        let (middle, time) = (text.len() / 2, fs::metadata(&path).unwrap().modified().unwrap());
        text[middle] = b'#';
        fs::write(&path, text).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(time).unwrap();
        read(&rows.dataset("a", None), 0);
        assert_eq!(rows.made(), ROWS, "in its middle, with the same size and time");
    }

    #[test]
    fn a_directory_that_cannot_be_used_ends_nothing() {
        let rows = Rows::new();
        fs::write(rows.tokens(), "a file").unwrap();
        assert_eq!(read(&rows.dataset("a", None), 10).len() as u64, ROWS - 10);
    }

    #[test]
    fn unused_tokens_are_removed_when_others_are_made() {
        let rows = Rows::new();
        read(&rows.dataset("a", None), 0);
        let dir = rows.parts()[0].parent().unwrap().to_owned();
        let lock = fs::File::options().append(true).open(dir.join("lock")).unwrap();
        let long_ago = std::time::SystemTime::now() - std::time::Duration::from_hours(31 * 24);
        lock.set_modified(long_ago).unwrap();
        read(&rows.dataset("b", None), 0);
        assert!(!dir.exists());
    }
}
