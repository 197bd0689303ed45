//! `dsr watch`: a screen of a run that goes on, or of one that has ended.
//!
//! The screen looks at the run's files four times a second, for at most [`PATIENCE`] each time, and is drawn
//! anew once a second where something changed, and after each key. It has no part in the run: see [`Watched`].

mod memory;
mod pane;
mod ranks;
mod samples;
mod screen;

use std::time::{Duration, Instant};

use clap::Args;
use ratatui::{
    DefaultTerminal, Terminal,
    backend::TestBackend,
    crossterm::{
        event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers},
        style,
    },
};

use self::screen::{View, draw, rows_of_text};
use super::{console, runs::RootArgs, signals};
use crate::{
    error::{Code, Error, Result},
    fs::Place,
    run::{Interrupt, Watched},
};

/// How often the run is looked at.
const LOOKS_AFTER: Duration = Duration::from_millis(250);

/// How often a screen that has changed is drawn anew: that costs more than a look.
const DRAWN_AFTER: Duration = Duration::from_secs(1);

/// How long a look may take where much is to be read: one per cent of the time.
const PATIENCE: Duration = Duration::from_micros(2500);

/// Columns and rows of the screen that is printed where there is no terminal; samples and ranks have rows of
/// their own.
const PRINTED: (u16, u16) = (100, 30);

#[derive(Debug, Args)]
pub(super) struct WatchArgs {
    /// The run, by name or directory [default: the newest].
    run: Option<String>,

    #[command(flatten)]
    root: RootArgs,
}

pub(super) fn run(args: &WatchArgs) -> Result<()> {
    let mut watched = Watched::open(Place::unguarded(&args.root.root), args.run.as_deref())?;
    if !console::is_screen() {
        watched.look_at_all()?;
        console::out(&printed(&watched)?);
        return Ok(());
    }
    style::force_color_output(console::has_colours());
    let interrupt = Interrupt::new();
    signals::install(&interrupt)?;
    let mut terminal = ratatui::try_init().map_err(|e| broken(&e))?;
    let outcome = show(&mut terminal, &mut watched, &interrupt);
    let restored = ratatui::try_restore().map_err(|e| broken(&e));
    outcome.and(restored)
}

/// Shows the run until the user has seen enough.
fn show(
    terminal: &mut DefaultTerminal,
    watched: &mut Watched,
    interrupt: &Interrupt,
) -> Result<()> {
    let mut view = View::default();
    let (mut is_new, mut is_asked) = (false, true);
    let mut drawn = Instant::now();
    while !interrupt.requested() {
        if is_asked || (is_new && drawn.elapsed() >= DRAWN_AFTER) {
            terminal.draw(|frame| draw(frame, watched, view)).map_err(|e| broken(&e))?;
            (is_new, is_asked, drawn) = (false, false, Instant::now());
        }
        if event::poll(LOOKS_AFTER).map_err(|e| broken(&e))? {
            match event::read().map_err(|e| broken(&e))? {
                Event::Key(key) if is_end(key) => break,
                Event::Key(key) => view = view.after(key, watched),
                _ => {}
            }
            is_asked = true;
        } else {
            is_new |= watched.look(PATIENCE)?;
        }
    }
    Ok(())
}

fn is_end(key: KeyEvent) -> bool {
    let is_control_c =
        key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    let ends = matches!(key.code, KeyCode::Char('q') | KeyCode::Esc);
    key.kind == KeyEventKind::Press && (ends || is_control_c)
}

/// The screen as text.
fn printed(watched: &Watched) -> Result<String> {
    let (columns, rows) = PRINTED;
    let rows = rows + rows_of_text(watched);
    let Ok(mut terminal) = Terminal::new(TestBackend::new(columns, rows));
    let Ok(_) = terminal.draw(|frame| draw(frame, watched, View::printed()));
    let cells = terminal.backend().buffer().content();
    let lines = cells.chunks(usize::from(columns)).map(|row| {
        let line: String = row.iter().map(|cell| cell.symbol()).collect();
        line.trim_end().to_owned() + "\n"
    });
    Ok(lines.collect::<String>().trim_end().to_owned() + "\n")
}

fn broken(e: &std::io::Error) -> Error {
    Error::new(Code::Io, "cannot use the terminal").caused_by(e.to_string())
}
