//! `dsr score MODEL FILE`: how well a model predicts a text.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{
    Console, console,
    served::{ModelArgs, Served},
};
use crate::{
    error::{Code, Error, Result},
    fs::{Place, read_to_string},
    generation::{Score, Windows, score},
};

/// The arguments of `dsr score`.
#[derive(Debug, clap::Args)]
pub(super) struct ScoreArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// A text file, or JSON Lines with a "text" in each line.
    file: PathBuf,

    /// The tokens of a window [default: the model's positions, at most 2048].
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,

    /// The tokens from the start of one window to that of the next [default: half a window].
    #[arg(long, value_name = "N")]
    stride: Option<usize>,

    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

/// Scores and prints; the result is the exit status.
pub(super) fn run(args: &ScoreArgs, console: &Console) -> Result<u8> {
    let texts = texts(&args.file)?;
    let Served { model, tokenizer, interrupt, .. } = args.model.open(console)?;
    let windows = Windows::new(&model, args.max_length, args.stride)?;
    let mut all = Score::default();
    for (i, text) in texts.iter().enumerate() {
        let tokens: Vec<i64> = tokenizer.encode(text)?.into_iter().map(i64::from).collect();
        let bytes = text.len() as u64;
        let Some(one) = score(&model, &tokens, bytes, windows, &|| interrupt.requested())? else {
            return Err(Error::new(Code::Interrupted, "the text was not scored to its end"));
        };
        all = all.plus(one);
        console.progress(i as u64 + 1, texts.len() as u64, "texts");
    }
    console.finish();
    if all.predicted == 0 {
        let message = format!("{} has no token to predict", args.file.display());
        return Err(Error::new(Code::Data, message).hint("a text needs two tokens or more"));
    }
    match args.json {
        true => console::out_json(as_json(&all)),
        false => console::out(&as_text(&all)),
    }
    Ok(0)
}

fn as_text(score: &Score) -> String {
    format!(
        "tokens         {}\nloss           {:.4}\nperplexity     {:.3}\nbits per byte  {:.4}\n",
        score.tokens,
        score.loss(),
        score.perplexity(),
        score.bits_per_byte(),
    )
}

fn as_json(score: &Score) -> Value {
    json!({
        "tokens": score.tokens,
        "predicted": score.predicted,
        "bytes": score.bytes,
        "loss": score.loss(),
        "perplexity": score.perplexity(),
        "bits_per_byte": score.bits_per_byte(),
    })
}

/// The texts of a file: one, or those of its lines of JSON.
fn texts(path: &Path) -> Result<Vec<String>> {
    let text = read_to_string(Place::unguarded(path))?;
    if path.extension().is_none_or(|extension| extension != "jsonl") {
        return Ok(vec![text]);
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let of_line = |(i, line): (usize, &str)| {
        let value: Option<Value> = serde_json::from_str(line).ok();
        let text = value.as_ref().and_then(|value| value["text"].as_str()).map(str::to_owned);
        text.ok_or_else(|| {
            let message =
                format!("{}, line {}: expected an object with \"text\"", path.display(), i + 1);
            Error::new(Code::Data, message)
        })
    };
    lines.map(of_line).collect()
}
