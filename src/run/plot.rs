//! The loss curve as an SVG picture that any browser shows.
//!
//! Drawn without fonts: text is left to the viewer, in its sans-serif face. A curve of more than
//! [`MOST_POINTS`] is drawn as means of as many stretches of equal length, and the legend says so.

use std::ops::Range;

use plotters::prelude::*;

use super::picture::Picture;
use crate::error::{Code, Error, Result};

const MOST_POINTS: usize = 2000;
pub(super) const SIZE: (u32, u32) = (960, 540);
pub(super) const TRAIN: RGBColor = RGBColor(31, 119, 180);
const EVAL: RGBColor = RGBColor(214, 39, 40);

/// A curve of a picture.
struct Curve<'a> {
    name: &'a str,
    points: &'a [(u64, f64)],
    colour: RGBColor,
    /// Whether each point counts, and none is taken together with others.
    is_marked: bool,
}

/// The colours of several curves, by turns: those of matplotlib.
const COLOURS: [RGBColor; 8] = [
    TRAIN,
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    EVAL,
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
    RGBColor(227, 119, 194),
    RGBColor(127, 127, 127),
];

/// Draws the training loss over the steps and, where there are any, the evaluations' losses, as
/// `(step, loss)` with finite losses. `None` when there is nothing to draw.
pub fn loss_svg(train: &[(u64, f64)], eval: &[(u64, f64)]) -> Result<Option<Picture>> {
    drawn(
        "loss",
        [
            Curve { name: "train", points: train, colour: TRAIN, is_marked: false },
            Curve { name: "validation", points: eval, colour: EVAL, is_marked: true },
        ],
    )
}

/// Draws the losses of several runs over the steps, each with its name. `None` when there is nothing to
/// draw.
pub fn losses_svg(curves: &[(&str, &[(u64, f64)])]) -> Result<Option<Picture>> {
    let curves = curves.iter().zip(COLOURS.iter().cycle());
    drawn(
        "loss",
        curves.map(|(&(name, points), &colour)| Curve { name, points, colour, is_marked: false }),
    )
}

/// Draws one curve called `name` over the steps, or over the places in an array. `None` when there is
/// nothing to draw.
pub fn curve_svg(name: &str, points: &[(u64, f64)]) -> Result<Option<Picture>> {
    drawn(name, [Curve { name, points, colour: TRAIN, is_marked: false }])
}

fn drawn<'a>(value: &str, curves: impl IntoIterator<Item = Curve<'a>>) -> Result<Option<Picture>> {
    let curves: Vec<_> = curves.into_iter().filter(|curve| !curve.points.is_empty()).collect();
    if curves.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    draw(value, &curves, &mut svg).map_err(|e| {
        Error::new(Code::Internal, "the curve cannot be drawn").caused_by(e.to_string())
    })?;
    Ok(Some(Picture::of(&svg)))
}

fn draw(
    value: &str,
    curves: &[Curve<'_>],
    svg: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let all = || curves.iter().flat_map(|curve| curve.points);
    let steps = bounds(all().map(|&(step, _)| step as f64), 0.0);
    let losses = bounds(all().map(|&(_, loss)| loss), 0.05);
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(steps, losses)?;
    chart
        .configure_mesh()
        .x_desc("step")
        .y_desc(value)
        .x_label_formatter(&|step| whole(*step))
        .y_label_formatter(&|loss| format!("{loss:.2}"))
        .max_light_lines(1)
        .x_labels(10)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 16))
        .draw()?;
    for &Curve { name, points, colour, is_marked } in curves {
        if is_marked {
            let points = points.iter().map(|&(step, loss)| (step as f64, loss));
            chart.draw_series(LineSeries::new(points.clone(), colour))?;
            chart
                .draw_series(points.map(|at| Circle::new(at, 3, colour.filled())))?
                .label(name)
                .legend(move |(x, y)| Circle::new((x + 9, y), 3, colour.filled()));
            continue;
        }
        let (points, stretch) = thinned(points);
        let name = match stretch {
            1 => name.to_owned(),
            n => format!("{name} (means of {n} steps)"),
        };
        if points.len() == 1 {
            chart.draw_series(points.iter().map(|&at| Circle::new(at, 3, colour.filled())))?;
        }
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 14))
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}

/// A step's number; nothing for a mark between two steps of a short run.
fn whole(step: f64) -> String {
    let nearest = step.round();
    if (step - nearest).abs() < 1e-6 { format!("{nearest:.0}") } else { String::new() }
}

/// From the least to the greatest, with `margin` of the difference on both sides, never empty.
pub(super) fn bounds(values: impl Iterator<Item = f64>, margin: f64) -> Range<f64> {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    let around = if high > low { (high - low) * margin } else { 0.5 };
    low - around..high + around
}

/// At most [`MOST_POINTS`] points, and how many each stands for.
fn thinned(points: &[(u64, f64)]) -> (Vec<(f64, f64)>, usize) {
    let stretch = points.len().div_ceil(MOST_POINTS).max(1);
    let means = points.chunks(stretch).map(|chunk| {
        let count = chunk.len() as f64;
        let steps: f64 = chunk.iter().map(|&(step, _)| step as f64).sum();
        let losses: f64 = chunk.iter().map(|&(_, loss)| loss).sum();
        (steps / count, losses / count)
    });
    (means.collect(), stretch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(steps: u64) -> Vec<(u64, f64)> {
        (1..=steps).map(|step| (step, 2.0 + 8.0 / step as f64)).collect()
    }

    #[test]
    fn both_curves_and_both_axes_are_named() {
        let svg = loss_svg(&train(100), &[(50, 2.5), (100, 2.4)]).unwrap().unwrap();
        let svg = svg.text();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in ["step", "loss", "train", "validation"] {
            assert!(svg.lines().any(|line| line.trim() == text), "{text} is missing");
        }
        // Two evaluations and the legend's sign.
        assert_eq!(svg.matches("<circle").count(), 3);
    }

    #[test]
    fn without_evaluations_there_is_no_validation_curve() {
        let svg = loss_svg(&train(100), &[]).unwrap().unwrap();
        let svg = svg.text();
        assert!(!svg.contains("validation") && !svg.contains("<circle"));
    }

    #[test]
    fn a_single_step_and_equal_losses_can_be_drawn() {
        assert!(loss_svg(&[(1, 3.0)], &[]).unwrap().unwrap().text().contains("<circle"));
        assert!(loss_svg(&[(1, 3.0), (2, 3.0)], &[(2, 3.0)]).unwrap().is_some());
        assert!(loss_svg(&[], &[]).unwrap().is_none());
    }

    #[test]
    fn marks_between_steps_have_no_number() {
        assert_eq!([whole(2.0), whole(2.5), whole(3.000_000_000_4)], ["2", "", "3"]);
    }

    #[test]
    fn a_long_curve_is_thinned_to_means() {
        let (points, stretch) = thinned(&train(10_000));
        assert_eq!((points.len(), stretch), (2000, 5));
        // The mean of steps 1 to 5.
        assert_eq!(points[0].0, 3.0);
        let svg = loss_svg(&train(10_000), &[]).unwrap().unwrap();
        let svg = svg.text();
        assert!(svg.contains("means of 5 steps"));
    }
}
