//! The pane of samples: the newest texts of the model, as many as there is room for.

use ratatui::{
    Frame,
    layout::Rect,
    style::{Style, Stylize},
    text::{Line, Span},
    widgets::{Block, Paragraph, Wrap},
};

use crate::{
    foreign,
    run::{Sample, Watched},
};

/// Characters of a text that are shown at most.
const LONGEST: usize = 2000;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, watched: &Watched) {
    // Each sample has a line at least.
    let samples = watched.samples().take(usize::from(area.height));
    let lines: Vec<Line<'_>> = samples.flat_map(lines).collect();
    let pane = Paragraph::new(lines).wrap(Wrap { trim: false });
    frame.render_widget(pane.block(Block::bordered().title(" samples ")), area);
}

/// The step, the prompt, and behind it the text, which has the prompt at its beginning or not.
fn lines(sample: &Sample) -> Vec<Line<'static>> {
    let mut lines = vec![Line::from(format!("step {}: ", sample.step).bold())];
    match sample.text.strip_prefix(&sample.prompt) {
        Some(rest) => {
            add(&mut lines, &sample.prompt, Style::new().dim());
            add(&mut lines, rest, Style::new());
        }
        None => {
            add(&mut lines, &sample.prompt, Style::new().dim());
            lines.push(Line::default());
            add(&mut lines, &sample.text, Style::new());
        }
    }
    lines
}

/// Goes on with the last line.
fn add(lines: &mut Vec<Line<'static>>, text: &str, style: Style) {
    let shown: String = text.chars().take(LONGEST).collect();
    let shown = foreign::lines(&shown).replace('\t', "    ");
    for (i, part) in shown.split('\n').enumerate() {
        if i > 0 {
            lines.push(Line::default());
        }
        if let Some(line) = lines.last_mut() {
            line.push_span(Span::styled(part.to_owned(), style));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(prompt: &str, text: &str) -> Vec<String> {
        let sample = Sample { step: 7, prompt: prompt.into(), text: text.into() };
        lines(&sample).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_text_stands_behind_its_prompt_and_orders_no_terminal() {
        assert_eq!(shown("It is", "It is a\nday\u{1b}[2J"), ["step 7: It is a", "day\\u{1b}[2J"]);
        assert_eq!(shown("It is?", "Yes,\tit is"), ["step 7: It is?", "Yes,    it is"]);
        assert_eq!(shown("", &"x".repeat(3000)), [format!("step 7: {}", "x".repeat(LONGEST))]);
    }
}
