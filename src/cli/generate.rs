//! `dsr generate MODEL`: texts that a model goes on with, without a recipe.

use std::{
    io::{IsTerminal, Read},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use super::{
    Console, console,
    served::{ModelArgs, Served},
    table_args::TableArgs,
};
use crate::{
    error::{Code, Error, IoContext, Result},
    fs::{Place, read_to_string},
    generation::{Continued, FinishReason, Sampling, Texts, continue_texts},
};

/// The arguments of `dsr generate`.
#[derive(Debug, clap::Args)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// The prompts [default: standard input, a prompt a line].
    prompts: Vec<String>,

    /// Read prompts from a file: a line each, or JSON Lines with "prompt" or "text".
    #[arg(long = "prompts", value_name = "FILE", conflicts_with = "prompts")]
    file: Option<PathBuf>,

    /// Print JSON lines on a terminal, too.
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    sampling: TableArgs<Sampling>,
}

/// Generates and prints; the result is the exit status.
pub(super) fn run(args: &GenerateArgs, console: &Console) -> Result<u8> {
    let sampling = args.sampling.read("dsr generate")?;
    let prompts = prompts(args)?;
    let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
    let served = args.model.open(console)?;
    let is_stream = std::io::stdout().is_terminal()
        && !args.json
        && !sampling.logprobs
        && prompts.len() * sampling.num_return_sequences == 1;
    let Served { model, tokenizer, interrupt, .. } = &served;
    let mut output = Output { prompts: &prompts, sampling: &sampling, is_stream, served: &served };
    if is_stream && !model.facts().is_seq2seq() {
        console::out(prompts[0]);
    }
    continue_texts(model, tokenizer, &prompts, &sampling, &mut output)?;
    Ok(if interrupt.requested() { Code::Interrupted.exit_status() } else { 0 })
}

struct Output<'a> {
    prompts: &'a [&'a str],
    sampling: &'a Sampling,
    /// Whether the text is shown while it is made.
    is_stream: bool,
    served: &'a Served,
}

impl Texts for Output<'_> {
    fn piece(&mut self, _: usize, piece: &str) -> Result<()> {
        if self.is_stream {
            console::out(piece);
        }
        Ok(())
    }

    fn ended(&mut self, text: usize, continued: &Continued) -> Result<()> {
        if self.is_stream {
            console::out("\n");
            return Ok(());
        }
        // A text that was not begun says nothing.
        let is_begun = !continued.ended.tokens.is_empty();
        if is_begun || continued.ended.reason != FinishReason::Interrupted {
            let line = line(self.prompts, self.sampling, text, continued);
            console::out_json(line);
        }
        Ok(())
    }

    fn must_stop(&self) -> bool {
        self.served.interrupt.requested() || console::lost_output().is_err()
    }
}

fn line(prompts: &[&str], sampling: &Sampling, text: usize, continued: &Continued) -> Value {
    let sequences = sampling.num_return_sequences;
    let Continued { text: whole, completion, ended } = continued;
    let mut line = Map::from_iter([
        ("index".to_owned(), json!(text / sequences)),
        ("prompt".to_owned(), json!(prompts[text / sequences])),
        ("completion".to_owned(), json!(completion)),
        ("text".to_owned(), json!(whole)),
        ("token_ids".to_owned(), json!(ended.tokens)),
        ("finish_reason".to_owned(), json!(ended.reason.name())),
    ]);
    if sequences > 1 {
        line.insert("sequence".to_owned(), json!(text % sequences));
    }
    if sampling.logprobs {
        line.insert("logprobs".to_owned(), json!(ended.logprobs));
    }
    line.into()
}

fn prompts(args: &GenerateArgs) -> Result<Vec<String>> {
    let (text, name) = match &args.file {
        Some(path) => (read_to_string(Place::unguarded(path))?, path.display().to_string()),
        None if !args.prompts.is_empty() => return Ok(args.prompts.clone()),
        None if std::io::stdin().is_terminal() => {
            return Err(Error::new(Code::Usage, "there is no prompt")
                .hint("dsr generate MODEL \"It is a truth\", or --prompts FILE"));
        }
        None => {
            let (mut text, name) = (String::new(), "standard input");
            std::io::stdin().read_to_string(&mut text).at("read", Path::new(name))?;
            (text, name.to_owned())
        }
    };
    let is_json =
        args.file.as_ref().is_some_and(|path| path.extension().is_some_and(|e| e == "jsonl"));
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let prompt = |(i, line): (usize, &str)| match is_json {
        true => {
            prompt(line).map_err(|e| Error::new(Code::Data, format!("{name}, line {}: {e}", i + 1)))
        }
        false => Ok(line.to_owned()),
    };
    let prompts: Vec<String> = lines.map(prompt).collect::<Result<_>>()?;
    match prompts.is_empty() {
        true => Err(Error::new(Code::Data, format!("{name} has no prompt"))),
        false => Ok(prompts),
    }
}

/// The prompt of a line of JSON.
fn prompt(line: &str) -> Result<String, String> {
    let value: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let found = ["prompt", "text"].iter().find_map(|key| value.get(key));
    let text = found.unwrap_or(&value).as_str().map(str::to_owned);
    text.ok_or_else(|| "expected a string, or an object with \"prompt\" or \"text\"".to_owned())
}
