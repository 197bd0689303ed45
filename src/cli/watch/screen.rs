//! The screen of a run: how it stands above, its charts and samples below. The chosen chart is large, the
//! others stand beside it where there is room.

use ratatui::{
    Frame,
    crossterm::event::{KeyCode, KeyEvent},
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize},
    text::{Line, Span},
    widgets::Paragraph,
};
use serde_json::Value;

use super::{
    memory,
    pane::{PANES, steps},
    ranks, samples,
};
use crate::{
    foreign::Foreign,
    run::{Elapsed, Quantity, State, Watched},
    units::{Bytes, Count},
};

/// Columns from which on the other charts stand beside the chosen one.
const WIDE: u16 = 80;

/// Rows of charts that stay where samples and ranks stand below them.
const LEAST_CHARTS: u16 = 20;

/// Rows of samples below the charts, and of ranks at most.
const SAMPLES: u16 = 10;
const MOST_RANKS: usize = 10;

/// How often the steps can be halved.
const MOST_ZOOM: u32 = 10;

/// A part of the screen that can be the large one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Pane {
    /// The chart of this number.
    Chart(usize),
    /// The newest samples.
    Samples,
    /// The ranks.
    Ranks,
}

/// The part of the run that is shown.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct View {
    /// The chosen pane.
    pane: Pane,
    /// How often the steps are halved.
    zoom: u32,
    /// Whether it is printed, so that there are no keys.
    is_printed: bool,
}

impl Default for View {
    fn default() -> Self {
        Self { pane: Pane::Chart(0), zoom: 0, is_printed: false }
    }
}

impl View {
    /// The view of a screen without keys.
    pub(super) fn printed() -> Self {
        Self { is_printed: true, ..Self::default() }
    }

    /// The view after a key.
    pub(super) fn after(mut self, key: KeyEvent, watched: &Watched) -> Self {
        let panes: Vec<_> = (0..PANES.len())
            .map(Pane::Chart)
            .chain(others(watched).map(|(pane, _)| pane))
            .collect();
        let at = panes.iter().position(|pane| *pane == self.pane).unwrap_or(0);
        match key.code {
            KeyCode::Tab | KeyCode::Right | KeyCode::Down => {
                self.pane = panes[(at + 1) % panes.len()];
            }
            KeyCode::BackTab | KeyCode::Left | KeyCode::Up => {
                self.pane = panes[(at + panes.len() - 1) % panes.len()];
            }
            KeyCode::Char('+') => self.zoom = (self.zoom + 1).min(MOST_ZOOM),
            KeyCode::Char('-') => self.zoom = self.zoom.saturating_sub(1),
            _ => {}
        }
        self
    }
}

pub(super) fn draw(frame: &mut Frame<'_>, watched: &Watched, view: View) {
    let mut lines = vec![standing(watched), values(watched), made_of(watched)];
    lines.extend(memory(watched, frame.area().width));
    lines.push(times(watched));
    lines.extend(remarks(watched));
    let rows = [
        Constraint::Length(lines.len() as u16),
        Constraint::Min(0),
        Constraint::Length(u16::from(!view.is_printed)),
    ];
    let [top, mut middle, bottom] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(Paragraph::new(lines), top);
    for (pane, rows) in others(watched).filter(|(pane, _)| *pane != view.pane) {
        if middle.height >= LEAST_CHARTS + rows {
            let rows = [Constraint::Min(0), Constraint::Length(rows)];
            let [above, below] = Layout::vertical(rows).areas(middle);
            text(frame, below, watched, pane);
            middle = above;
        }
    }
    charts(frame, middle, watched, view);
    let keys = "tab, arrows: chart   + -: zoom   q: end";
    frame.render_widget(Line::from(keys).dim(), bottom);
}

/// The name, how the run stands, and how far it is.
fn standing(watched: &Watched) -> Line<'static> {
    let path = Foreign(&watched.path().display().to_string()).to_string();
    let state = watched.state();
    let colour = match state {
        State::Running | State::Finished => Color::Green,
        State::Stopped | State::Interrupted | State::Unknown => Color::Yellow,
        State::Failed | State::Killed | State::Damaged => Color::Red,
    };
    let mut words = format!("step {}", watched.step());
    if let Some(total) = watched.told("total_steps").and_then(Value::as_u64) {
        let part = 100.0 * watched.step() as f64 / total.max(1) as f64;
        words += &format!("/{total} ({part:.0}%)");
    }
    if let Some(left) = watched.left() {
        words += &format!("  {} left", Elapsed(left));
    }
    let gap = || Span::raw("  ");
    vec![path.bold(), gap(), state.name().fg(colour), gap(), Span::raw(words)].into()
}

