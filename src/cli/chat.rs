//! `dsr chat MODEL`: a conversation with a model, by its own chat template.

use std::{
    borrow::Cow,
    io::{BufRead, IsTerminal},
    path::Path,
};

use super::{
    Console, console, report,
    served::{ModelArgs, Served},
    table_args::TableArgs,
};
use crate::{
    data::{ChatTemplate, Message},
    error::{Code, Error, IoContext, Result},
    fs::{Place, write_atomic},
    generation::{Continued, FinishReason, Sampling, Texts, continue_tokens},
    recipe::Failure,
    repl::Lines,
};

/// The arguments of `dsr chat`.
#[derive(Debug, clap::Args)]
pub(super) struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// Begin with this system message.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    #[command(flatten)]
    sampling: TableArgs<Sampling>,
}

const HELP: &str = "\
/system TEXT   begin anew with this system message; without a text, with none
/reset         begin anew
/save FILE     write the conversation as a line of JSON Lines
/quit          end, as Ctrl-D does
Ctrl-C ends an answer and keeps what is there. Anything else is said to the model.
";

/// Talks until the input ends; the result is the exit status.
pub(super) fn run(args: &ChatArgs, console: &Console) -> Result<u8> {
    let sampling = args.sampling.read("dsr chat")?;
    if sampling.num_return_sequences > 1 {
        return Err(Error::new(Code::Usage, "a conversation has one answer to each message")
            .hint("leave --num-return-sequences out"));
    }
    let served = args.model.open(console)?;
    // A tokenizer that --tokenizer names may have its own.
    let template = match served.tokenizer.chat_template() {
        Some(template) => Cow::Borrowed(template),
        None => Cow::Owned(ChatTemplate::read(Place::unguarded(&served.directory))?),
    };
    let mut chat = Chat {
        served: &served,
        template: &template,
        sampling: &sampling,
        said: Vec::new(),
        failed: None,
    };
    chat.begin(args.system.as_deref().unwrap_or_default());
    if std::io::stdin().is_terminal() {
        console::err("/help lists the commands, Ctrl-D ends.\n");
        let mut lines = Lines::new()?;
        while let Some(line) = lines.next("> ")? {
            served.interrupt.clear();
            let goes_on = chat.take(&line)?;
            // The answer has ended, and the next one begins anew.
            served.interrupt.clear();
            if !goes_on {
                break;
            }
        }
        return Ok(0);
    }
    for line in std::io::stdin().lock().lines() {
        let line = line.at("read", Path::new("standard input"))?;
        if served.interrupt.requested() || !chat.take(&line)? {
            break;
        }
    }
    let interrupted = served.interrupt.requested().then_some(Code::Interrupted);
    Ok(interrupted.or(chat.failed).map_or(0, Code::exit_status))
}

struct Chat<'a> {
    served: &'a Served,
    template: &'a ChatTemplate,
    sampling: &'a Sampling,
    said: Vec<Message>,
    /// The first failure of what a line asked for.
    failed: Option<Code>,
}

impl Chat<'_> {
    fn begin(&mut self, system: &str) {
        let system = Some(system.trim()).filter(|text| !text.is_empty());
        self.said = system.map(|text| Message::new("system", text)).into_iter().collect();
    }

    /// Takes a line of the user's; false ends the conversation.
    fn take(&mut self, line: &str) -> Result<bool> {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match word {
            "" => {}
            "/quit" | "/exit" => return Ok(false),
            "/help" => console::err(HELP),
            "/reset" => {
                let system = self.said.first().filter(|message| message.role == "system");
                self.said = system.cloned().into_iter().collect();
            }
            "/system" => self.begin(rest),
            "/save" => self.tell(|chat| chat.save(rest.trim())),
            _ if word.starts_with('/') && !word[1..].contains('/') => {
                console::err(&format!("there is no command {word}; /help lists them\n"));
            }
            _ => self.tell(|chat| chat.answer(line)),
        }
        Ok(true)
    }

    /// Does what a line asks for; an error is shown, and the conversation goes on.
    fn tell(&mut self, work: impl FnOnce(&mut Self) -> Result<()>) {
        if let Err(e) = work(self) {
            self.failed.get_or_insert(e.code());
            report::show(&Failure::from(e), false);
        }
    }

    fn answer(&mut self, line: &str) -> Result<()> {
        let mut said = self.said.clone();
        said.push(Message::new("user", line));
        let text = self.template.render(&said, true)?;
        let tokens = self.served.tokenizer.encode_as_it_stands(&text)?;
        let Served { model, tokenizer, .. } = self.served;
        let mut answer = Answer { served: self.served };
        let prompts = [tokens];
        let answered = continue_tokens(model, tokenizer, &prompts, self.sampling, &mut answer);
        let mut texts = answered.map_err(|e| match e.code() {
            Code::Shape if said.len() > 1 => e.hint("/reset begins a conversation anew"),
            _ => e,
        })?;
        console::out("\n");
        let Some(Continued { completion, ended, .. }) = texts.pop() else { return Ok(()) };
        if ended.reason == FinishReason::Length {
            console::err("(max_new_tokens: --max-new-tokens N lets answers be longer)\n");
        }
        said.push(Message::new("assistant", completion.trim()));
        self.said = said;
        Ok(())
    }

    fn save(&self, file: &str) -> Result<()> {
        if file.is_empty() {
            return Err(Error::new(Code::Usage, "/save needs the name of a file"));
        }
        let path = Path::new(file);
        if path.exists() {
            let message = format!("{file} is there already");
            return Err(Error::new(Code::Io, message).hint("name a new file"));
        }
        let line = serde_json::json!({ "messages": self.said });
        write_atomic(Place::unguarded(path), format!("{line}\n").as_bytes())?;
        console::err(&format!("wrote {file}\n"));
        Ok(())
    }
}

/// Shows an answer while it is made.
struct Answer<'a> {
    served: &'a Served,
}

impl Texts for Answer<'_> {
    fn piece(&mut self, _: usize, piece: &str) -> Result<()> {
        console::out(piece);
        Ok(())
    }

    fn must_stop(&self) -> bool {
        self.served.interrupt.requested()
    }
}
