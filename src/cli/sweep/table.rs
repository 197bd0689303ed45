//! The tables of a sweep: what would be run, and what came of it.

use super::standing::{Planned, Standing, all_runs, latest};
use crate::{cli::columns::table, error::Result, run::RunSummary};

/// The runs with their parameters, and what a sweep would do for each.
pub(super) fn planned(planned: &[Planned]) -> String {
    let rows: Vec<_> = planned
        .iter()
        .map(|Planned { point, standing }| {
            let todo = match standing {
                Standing::New => "run".to_owned(),
                Standing::Resumable => "resume".to_owned(),
                Standing::Complete(state) => format!("nothing: {}", state.name()),
            };
            let values = point.varied.iter().map(|(_, value)| value.clone());
            values.chain([todo, point.name.clone()]).collect()
        })
        .collect();
    table(&head(planned, &["TO DO", "RUN"]), &rows)
}

/// The runs with their parameters and how they ended. The one with the lowest loss of an evaluation is
/// marked, or where none was evaluated the one with the lowest last loss.
pub(super) fn results(planned: &[Planned]) -> Result<String> {
    let all = all_runs()?;
    let runs: Vec<_> = planned.iter().map(|planned| latest(&all, &planned.point.name)).collect();
    let best = best(&runs);
    let rows: Vec<_> = planned
        .iter()
        .zip(&runs)
        .enumerate()
        .map(|(i, (Planned { point, .. }, run))| {
            let values = point.varied.iter().map(|(_, value)| value.clone());
            let mark = if best == Some(i) { "best" } else { "" };
            values.chain(told(*run)).chain([mark.to_owned()]).collect()
        })
        .collect();
    let head = head(planned, &["STATUS", "STEP", "LOSS", "BEST EVAL", "TOK/S", ""]);
    let mut text = table(&head, &rows);
    if let Some(run) = best.and_then(|i| runs[i]) {
        text.push_str(&format!("the best run: {}\n", run.path().display()));
    }
    Ok(text)
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
    [
        run.state.name().to_owned(),
        run.step().to_string(),
        run.train.last().map_or_else(none, |(_, loss)| format!("{loss:.3}")),
        run.best().map_or_else(none, |(step, loss)| format!("{loss:.3} at {step}")),
        run.tokens_per_second.map_or_else(none, |speed| format!("{speed:.0}")),
    ]
}

/// The number of the best run: evaluations are compared with evaluations alone.
fn best(runs: &[Option<&RunSummary>]) -> Option<usize> {
    let lowest = |loss: &dyn Fn(&RunSummary) -> Option<f64>| {
        let losses = runs.iter().enumerate();
        let losses = losses.filter_map(|(i, run)| Some((i, loss((*run)?)?)));
        losses.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(i, _)| i)
    };
    lowest(&|run| run.best().map(|(_, loss)| loss))
        .or_else(|| lowest(&|run| run.train.last().map(|&(_, loss)| loss)))
}
