//! `tokenize`: the text column as token ids, a batch at a time on all cores.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Schema, SchemaRef},
};

use super::{
    stage::{Stage, is_bytes, is_text, no_column},
    tokenized::{TokenRule, Tokenized},
    tokenizer::Tokenizer,
    tokens::{self, ATTENTION_MASK, INPUT_IDS, Padding},
    values::as_text,
};
use crate::{
    config::options::option_table,
    error::{Code, Error, Result},
};

option_table! {
    /// How text becomes rows of token ids.
    #[derive(Debug, Clone)]
    pub struct TokenizeOptions {
        /// the column that holds the text
        #[option(default = "text".to_owned())]
        pub field: String,
        /// the column of the answers for a model with an encoder: its tokens are the labels
        #[option(optional)]
        pub text_target: Option<String>,
        /// whether each text ends in the tokenizer's end-of-text token
        #[option(default = false)]
        pub append_eos: bool,
        /// the length in tokens to which rows are cut or padded
        #[option(optional)]
        pub max_length: Option<usize>,
        /// the length in tokens to which labels are cut
        #[option(optional)]
        pub max_target_length: Option<usize>,
        /// which rows are padded: none, each to the longest of its micro batch, or to `max_length`
        #[option(default = Padding::None)]
        pub padding: Padding,
        /// whether rows longer than `max_length` are cut; the end-of-text token of `append_eos` stays
        #[option(default = false)]
        pub truncation: bool,
        /// whether tokens that an earlier run made of the same text are taken, and those of this run kept
        #[option(default = true)]
        pub load_from_cache_file: bool,
    }
}

/// The input's text as token ids, row by row.
pub(super) fn tokenize(
    input: Arc<dyn Stage>,
    tokenizer: Arc<Tokenizer>,
    options: TokenizeOptions,
) -> Result<Tokenized> {
    let schema = input.schema();
    let target = options.text_target.as_ref().map(|name| ("text_target", name));
    for (option, name) in [("field", &options.field)].into_iter().chain(target) {
        let field =
            schema.field_with_name(name).map_err(|_| no_column(name, &schema).option(option))?;
        if !is_text(field.data_type()) && !is_bytes(field.data_type()) {
            let kind = field.data_type();
            bail!(Code::Data, "column \"{name}\" is {kind}; tokenize needs text");
        }
    }
    Ok(Tokenized::new(input, Rule::new(tokenizer, options)?))
}

/// The checked options with what they need of the tokenizer.
struct Rule {
    tokenizer: Arc<Tokenizer>,
    options: TokenizeOptions,
    schema: SchemaRef,
    /// The id that `append_eos` appends.
    eos: Option<u32>,
    /// The id that fills rows up to `max_length`.
    fill: Option<u32>,
}

impl TokenRule for Rule {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    fn apply(&self, batch: &RecordBatch, first_row: u64) -> Result<RecordBatch> {
        let rows = self.encode(batch, &self.options.field, first_row)?;
        let mut ids = Lists::with_capacity(rows.len());
        let mut mask = Lists::with_capacity(rows.len());
        for (row, mut tokens) in rows.into_iter().enumerate() {
            let max = ("max_length", self.options.max_length);
            self.finish(&mut tokens, max, first_row + row as u64)?;
            let length = self.options.max_length.unwrap_or(0).max(tokens.len());
            if let Some(fill) = self.fill {
                let real = tokens.len();
                mask.push((0..length).map(|i| i32::from(i < real)));
                tokens.resize(length, fill);
            }
            ids.push(tokens.into_iter().map(|id| id as i32));
        }
        let mut columns = vec![ids.finish()];
        if self.fill.is_some() {
            columns.push(mask.finish());
        }
        if let Some(target) = &self.options.text_target {
            columns.push(self.labels(batch, target, first_row)?);
        }
        RecordBatch::try_new(self.schema.clone(), columns)
            .map_err(|e| Error::new(Code::Internal, format!("tokenize: {e}")).caused_by(e))
    }

    fn identity(&self) -> Option<String> {
        let how = format!("{:?} {:?} {:?}", self.options, self.eos, self.fill);
        self.options.load_from_cache_file.then_some(how)
    }

    fn describe(&self) -> String {
        let length =
            self.options.max_length.map_or(String::new(), |n| format!(", max_length: {n}"));
        format!("tokenize({}{length})", self.options.field)
    }
}

impl Rule {
    fn new(tokenizer: Arc<Tokenizer>, options: TokenizeOptions) -> Result<Self> {
        check(&options)?;
        let need = |id: Option<u32>, option: &str, what: &str| {
            id.ok_or_else(|| {
                let message = format!("{option}: the tokenizer has no {what} token");
                Error::new(Code::Tokenizer, message).option(option.to_owned())
            })
        };
        let eos = match options.append_eos {
            true => Some(need(tokenizer.eos_id(), "append_eos", "end-of-text")?),
            false => None,
        };
        let mut ids = tokens::int32_list(INPUT_IDS);
        if options.padding != Padding::None {
            let pad = need(tokenizer.pad_id(), "padding", "padding or end-of-text")?;
            ids = tokens::with_padding(ids, options.padding, pad);
        }
        let fill = (options.padding == Padding::MaxLength).then(|| tokenizer.pad_id()).flatten();
        let mut fields = vec![ids];
        if fill.is_some() {
            fields.push(tokens::int32_list(ATTENTION_MASK));
        }
        if options.text_target.is_some() {
            fields.push(tokens::answers());
        }
        Ok(Self { tokenizer, options, schema: Arc::new(Schema::new(fields)), eos, fill })
    }

