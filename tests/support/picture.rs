//! The screen of a terminal as an SVG.

use std::fmt::Write;

use vt100::{Cell, Color, Screen};

/// Of a character, in pixels.
const WIDTH: f32 = 8.4;
const HEIGHT: f32 = 18.0;
const MARGIN: f32 = 14.0;

const BACKGROUND: &str = "#1e1e2e";
const TEXT: &str = "#cdd6f4";
/// The sixteen colours of terminals.
const COLORS: [&str; 16] = [
    "#45475a", "#f38ba8", "#a6e3a1", "#f9e2af", "#89b4fa", "#f5c2e7", "#94e2d5", "#bac2de",
    "#7f849c", "#f38ba8", "#a6e3a1", "#f9e2af", "#89b4fa", "#f5c2e7", "#94e2d5", "#ffffff",
];

/// The first `rows` rows of a screen, each stretch of one style as `steady` makes it. Each stretch of one style has the width of its characters, so
/// that any font keeps the columns.
pub(crate) fn svg(screen: &Screen, rows: u16, steady: impl Fn(&str) -> String) -> String {
    let columns = screen.size().1.get();
    let width = f32::from(columns) * WIDTH + 2.0 * MARGIN;
    let height = f32::from(rows) * HEIGHT + 2.0 * MARGIN;
    let mut picture = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         font-family=\"ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace\" \
         font-size=\"14\" xml:space=\"preserve\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n"
    );
    for row in 0..rows {
        let cells: Vec<&Cell> =
            (0..columns).filter_map(|column| screen.cell(row, column)).collect();
        let mut from = 0;
        for stretch in cells.chunk_by(|a, b| style(a) == style(b)) {
            let text = steady(&stretch.iter().map(|cell| shown(cell)).collect::<String>());
            if !text.trim().is_empty() {
                let x = MARGIN + f32::from(from) * WIDTH;
                let y = MARGIN + (f32::from(row) + 0.75) * HEIGHT;
                let _ = writeln!(picture, "{}", element(&text, stretch[0], x, y));
            }
            from += u16::try_from(text.chars().count()).unwrap();
        }
    }
    picture.push_str("</svg>\n");
    picture
}

fn element(text: &str, cell: &Cell, x: f32, y: f32) -> String {
    let kept = text.trim_end();
    let before = kept.chars().take_while(|c| *c == ' ').count();
    let kept = kept.trim_start();
    let (x, length) = (x + before as f32 * WIDTH, kept.chars().count() as f32 * WIDTH);
    let (color, weight) = style(cell);
    let weight = if weight { " font-weight=\"bold\"" } else { "" };
    let escaped = kept.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" textLength=\"{length:.1}\" fill=\"{color}\"{weight}>{escaped}</text>"
    )
}

fn style(cell: &Cell) -> (&'static str, bool) {
    let color = match cell.fgcolor() {
        Color::Idx(index) => COLORS.get(usize::from(index)).copied().unwrap_or(TEXT),
        Color::Default | Color::Rgb(..) => TEXT,
    };
    (color, cell.bold())
}

fn shown(cell: &Cell) -> &str {
    if cell.has_contents() { cell.contents() } else { " " }
}
