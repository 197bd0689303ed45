//! The tables of a sweep: what would be run, and what came of it.

use anstyle::Style;
use serde_json::{Map, Value, json};

use super::{
    grid::Point,
    standing::{Planned, Standing, all_runs, latest},
};
use crate::{
    cli::{
        columns::coloured,
        style::{GOOD, of_state},
    },
    error::Result,
    run::RunSummary,
};

/// The runs with their parameters, and what a sweep would do for each.
pub(super) fn planned(planned: &[Planned]) -> String {
    let rows: Vec<_> = planned
        .iter()
        .map(|Planned { point, standing }| {
            let todo = match standing {
                Standing::Complete(state) => format!("nothing: {}", state.name()),
                standing => to_do(*standing).to_owned(),
            };
            let values = point.varied.iter().map(|(_, value)| value.clone());
            values.chain([todo, point.name.clone()]).collect()
        })
        .collect();
    coloured(&head(planned, &["TO DO", "RUN"]), &rows, |_, _| Style::new())
}

/// As [`planned`], for other programs.
pub(super) fn planned_as_json(planned: &[Planned]) -> Value {
    let of = |Planned { point, standing }: &Planned| json!({ "varied": varied(point), "name": point.name, "to_do": to_do(*standing) });
    planned.iter().map(of).collect()
}

fn to_do(standing: Standing) -> &'static str {
    match standing {
        Standing::New => "run",
        Standing::Resumable => "resume",
        Standing::Complete(_) => "nothing",
    }
}

/// The parameters that have several values, with those of this run.
fn varied(point: &Point) -> Map<String, Value> {
    let value = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| text.into());
    point.varied.iter().map(|(name, text)| (name.clone(), value(text))).collect()
}

/// The runs of a sweep and how they ended.
pub(super) struct Results<'a> {
    planned: &'a [Planned],
    all: Vec<RunSummary>,
}

impl<'a> Results<'a> {
    pub(super) fn of(planned: &'a [Planned]) -> Result<Self> {
        Ok(Self { planned, all: all_runs()? })
    }

    fn runs(&self) -> Vec<Option<&RunSummary>> {
        let of = |planned: &Planned| latest(&self.all, &planned.point.name);
        self.planned.iter().map(of).collect()
    }

    /// The runs with their parameters and how they ended. The one with the lowest loss of an evaluation
    /// is marked, or where none was evaluated the one with the lowest last loss.
    pub(super) fn as_table(&self) -> String {
        let runs = self.runs();
        let best = best(&runs);
        let rows: Vec<_> = self
            .planned
            .iter()
            .zip(&runs)
            .enumerate()
            .map(|(i, (Planned { point, .. }, run))| {
                let values = point.varied.iter().map(|(_, value)| value.clone());
                let mark = if best == Some(i) { "best" } else { "" };
                values.chain(told(*run)).chain([mark.to_owned()]).collect()
            })
            .collect();
        let head = head(self.planned, &["STATUS", "STEP", "LOSS", "BEST EVAL", "TOK/S", ""]);
        let of_status = self.planned.first().map_or(0, |planned| planned.point.varied.len());
        let mut text = coloured(&head, &rows, |column, cell| match column {
            column if column == of_status => of_state(cell),
            column if column == head.len() - 1 => GOOD,
            _ => Style::new(),
        });
        if let Some(run) = best.and_then(|i| runs[i]) {
            text.push_str(&format!("the best run: {}\n", run.path().display()));
        }
        text
    }

    /// The same for other programs: what `dsr runs --json` tells of each run, with `varied` and `is_best`.
    /// A run that was not begun has these two and its name.
    pub(super) fn as_json(&self) -> Value {
        let runs = self.runs();
        let best = best(&runs);
        let of = |(i, (planned, run)): (usize, (&Planned, &Option<&RunSummary>))| {
            let mut all = match run.map(RunSummary::as_json) {
                Some(Value::Object(told)) => told,
                _ => Map::from_iter([("name".to_owned(), planned.point.name.clone().into())]),
            };
            all.insert("varied".to_owned(), varied(&planned.point).into());
            all.insert("is_best".to_owned(), (best == Some(i)).into());
            all
        };
        self.planned.iter().zip(&runs).enumerate().map(of).collect()
    }
}

fn head(planned: &[Planned], words: &[&str]) -> Vec<String> {
    let varied = planned.first().map(|planned| planned.point.varied.as_slice()).unwrap_or_default();
    let names = varied.iter().map(|(name, _)| name.clone());
    names.chain(words.iter().map(|&word| word.to_owned())).collect()
}

/// Status, step, loss, best evaluation and speed of a run.
fn told(run: Option<&RunSummary>) -> [String; 5] {
    let none = || "-".to_owned();
    let Some(run) = run else { return [none(), none(), none(), none(), none()] };
    let last = &run.last;
    [
        run.state.name().to_owned(),
        last.step.to_string(),
        last.loss.map_or_else(none, |loss| format!("{loss:.3}")),
        last.best_evaluation.map_or_else(none, |best| format!("{:.3} at {}", best.loss, best.step)),
        last.tokens_per_second.map_or_else(none, |speed| format!("{speed:.0}")),
    ]
}

/// The number of the best run: evaluations are compared with evaluations alone.
fn best(runs: &[Option<&RunSummary>]) -> Option<usize> {
    let lowest = |loss: &dyn Fn(&RunSummary) -> Option<f64>| {
        let losses = runs.iter().enumerate();
        let losses = losses.filter_map(|(i, run)| Some((i, loss((*run)?)?)));
        losses.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(i, _)| i)
    };
    lowest(&|run| run.last.best_evaluation.map(|best| best.loss))
        .or_else(|| lowest(&|run| run.last.loss))
}