    /// The token ids of a column of text.
    fn encode(&self, batch: &RecordBatch, name: &str, first_row: u64) -> Result<Vec<Vec<u32>>> {
        let column = batch.column_by_name(name).ok_or_else(|| no_column(name, &batch.schema()))?;
        let wrong = |what: &dyn std::fmt::Display| {
            let end = first_row + batch.num_rows() as u64;
            let message = format!("rows {first_row}..{end}: \"{name}\" {what}");
            Error::new(Code::Data, message)
        };
        // Text that Spark and DuckDB wrote may be stored as bytes.
        let texts = match is_bytes(column.data_type()) {
            true => as_text(column).map_err(|what| wrong(&what))?,
            false => cast(column, &DataType::LargeUtf8).map_err(|e| wrong(&e))?,
        };
        let texts = texts.as_string::<i64>();
        if let Some(row) = (0..texts.len()).find(|&row| texts.is_null(row)) {
            return Err(Error::new(
                Code::Data,
                format!("row {}: \"{name}\" is null", first_row + row as u64),
            )
            .hint("remove such rows with .filter before .tokenize"));
        }
        self.tokenizer.encode_batch(texts.iter().flatten().collect())
    }

    /// The labels of the rows: the tokens of the texts to answer with.
    fn labels(&self, batch: &RecordBatch, target: &str, first_row: u64) -> Result<ArrayRef> {
        let rows = self.encode(batch, target, first_row)?;
        let mut labels = Lists::with_capacity(rows.len());
        let max = ("max_target_length", self.options.max_target_length);
        for (row, mut tokens) in rows.into_iter().enumerate() {
            self.finish(&mut tokens, max, first_row + row as u64)?;
            labels.push(tokens.into_iter().map(|id| id as i32));
        }
        Ok(labels.finish())
    }

    /// Ends a row and cuts it to the length that the option has.
    fn finish(
        &self,
        tokens: &mut Vec<u32>,
        (option, max): (&'static str, Option<usize>),
        row: u64,
    ) -> Result<()> {
        if let Some(eos) = self.eos
            && tokens.last() != Some(&eos)
        {
            tokens.push(eos);
        }
        let Some(max) = max.filter(|&max| tokens.len() > max) else { return Ok(()) };
        if !self.options.truncation {
            let message =
                format!("row {row} has {} tokens, more than {option} {max}", tokens.len());
            return Err(Error::new(Code::Data, message)
                .hint(format!("set truncation: true to cut it, or raise {option}"))
                .option(option));
        }
        // An end that the tokenizer adds itself stays too.
        let end =
            self.eos.or(tokens.last().copied().filter(|&id| self.tokenizer.eos_id() == Some(id)));
        tokens.truncate(max);
        if let (Some(end), Some(last)) = (end, tokens.last_mut()) {
            *last = end;
        }
        Ok(())
    }
}

/// Refuses options that would have no effect or contradict each other.
fn check(options: &TokenizeOptions) -> Result<()> {
    let uses_length = options.truncation || options.padding == Padding::MaxLength;
    let fault = |option: &str, message: &str| {
        Err(Error::new(Code::BadValue, format!("tokenize: {message}")).option(option))
    };
    let max_target = options.max_target_length;
    if max_target.is_some() && (options.text_target.is_none() || !options.truncation) {
        let message = "max_target_length has no effect without text_target and truncation: true";
        return fault("max_target_length", message);
    }
    if max_target.is_some_and(|max| max == 0 || max > i32::MAX as usize) {
        return fault("max_target_length", "max_target_length must be 1 or more");
    }
    match options.max_length {
        None if options.truncation && max_target.is_some() => Ok(()),
        Some(0) => fault("max_length", "max_length must be 1 or more"),
        Some(max) if max > i32::MAX as usize => fault("max_length", "max_length is too large"),
        Some(_) if !uses_length => fault(
            "max_length",
            "max_length has no effect without truncation: true or padding: \"max_length\"",
        ),
        None if options.truncation => fault("truncation", "truncation: true needs max_length"),
        None if uses_length => fault("padding", "padding: \"max_length\" needs max_length"),
        _ => Ok(()),
    }
}

/// A list-of-int32 column being filled.
struct Lists {
    values: Vec<i32>,
    lengths: Vec<usize>,
}

impl Lists {
    fn with_capacity(rows: usize) -> Self {
        Self { values: Vec::new(), lengths: Vec::with_capacity(rows) }
    }

    fn push(&mut self, row: impl Iterator<Item = i32>) {
        let before = self.values.len();
        self.values.extend(row);
        self.lengths.push(self.values.len() - before);
    }

    fn finish(self) -> ArrayRef {
        tokens::lists(self.values, self.lengths)
    }
}