/// The values of the last step.
fn values(watched: &Watched) -> Line<'static> {
    let last = |quantity| watched.last(quantity);
    let words = [
        last(Quantity::Loss).map(|loss| format!("loss {loss:.3}")),
        watched.best().map(|(step, loss)| format!("best eval {loss:.3} at {step}")),
        last(Quantity::LearningRate).map(|lr| format!("lr {lr:.1e}")),
        last(Quantity::GradNorm).map(|norm| format!("|g| {norm:.2}")),
        last(Quantity::Speed).map(|speed| format!("{} tok/s", Count(speed))),
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join("  ").into()
}

/// The device with its memory, and the ranks.
fn made_of(watched: &Watched) -> Line<'static> {
    let memory = |word, quantity| {
        watched.last(quantity).map(|bytes| format!("{word} {}", Bytes(bytes as u64)))
    };
    let ranks = watched.told("world_size").and_then(Value::as_u64).map(|ranks| match ranks {
        1 => "1 rank".to_owned(),
        n => format!("{n} ranks"),
    });
    let words = [
        told(watched, "device_name").or_else(|| told(watched, "device")),
        told(watched, "precision"),
        ranks,
        memory("host memory", Quantity::HostMemory),
        memory("device memory", Quantity::DeviceMemory),
    ];
    Line::from(words.into_iter().flatten().collect::<Vec<_>>().join("  ")).dim()
}

/// The memory by kind, of rank 0 where there are several.
fn memory(watched: &Watched, width: u16) -> impl Iterator<Item = Line<'static>> {
    let of_rank = if watched.ranks().is_empty() { "" } else { " of rank 0" };
    let lines = watched.memory().map(|memory| memory::lines(memory, of_rank, width.into()));
    lines.into_iter().flatten().map(|line| Line::from(line).dim())
}

fn times(watched: &Watched) -> Line<'static> {
    let time = |word: &str, key| told(watched, key).map(|at| format!("{word} {at}"));
    let times =
        [time("started", "started_at"), time("resumed", "resumed_at"), time("ended", "ended_at")];
    Line::from(times.into_iter().flatten().collect::<Vec<_>>().join("  ")).dim()
}

fn told(watched: &Watched, key: &str) -> Option<String> {
    watched.told(key).and_then(Value::as_str).map(|text| Foreign(text).to_string())
}

/// The error of the run, skipped steps and the rest that is left to read.
fn remarks(watched: &Watched) -> Vec<Line<'static>> {
    let error = watched.told("error").and_then(Value::as_str);
    let error = error.and_then(|text| text.lines().next());
    let skipped = Some(watched.skipped()).filter(|&n| n > 0);
    let unreadable = Some(watched.unreadable()).filter(|&n| n > 0);
    let is_partial = !watched.is_whole();
    let remarks = [
        error.map(|text| Line::from(Foreign(text).to_string()).style(Style::new().fg(Color::Red))),
        skipped.map(|n| format!("skipped steps: {n}").into()),
        unreadable.map(|n| format!("lines of metrics.jsonl that cannot be read: {n}").into()),
        is_partial.then(|| Line::from("the beginning is still being read").dim()),
    ];
    remarks.into_iter().flatten().collect()
}

fn charts(frame: &mut Frame<'_>, area: Rect, watched: &Watched, view: View) {
    let steps = steps(watched, view.zoom);
    let has_others = area.width >= WIDE;
    let columns = if has_others { [65, 35] } else { [100, 0] };
    let [left, right] = Layout::horizontal(columns.map(Constraint::Percentage)).areas(area);
    match view.pane {
        Pane::Chart(i) => {
            PANES[i].chart(watched, steps, true, |chart| frame.render_widget(chart, left));
        }
        pane => text(frame, left, watched, pane),
    }
    if !has_others {
        return;
    }
    let others: Vec<_> = (0..PANES.len()).filter(|&i| view.pane != Pane::Chart(i)).collect();
    let rows = Layout::vertical(vec![Constraint::Fill(1); others.len()]).split(right);
    for (i, &row) in others.into_iter().zip(rows.iter()) {
        PANES[i].chart(watched, steps, false, |chart| frame.render_widget(chart, row));
    }
}

/// The panes of text that there are, with the rows that they take below the charts.
fn others(watched: &Watched) -> impl Iterator<Item = (Pane, u16)> {
    let samples = watched.samples().next().map(|_| (Pane::Samples, SAMPLES));
    let ranks = watched.ranks().len();
    // Beside them there are the borders and the head.
    let ranks = (ranks > 0).then(|| (Pane::Ranks, ranks.min(MOST_RANKS) as u16 + 3));
    samples.into_iter().chain(ranks)
}

fn text(frame: &mut Frame<'_>, area: Rect, watched: &Watched, pane: Pane) {
    match pane {
        Pane::Samples => samples::draw(frame, area, watched),
        Pane::Ranks => ranks::draw(frame, area, watched),
        Pane::Chart(_) => {}
    }
}

/// Rows that a screen needs more for panes of text.
pub(super) fn rows_of_text(watched: &Watched) -> u16 {
    others(watched).map(|(_, rows)| rows).sum()
}
