//! One finding of a probe, with the remedy where something is wrong.

use serde::Serialize;

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    Fine,
    /// dsr works, though less well than it could.
    Warning,
    /// dsr, or a part of it that this machine is for, does not work.
    Problem,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) name: String,
    pub(super) value: String,
    pub(super) state: Severity,
    /// The remedy.
    pub(super) advice: Option<String>,
}

impl Finding {
    pub(super) fn fine(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into(), state: Severity::Fine, advice: None }
    }

    pub(super) fn warning(name: impl Into<String>, value: impl Into<String>, advice: &str) -> Self {
        let advice = Some(advice.to_owned());
        Self { state: Severity::Warning, advice, ..Self::fine(name, value) }
    }

    pub(super) fn problem(name: impl Into<String>, value: impl Into<String>, advice: &str) -> Self {
        Self { state: Severity::Problem, ..Self::warning(name, value, advice) }
    }
}
