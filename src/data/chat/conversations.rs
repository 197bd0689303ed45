//! `chat`: conversations as token ids with labels.

use std::sync::Arc;

use arrow::{
    array::RecordBatch,
    datatypes::{Schema, SchemaRef},
};
use serde_json::{Value, json};

use super::{
    conversation::{Conversation, Form, begins_with_system},
    labels::{Answer, End, PlacedToken, Written, trained, unwritten, written},
    template::ChatTemplate,
};
use crate::{
    config::options::option_table,
    data::{
        stage::Stage,
        tokenized::{TokenRule, Tokenized},
        tokenizer::Tokenizer,
        tokens::{self, INPUT_IDS, LABELS, Padding},
        values::{Row, to_rows},
    },
    error::{Code, Error, Result},
    tensor::IGNORE_INDEX,
};

option_table! {
    /// How conversations become rows of token ids.
    #[derive(Debug, Clone)]
    pub struct ChatOptions {
        /// the column of messages; by default what the columns tell: messages, conversations, prompt and
        /// completion, or instruction, input and output
        #[option(optional)]
        pub field: Option<String>,
        /// a chat template in place of the tokenizer's
        #[option(optional)]
        pub chat_template: Option<String>,
        /// whether texts are written by the template; without it the answer stands behind the prompt as it
        /// is, and ends in the end-of-text token
        #[option(default = true)]
        pub apply_chat_template: bool,
        /// a system prompt for conversations without one
        #[option(optional)]
        pub system: Option<String>,
        /// the length in tokens that rows may have
        #[option(optional, range = 1..)]
        pub max_length: Option<usize>,
        /// whether rows longer than `max_length` are cut at their end
        #[option(default = false)]
        pub truncation: bool,
        /// whether tokens that an earlier run made of the same conversations are taken, and those of this
        /// run kept
        #[option(default = true)]
        pub load_from_cache_file: bool,
    }
}

/// The checked options with what they need.
struct Rule {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    form: Form,
    options: ChatOptions,
    schema: SchemaRef,
}

/// The input's conversations as token ids, row by row.
pub(in crate::data) fn chat(
    input: Arc<dyn Stage>,
    tokenizer: Arc<Tokenizer>,
    options: ChatOptions,
) -> Result<Tokenized> {
    let form = Form::of(&input.schema(), options.field.as_deref())?;
    let tokenizer = match &options.chat_template {
        Some(source) => Arc::new(tokenizer.with_chat_template(source)),
        None => tokenizer,
    };
    let template = tokenizer.chat_template().filter(|_| options.apply_chat_template).cloned();
    let needs_one = matches!(form, Form::Messages(_)) || options.apply_chat_template;
    if template.is_none() && needs_one {
        if !options.apply_chat_template {
            let message = "conversations are written by a chat template";
            return Err(Error::new(Code::BadValue, message).option("apply_chat_template").hint(
                "leave `apply_chat_template: false` out, which is for prompts with completions",
            ));
        }
        let e = Error::new(Code::Tokenizer, "the tokenizer has no chat template");
        let e = e.hint("give one with `chat_template`, or take the tokenizer of a chat model");
        return Err(match form {
            Form::Messages(_) => e,
            _ => e.hint("apply_chat_template: false trains the answers behind the prompts"),
        });
    }
    let mut ids = tokens::int32_list(INPUT_IDS);
    if let Some(pad) = tokenizer.pad_id() {
        ids = tokens::with_padding(ids, Padding::Longest, pad);
    }
    let schema = Arc::new(Schema::new(vec![ids, tokens::int32_list(LABELS)]));
    Ok(Tokenized::new(input, Rule { tokenizer, template, form, options, schema }))
}
impl TokenRule for Rule {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    fn apply(&self, batch: &RecordBatch, first_row: u64) -> Result<RecordBatch> {
        let mut places = Vec::new();
        let mut texts = Vec::new();
        for (i, row) in to_rows(batch, first_row)?.iter().enumerate() {
            let Written { text, answers } =
                self.written(row).map_err(|e| in_row(first_row + i as u64, e))?;
            texts.push(text);
            places.push(answers);
        }
        let adds_special = self.template.is_none();
        let encoded = self.tokenizer.encode_placed_batch(&texts, adds_special)?;
        let (mut ids, mut labels, mut ends) = (Vec::new(), Vec::new(), Vec::new());
        for (i, (tokens, answers)) in encoded.into_iter().zip(places).enumerate() {
            let row = first_row + i as u64;
            let (tokens, trained) = self.labelled(tokens, &answers).map_err(|e| in_row(row, e))?;
            ends.push(tokens.len());
            for (token, is_trained) in tokens.iter().zip(trained) {
                ids.push(token.id as i32);
                labels.push(if is_trained { token.id as i32 } else { IGNORE_INDEX as i32 });
            }
        }
        let list = |values: Vec<i32>| tokens::lists(values, ends.iter().copied());
        RecordBatch::try_new(self.schema.clone(), vec![list(ids), list(labels)])
            .map_err(|e| Error::new(Code::Internal, format!("chat: {e}")).caused_by(e))
    }

