//! The line editor: history, several lines, completion and colours while typing.

use std::{
    borrow::Cow,
    cell::RefCell,
    path::{Path, PathBuf},
    rc::Rc,
};

use anstyle::{AnsiColor, Style};
use rustyline::{
    Behavior, Cmd, CompletionType, ConditionalEventHandler, Config, Context, Editor, Event,
    EventContext, EventHandler, Helper, KeyCode, KeyEvent, Modifiers, Movement, RepeatCount,
    completion::{Completer, Pair},
    error::ReadlineError,
    highlight::{CmdKind, Highlighter},
    hint::Hinter,
    history::FileHistory,
    validate::Validator,
};

use super::{
    commands,
    highlight::painted,
    indent::{self, INDENT},
    layout::FAINT,
};
use crate::{
    columns::cut,
    error::{Code, Error, Result},
    fs::Place,
    live::{
        Live,
        complete::Completion,
        input::{Completeness, completeness},
    },
};

/// How many inputs are remembered.
const HISTORY: usize = 5000;

/// The text of the prompt.
const PROMPT: &str = "dsr> ";

/// The result of one prompt.
pub(super) enum Entered {
    Input(String),
    /// The line was given up with Ctrl-C.
    GivenUp,
    /// Ctrl-D.
    End,
}

/// The prompt of a session.
pub(super) struct Prompt {
    editor: Editor<Help, FileHistory>,
    history: Option<PathBuf>,
    color: bool,
}

impl Prompt {
    /// A prompt that completes with what `live` knows, and remembers inputs in the file `history`.
    pub(super) fn new(
        live: Rc<RefCell<Live>>,
        history: Option<PathBuf>,
        color: bool,
    ) -> Result<Self> {
        let config = Config::builder()
            .max_history_size(HISTORY)
            .and_then(|config| config.history_ignore_dups(true))
            .map_err(failed)?
            .completion_type(CompletionType::List)
            .completion_show_all_if_ambiguous(true)
            .completion_prompt_limit(200)
            .bracketed_paste(true)
            .auto_add_history(false)
            .behavior(Behavior::Stdio)
            .build();
        let mut editor = Editor::with_config(config).map_err(failed)?;
        editor.set_helper(Some(Help { live, color, width: RefCell::new(80) }));
        let enter = || EventHandler::Conditional(Box::new(Enter));
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::NONE), enter());
        editor.bind_sequence(KeyEvent::ctrl('j'), enter());
        editor.bind_sequence(
            KeyEvent(KeyCode::Char('}'), Modifiers::NONE),
            EventHandler::Conditional(Box::new(Close)),
        );
        if let Some(file) = &history {
            // A history that cannot be read is as good as none.
            let _ = editor.load_history(file);
        }
        Ok(Self { editor, history, color })
    }

    /// Columns of the terminal.
    pub(super) fn width(&mut self) -> usize {
        let columns = self.editor.dimensions().map(|(columns, _)| usize::from(columns));
        columns.filter(|columns| *columns > 0).unwrap_or(80)
    }

    /// Waits for an input.
    pub(super) fn read(&mut self) -> Result<Entered> {
        let width = self.width();
        if let Some(help) = self.editor.helper_mut() {
            help.width.replace(width);
        }
        let style = match self.color {
            true => AnsiColor::Green.on_default().bold(),
            false => Style::new(),
        };
        let styled = format!("{style}{PROMPT}{style:#}");
        match self.editor.readline(&(PROMPT, styled.as_str())) {
            Ok(text) => {
                self.remember(&text);
                Ok(Entered::Input(text))
            }
            Err(ReadlineError::Interrupted) => Ok(Entered::GivenUp),
            Err(ReadlineError::Eof) => Ok(Entered::End),
            Err(e) => Err(failed(e)),
        }
    }

    /// The inputs that are remembered, the oldest first.
    pub(super) fn history(&self) -> Vec<String> {
        self.editor.history().iter().cloned().collect()
    }

    fn remember(&mut self, text: &str) {
        if text.trim().is_empty() {
            return;
        }
        let is_new = self.editor.add_history_entry(text).unwrap_or(false);
        // Written at once: a session may end without notice. A full disk must not end it.
        if let Some(file) = self.history.as_deref().filter(|_| is_new) {
            let made = file.parent().map(|dir| Place::unguarded(dir).create_dir_all());
            let _ = made.transpose().map(|_| self.editor.append_history(file));
        }
    }
}

