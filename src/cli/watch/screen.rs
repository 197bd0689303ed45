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
    pane::{PANES, steps},
    samples,
};
use crate::{
    foreign::Foreign,
    run::{Count, Elapsed, Quantity, State, Watched},
    units::Bytes,
};

/// Columns from which on the other charts stand beside the chosen one.
const WIDE: u16 = 80;

/// Rows from which on samples stand below the charts, and their rows.
const TALL: u16 = 36;
const SAMPLES: u16 = 10;

/// The number of the samples among the panes, behind the charts.
const OF_SAMPLES: usize = PANES.len();

/// How often the steps can be halved.
const MOST_ZOOM: u32 = 10;

/// The part of the run that is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct View {
    /// The chosen chart, or the samples.
    pane: usize,
    /// How often the steps are halved.
    zoom: u32,
    /// Whether it is printed, so that there are no keys.
    is_printed: bool,
}

impl View {
    /// The view of a screen without keys.
    pub(super) fn printed() -> Self {
        Self { is_printed: true, ..Self::default() }
    }

    /// The view after a key; samples can be chosen where there are some.
    pub(super) fn after(mut self, key: KeyEvent, watched: &Watched) -> Self {
        let count = PANES.len() + usize::from(has_samples(watched));
        match key.code {
            KeyCode::Tab | KeyCode::Right | KeyCode::Down => self.pane = (self.pane + 1) % count,
            KeyCode::BackTab | KeyCode::Left | KeyCode::Up => {
                self.pane = (self.pane + count - 1) % count;
            }
            KeyCode::Char('+') => self.zoom = (self.zoom + 1).min(MOST_ZOOM),
            KeyCode::Char('-') => self.zoom = self.zoom.saturating_sub(1),
            _ => {}
        }
        self
    }
}

pub(super) fn draw(frame: &mut Frame<'_>, watched: &Watched, view: View) {
    let mut lines = vec![standing(watched), values(watched), made_of(watched), times(watched)];
    lines.extend(remarks(watched));
    let rows = [
        Constraint::Length(lines.len() as u16),
        Constraint::Min(0),
        Constraint::Length(u16::from(!view.is_printed)),
    ];
    let is_tall = frame.area().height >= TALL;
    let [top, mut middle, bottom] = Layout::vertical(rows).areas(frame.area());
    frame.render_widget(Paragraph::new(lines), top);
    if is_tall && has_samples(watched) && view.pane != OF_SAMPLES {
        let rows = [Constraint::Min(0), Constraint::Length(SAMPLES)];
        let [above, below] = Layout::vertical(rows).areas(middle);
        samples::draw(frame, below, watched);
        middle = above;
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
        State::Failed | State::Killed => Color::Red,
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
    match PANES.get(view.pane) {
        Some(pane) => pane.chart(watched, steps, true, |chart| frame.render_widget(chart, left)),
        None => samples::draw(frame, left, watched),
    }
    if !has_others {
        return;
    }
    let others: Vec<_> = (0..PANES.len()).filter(|&i| i != view.pane).collect();
    let rows = Layout::vertical(vec![Constraint::Fill(1); others.len()]).split(right);
    for (i, &row) in others.into_iter().zip(rows.iter()) {
        PANES[i].chart(watched, steps, false, |chart| frame.render_widget(chart, row));
    }
}

fn has_samples(watched: &Watched) -> bool {
    watched.samples().next().is_some()
}

/// Rows that a screen needs more for samples.
pub(super) fn rows_for_samples(watched: &Watched) -> u16 {
    if has_samples(watched) { SAMPLES } else { 0 }
}
