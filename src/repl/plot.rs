//! Curves of characters.

use textplots::{Chart, Plot, Shape};

/// Rows of a curve, its axis not counted.
const ROWS: u32 = 15;

/// Columns that the numbers beside the curve take.
const BESIDE: usize = 12;

/// Points as a curve of characters, `width` columns wide; `None` where there is nothing to draw.
pub(crate) fn curve(name: &str, points: &[(f64, f64)], width: usize) -> Option<String> {
    let finite: Vec<(f32, f32)> = points
        .iter()
        .filter(|(x, y)| x.is_finite() && y.is_finite())
        .map(|&(x, y)| (x as f32, y as f32))
        .collect();
    let (first, last) = (finite.first()?.0, finite.last()?.0);
    let low = finite.iter().map(|p| p.1).fold(f32::INFINITY, f32::min);
    let high = finite.iter().map(|p| p.1).fold(f32::NEG_INFINITY, f32::max);
    let last = if last > first { last } else { first + 1.0 };
    let margin = if high > low { 0.0 } else { 0.5 };
    // Two dots to a column, four to a row.
    let columns = u32::try_from(width.saturating_sub(BESIDE).clamp(16, 120)).unwrap_or(60);
    let shape = Shape::Lines(&finite);
    let mut chart =
        Chart::new_with_y_range(columns * 2, ROWS * 4, first, last, low - margin, high + margin);
    let chart = chart.lineplot(&shape);
    chart.axis();
    chart.figures();
    let drawn = chart.to_string();
    let lines: Vec<_> = drawn.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let left_out = points.len() - finite.len();
    let note = if left_out > 0 { format!(", {left_out} not finite") } else { String::new() };
    Some(format!("{name}, {} points{note}\n{}", finite.len(), lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_as_wide_as_it_may_be() {
        let points: Vec<_> = (0..50).map(|i| (f64::from(i), (f64::from(i) / 5.0).sin())).collect();
        let drawn = curve("loss", &points, 60).unwrap();
        assert!(drawn.starts_with("loss, 50 points\n"), "{drawn}");
        assert!(drawn.lines().all(|line| line.chars().count() <= 60), "{drawn}");
        assert!(drawn.lines().count() >= 15, "{drawn}");
        assert!(curve("a", &[(0.0, 1.0)], 60).is_some());
        assert!(curve("a", &[(0.0, f64::NAN)], 60).is_none());
        assert!(curve("a", &[], 60).is_none());
    }
}