/// The file of a directory's inputs, in the directory that dsr keeps its state in.
pub(super) fn history_file(state: &Path, dir: &Path) -> PathBuf {
    let path = dir.display().to_string();
    let name: String = path
        .chars()
        .map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '%' })
        .collect();
    // Long paths end in what tells them apart.
    let start = name.len().saturating_sub(180);
    let start = (start..name.len()).find(|at| name.is_char_boundary(*at)).unwrap_or(0);
    state.join("history").join(&name[start..])
}

fn failed(e: ReadlineError) -> Error {
    Error::new(Code::Io, format!("the terminal cannot be used: {e}"))
}

struct Help {
    live: Rc<RefCell<Live>>,
    color: bool,
    width: RefCell<usize>,
}

impl Helper for Help {}

impl Hinter for Help {
    type Hint = String;
}

impl Validator for Help {}

impl Completer for Help {
    type Candidate = Pair;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<Pair>)> {
        let live = self.live.borrow();
        let found = match commands::complete(&live, line, at) {
            Some(found) => found,
            None => {
                // Help is asked for a name as it would be used.
                let skipped = usize::from(line.starts_with('?'));
                let skipped = skipped + commands::argument_start(line).unwrap_or(0);
                let mut found = match at.checked_sub(skipped) {
                    Some(at) => live.complete(&line[skipped..], at),
                    None => Completion::default(),
                };
                found.start += skipped;
                found
            }
        };
        let widest = found.candidates.iter().map(|c| c.text.chars().count()).max().unwrap_or(0);
        let room = self.width.borrow().saturating_sub(2);
        let pairs = found.candidates.into_iter().map(|candidate| {
            let shown = match candidate.help.is_empty() {
                true => candidate.text.clone(),
                false => format!("{:widest$}  {}", candidate.text, candidate.help),
            };
            Pair { display: cut(&shown, room), replacement: candidate.text }
        });
        Ok((found.start, pairs.collect()))
    }
}

impl Highlighter for Help {
    fn highlight<'l>(&self, line: &'l str, at: usize) -> Cow<'l, str> {
        if self.color { Cow::Owned(painted(line, Some(at))) } else { Cow::Borrowed(line) }
    }

    fn highlight_candidate<'c>(&self, candidate: &'c str, _: CompletionType) -> Cow<'c, str> {
        match candidate.split_once("  ") {
            Some((name, help)) if self.color => {
                Cow::Owned(format!("{name}{FAINT}  {help}{FAINT:#}"))
            }
            _ => Cow::Borrowed(candidate),
        }
    }

    fn highlight_char(&self, _: &str, _: usize, _: CmdKind) -> bool {
        self.color
    }
}

/// Enter runs an input that is whole, and otherwise begins its next line as deep as it belongs.
struct Enter;

impl ConditionalEventHandler for Enter {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, ctx: &EventContext<'_>) -> Option<Cmd> {
        let text = ctx.line();
        if text.starts_with([':', '?']) || completeness(text) == Completeness::Whole {
            return Some(Cmd::AcceptLine);
        }
        let depth = indent::depth(&text[..ctx.pos()]);
        Some(Cmd::Insert(1, format!("\n{}", INDENT.repeat(depth))))
    }
}

/// A closing bracket at the start of a line stands as deep as the line that opened it.
struct Close;

impl ConditionalEventHandler for Close {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, ctx: &EventContext<'_>) -> Option<Cmd> {
        let before = &ctx.line()[..ctx.pos()];
        let (_, line) = before.rsplit_once('\n')?;
        let outer = line.strip_suffix(INDENT)?;
        let is_indent = outer.chars().all(|c| c == ' ');
        is_indent.then(|| Cmd::Replace(Movement::BeginningOfLine, Some(format!("{outer}}}"))))
    }
}