    fn identity(&self) -> Option<String> {
        let is_lasting = !self.template.as_ref().is_some_and(ChatTemplate::tells_the_time);
        let how = format!("{:?} {:?} {:?}", self.options, self.template, self.form);
        (self.options.load_from_cache_file && is_lasting).then_some(how)
    }

    fn describe(&self) -> String {
        let ChatOptions { max_length, system, chat_template, apply_chat_template, .. } =
            &self.options;
        let mut options: Vec<String> = Vec::new();
        options.extend(max_length.map(|n| format!("max_length: {n}")));
        options.extend(system.as_ref().map(|text| format!("system: {text:?}")));
        options.extend(chat_template.as_ref().map(|text| format!("chat_template: {text:?}")));
        if !apply_chat_template {
            options.push("apply_chat_template: false".to_owned());
        }
        format!("chat({})", options.join(", "))
    }
}

impl Rule {
    /// The text of a row, and where its answers are.
    fn written(&self, row: &Row) -> Result<Written> {
        let wrong = |why: String| Error::new(Code::Data, why);
        let conversation = self.form.read(row, self.template.is_some()).map_err(wrong)?;
        let (mut messages, mut first_trained, tools) = match conversation {
            Conversation::Plain { prompt, completion } => {
                let start = prompt.len();
                let text = format!("{prompt}{completion}");
                let answers = vec![Answer { span: start..text.len(), end: End::Exact }];
                return Ok(Written { text, answers });
            }
            Conversation::Turns { messages, first_trained, tools } => {
                (messages, first_trained, tools)
            }
        };
        if let Some(system) =
            self.options.system.as_ref().filter(|_| !begins_with_system(&messages))
        {
            messages.insert(0, json!({ "role": "system", "content": system }));
            first_trained += 1;
        }
        if !messages[first_trained..].iter().any(|message| message["role"] == "assistant") {
            let roles = messages.iter().map(|m| m["role"].as_str().unwrap_or("none"));
            let roles = roles.collect::<Vec<_>>().join(", ");
            let why =
                format!("no token is trained: no message is the assistant's (roles: {roles})");
            return Err(wrong(why).hint("remove such rows with .filter before .chat"));
        }
        let Some(template) = &self.template else {
            return Err(Error::new(Code::Internal, "messages without a template"));
        };
        let tools: Option<&Value> = tools.as_ref();
        if let Some(what) = unwritten(template, &messages, first_trained, tools)? {
            let message =
                format!("the chat template does not write {what}: the model would not see it");
            return Err(wrong(message).hint(
                "give a `chat_template` that writes it, or remove it from the rows with .map before .chat",
            ));
        }
        written(template, &messages, first_trained, tools)?.map_err(|why| {
            wrong(format!("what the assistant wrote cannot be told: {why}"))
                .hint("put {% generation %} and {% endgeneration %} around it in a `chat_template`")
        })
    }

    /// The tokens with whether each is trained, as long as they may be.
    fn labelled(
        &self,
        mut tokens: Vec<PlacedToken>,
        answers: &[Answer],
    ) -> Result<(Vec<PlacedToken>, Vec<bool>)> {
        let mut trained = trained(&tokens, answers);
        if self.template.is_none()
            && let Some(eos) = self.tokenizer.eos_id()
            && tokens.last().is_none_or(|token| token.id != eos)
        {
            tokens.push(PlacedToken { id: eos, bytes: 0..0, is_special: true });
            trained.push(true);
        }
        let found = tokens.len();
        if let Some(most) = self.options.max_length.filter(|&most| found > most) {
            if !self.options.truncation {
                let message = format!("it has {found} tokens, more than max_length {most}");
                return Err(Error::new(Code::Data, message)
                    .hint("truncation: true cuts such rows; .filter before .chat removes them"));
            }
            tokens.truncate(most);
            trained.truncate(most);
        }
        // The first token has nothing before it to be predicted from.
        if !trained.iter().skip(1).any(|&is_trained| is_trained) {
            let (why, hint) = match found > tokens.len() {
                true => ("max_length cuts the answers off", "a larger max_length keeps them"),
                false => ("the template shows no answer", "look at it with ds.preview(1)"),
            };
            return Err(Error::new(Code::Data, format!("no token is trained: {why}")).hint(hint));
        }
        Ok((tokens, trained))
    }
}

/// The error with the row that it is about.
fn in_row(row: u64, e: Error) -> Error {
    let message = format!("row {row}: {}", e.message());
    let hints: Vec<String> = e.hints().to_vec();
    hints.into_iter().fold(Error::new(e.code(), message), Error::hint)
}
