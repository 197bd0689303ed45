//! The panes of the screen: which curves each has, and how its values are written.

use ratatui::{
    style::{Color, Style},
    symbols::Marker,
    widgets::{Axis, Block, Chart, Dataset, GraphType},
};

use crate::{
    run::{Quantity, Watched},
    units::{Bytes, Count},
};

/// A chart.
#[derive(Debug)]
pub(super) struct Pane {
    pub(super) title: &'static str,
    curves: &'static [(&'static str, Quantity, Color)],
    pub(super) value: fn(f64) -> String,
}

pub(super) const PANES: [Pane; 5] = [
    Pane {
        title: "loss",
        curves: &[
            ("train", Quantity::Loss, Color::Blue),
            ("evaluation", Quantity::EvalLoss, Color::Red),
        ],
        value: |loss| format!("{loss:.3}"),
    },
    Pane {
        title: "learning rate",
        curves: &[("lr", Quantity::LearningRate, Color::Magenta)],
        value: |lr| format!("{lr:.1e}"),
    },
    Pane {
        title: "tokens a second",
        curves: &[("tokens/s", Quantity::Speed, Color::Green)],
        value: |speed| Count(speed).to_string(),
    },
    Pane {
        title: "gradient norm",
        curves: &[("|g|", Quantity::GradNorm, Color::Yellow)],
        value: |norm| format!("{norm:.2}"),
    },
    Pane {
        title: "memory",
        curves: &[
            ("host", Quantity::HostMemory, Color::Cyan),
            ("device", Quantity::DeviceMemory, Color::Magenta),
        ],
        value: |bytes| Bytes(bytes.max(0.0) as u64).to_string(),
    },
];

/// The steps that a chart shows: the last part of a run, halved `zoom` times.
pub(super) fn steps(watched: &Watched, zoom: u32) -> [f64; 2] {
    let series = watched.series(Quantity::Loss).points(0.0);
    let first = series.first().map_or(0.0, |point| point.0);
    let last = (watched.step() as f64).max(first + 1.0);
    [last - (last - first) / f64::from(1_u32 << zoom), last]
}

impl Pane {
    /// Draws the chart into `render`, which borrows its points.
    pub(super) fn chart(
        &self,
        watched: &Watched,
        steps: [f64; 2],
        is_wide: bool,
        render: impl FnOnce(Chart<'_>),
    ) {
        let of = |quantity| watched.series(quantity).points(steps[0]);
        let curves: Vec<_> = self.curves.iter().map(|&(_, quantity, _)| of(quantity)).collect();
        let named = curves.iter().filter(|points| !points.is_empty()).count() > 1 && is_wide;
        let datasets = self.curves.iter().zip(&curves).filter(|(_, points)| !points.is_empty());
        let datasets = datasets.map(|(&(name, _, colour), points)| {
            let dataset = Dataset::default().data(points).style(Style::new().fg(colour));
            let shape = if points.len() == 1 { GraphType::Scatter } else { GraphType::Line };
            let dataset = dataset.marker(Marker::Braille).graph_type(shape);
            if named { dataset.name(name) } else { dataset }
        });
        let values = bounds(curves.iter().flatten().map(|point| point.1));
        let mut block = Block::bordered().title(format!(" {} ", self.title));
        let strides = self.curves.iter().map(|&(_, quantity, _)| watched.series(quantity).stride());
        let stride = strides.max().unwrap_or(1);
        if stride > 1 && is_wide {
            block = block.title(format!(" means of {stride} steps "));
        }
        let x = steps.map(|step| format!("{step:.0}"));
        let y = values.map(|[low, high]| [low, high].map(self.value)).unwrap_or_default();
        let y_axis = Axis::default().style(Style::new().dim());
        let chart = Chart::new(datasets.collect())
            .block(block)
            .x_axis(Axis::default().style(Style::new().dim()).bounds(steps).labels(x))
            .y_axis(y_axis.bounds(values.unwrap_or([0.0, 1.0])).labels(y));
        render(chart);
    }
}

/// The lowest and the highest, with some room where they are equal; `None` where there is nothing.
fn bounds(values: impl Iterator<Item = f64>) -> Option<[f64; 2]> {
    let [low, high] = values.fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], value| {
        [low.min(value), high.max(value)]
    });
    let room = if high > low { 0.0 } else { (low.abs() / 10.0).max(f64::MIN_POSITIVE) };
    (low <= high).then_some([low - room, high + room])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_curve_has_room_and_none_has_no_bounds() {
        assert_eq!(bounds([3.0, 1.0].into_iter()), Some([1.0, 3.0]));
        assert_eq!(bounds([20.0].into_iter()), Some([18.0, 22.0]));
        assert!(bounds([0.0].into_iter()).is_some_and(|[low, high]| low < high));
        assert_eq!(bounds(std::iter::empty()), None);
    }
}
