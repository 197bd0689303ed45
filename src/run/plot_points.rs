//! A curve of points as an SVG picture, with named axes.

use plotters::prelude::*;

use super::{
    picture::Picture,
    plot::{SIZE, TRAIN, bounds},
};
use crate::error::{Code, Error, Result};

/// The axes of a picture.
#[derive(Debug, Clone, Copy)]
pub struct Axes<'a> {
    /// The name of the lower one.
    pub x: &'a str,
    /// The name of the left one.
    pub y: &'a str,
    /// Whether the lower one is of powers of ten; all its values are above 0 then.
    pub log_x: bool,
    /// A value of the lower one where a line stands.
    pub mark: Option<f64>,
}

/// Draws a curve through finite `points`, of which there is at least one.
pub fn points_svg(points: &[(f64, f64)], axes: Axes<'_>) -> Result<Picture> {
    let mut svg = String::new();
    draw(points, axes, &mut svg).map_err(|e| {
        Error::new(Code::Internal, "the curve cannot be drawn").caused_by(e.to_string())
    })?;
    Ok(Picture::of(&svg))
}

fn draw(
    points: &[(f64, f64)],
    axes: Axes<'_>,
    svg: &mut String,
) -> Result<(), Box<dyn std::error::Error>> {
    let at = |x: f64| if axes.log_x { x.log10() } else { x };
    let named = |x: f64| if axes.log_x { 10f64.powf(x) } else { x };
    let points: Vec<_> = points.iter().map(|&(x, y)| (at(x), y)).collect();
    let mark = axes.mark.map(at);
    let (low, high) = {
        let heights = bounds(points.iter().map(|&(_, y)| y), 0.05);
        (heights.start, heights.end)
    };
    let widths = bounds(points.iter().map(|&(x, _)| x).chain(mark), 0.0);
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(widths, low..high)?;
    let label = |x: &f64| match axes.log_x {
        true => format!("{:.1e}", named(*x)),
        false => format!("{x}"),
    };
    chart
        .configure_mesh()
        .x_desc(axes.x)
        .y_desc(axes.y)
        .x_label_formatter(&label)
        .y_label_formatter(&|y| format!("{y:.2}"))
        .max_light_lines(1)
        .x_labels(10)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 16))
        .draw()?;
    chart.draw_series(LineSeries::new(points, TRAIN.stroke_width(2)))?;
    if let Some(mark) = mark {
        let line = [(mark, low), (mark, high)];
        chart
            .draw_series(LineSeries::new(line, RED.stroke_width(1)))?
            .label(label(&mark))
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], RED.stroke_width(1)));
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .label_font(("sans-serif", 14))
            .background_style(WHITE)
            .border_style(BLACK.mix(0.3))
            .draw()?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn svg(log_x: bool, mark: Option<f64>) -> String {
        let points = [(1e-4, 4.0), (1e-3, 3.0), (1e-2, 5.0)];
        points_svg(&points, Axes { x: "learning rate", y: "loss", log_x, mark })
            .unwrap()
            .text()
            .to_owned()
    }

    #[test]
    fn axes_are_named_and_the_mark_has_its_value() {
        let marked = svg(true, Some(1e-3));
        assert!(marked.starts_with("<svg") && marked.trim_end().ends_with("</svg>"));
        for text in ["learning rate", "loss", "1.0e-4", "1.0e-3", "1.0e-2"] {
            assert!(marked.contains(text), "{text} is not in {marked}");
        }
        assert!(marked.contains("#FF0000") && !svg(false, None).contains("#FF0000"));
    }

    /// Between two powers of ten is as much room as between the next two.
    #[test]
    fn powers_of_ten_are_evenly_apart() {
        let curve = svg(true, None);
        let points = curve.split("points=\"").skip(1).find_map(|part| {
            let (points, _) = part.split_once('"')?;
            let xs: Vec<f64> = points
                .split_whitespace()
                .map(|pair| pair.split(',').next().unwrap().parse().unwrap())
                .collect();
            (xs.len() == 3).then_some(xs)
        });
        let xs = points.unwrap();
        // Places are whole pixels.
        assert!(((xs[1] - xs[0]) - (xs[2] - xs[1])).abs() <= 1.0, "{xs:?}");
    }
}
