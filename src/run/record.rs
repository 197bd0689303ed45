//! `run.json`: what a run was made of, when, and how it ended.
//!
//! It is written when the run starts, with the status `running`, and when it ends. A process that is
//! killed writes nothing any more: a run whose status is `running` and whose lock nobody holds never
//! ended.

use std::{cell::RefCell, rc::Rc};

use chrono::{SecondsFormat, Utc};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    catalog::State,
    dir::{Beginning, Identity, RunDir},
    last_values::{EvaluationAt, LastValues},
    log::draw_losses,
    meter::StepReport,
    ranks::RankRecord,
};
use crate::{
    data::Loader,
    engine::{Engine, EngineFacts, RecipeRecord},
    error::Result,
    fs::write_json,
    hash::sha256,
};

/// The content of `run.json`.
#[derive(Debug, Serialize)]
struct RunRecord {
    #[serde(flatten)]
    identity: Identity,
    status: State,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    started_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    resumed_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<String>,
    #[serde(flatten)]
    last: LastValues,
    total_steps: u64,
    /// The version of dsr.
    dsr: &'static str,
    #[serde(flatten)]
    engine: EngineFacts,
    /// Each of several ranks, once the first step is done.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ranks: Vec<RankRecord>,
    recipe_sha256: String,
    params: Map<String, Value>,
    /// The fingerprint of the data and of what is done to it.
    data: Option<String>,
}

/// The record of a run under way. Clones share it.
#[derive(Debug, Clone)]
pub struct RunEnding(Rc<RefCell<(RunDir, RunRecord)>>);

impl RunEnding {
    /// Writes down that the run in `dir` has started, or goes on after the step of `last`.
    pub(super) fn begin(
        dir: &RunDir,
        (engine, loader): (&Engine, &Loader),
        recipe: &RecipeRecord,
        (last, total_steps): (LastValues, u64),
    ) -> Result<Self> {
        let now = now();
        let Beginning { identity, started_at: before } = dir.beginning()?;
        let record = RunRecord {
            identity,
            status: State::Running,
            error: None,
            resumed_at: before.as_ref().map(|_| now.clone()),
            started_at: before.unwrap_or(now),
            ended_at: None,
            last: LastValues { step: engine.global_step(), ..last },
            total_steps,
            dsr: env!("CARGO_PKG_VERSION"),
            engine: engine.facts(),
            ranks: Vec::new(),
            recipe_sha256: sha256(recipe.source.as_bytes()),
            params: recipe.params.clone(),
            data: loader.saved_place()?.data,
        };
        write_json(dir.told_in(), &record)?;
        Ok(Self(Rc::new(RefCell::new((dir.clone(), record)))))
    }

    /// Notes a step; it is written when the run ends.
    pub(super) fn on_step(&self, report: &StepReport) {
        let last = &mut self.0.borrow_mut().1.last;
        last.step = report.values.step;
        last.loss = Some(report.values.loss).filter(|loss| loss.is_finite());
        last.tokens_per_second = Some(report.tokens_per_second);
    }

    /// Writes an evaluation down where it is the best so far.
    pub(super) fn on_evaluation(&self, found: EvaluationAt) -> Result<()> {
        let (dir, record) = &mut *self.0.borrow_mut();
        if record.last.improve(found) { write_json(dir.told_in(), record) } else { Ok(()) }
    }

    /// Writes down the ranks and their memory so far.
    pub(super) fn tell_ranks(&self, ranks: Vec<RankRecord>) -> Result<()> {
        let (dir, record) = &mut *self.0.borrow_mut();
        record.ranks = ranks;
        write_json(dir.told_in(), record)
    }

    /// Writes down how the run ended, with its curve. The first end is the one that counts, but for a
    /// run that goes on in the same process.
    pub fn end(&self, status: State, error: Option<String>) -> Result<()> {
        let (dir, record) = &mut *self.0.borrow_mut();
        if record.status != State::Running {
            return Ok(());
        }
        record.status = status;
        record.error = error;
        record.ended_at = Some(now());
        write_json(dir.told_in(), record)?;
        draw_losses(dir).map(drop)
    }
}

fn now() -> String {
    Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true)
}
