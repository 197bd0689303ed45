//! The arguments of `dsr run`, which ranks and sweeps are given too.

use std::path::PathBuf;

use clap::Args;

use super::{device::DeviceArgs, grants::GrantArgs, origin::LockArgs};
use crate::{run::Start, tensor::DeviceChoice};

/// The values of a recipe's parameters.
#[derive(Debug, Default, Args)]
pub(super) struct ParamArgs {
    /// Set a parameter that the recipe declares.
    #[arg(short = 'p', long = "param", value_name = "NAME=VALUE")]
    pub(super) param: Vec<String>,

    /// Read parameters from a JSON object; -p wins.
    #[arg(long, value_name = "FILE.json")]
    pub(super) params: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The recipe: a .rhai file, one that is part of dsr, or https://HOST/FILE#sha256=HEX.
    #[arg(required_unless_present = "help")]
    pub(super) recipe: Option<PathBuf>,

    #[command(flatten)]
    pub(super) given: ParamArgs,

    /// Resume from a checkpoint; `auto` is the latest checkpoint of the latest run of this name.
    #[arg(long, value_name = "auto|PATH", value_parser = resume)]
    pub(super) resume: Option<Start>,

    /// Name the run and its directory.
    #[arg(long)]
    pub(super) name: Option<String>,

    #[command(flatten)]
    pub(super) device: DeviceArgs,

    /// Write a trace of steps 2 to 4, for Perfetto and chrome://tracing [default: trace.json].
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "trace.json")]
    pub(super) profile: Option<PathBuf>,

    /// Try the run: one step, an evaluation on one batch, one checkpoint, of which nothing is kept.
    #[arg(long, conflicts_with = "resume")]
    pub(super) dry_run: bool,

    /// Print the permissions that the recipe's text asks for, and run nothing.
    #[arg(long)]
    pub(super) explain_permissions: bool,

    /// Print help; with a recipe, its description and parameters.
    #[arg(short, long)]
    pub(super) help: bool,

    #[command(flatten)]
    pub(super) grants: GrantArgs,

    #[command(flatten)]
    pub(super) lock: LockArgs,
}

impl RunArgs {
    /// The arguments of `dsr run` that say the same.
    pub(super) fn words(&self) -> Vec<String> {
        let mut words: Vec<String> =
            self.recipe.iter().map(|path| path.display().to_string()).collect();
        let mut option = |name: &str, value: &str| {
            words.push(format!("{name}={value}"));
        };
        if let Some(path) = &self.given.params {
            option("--params", &path.display().to_string());
        }
        self.given.param.iter().for_each(|value| option("--param", value));
        match &self.resume {
            Some(Start::Latest) => option("--resume", "auto"),
            Some(Start::From(path)) => option("--resume", &path.display().to_string()),
            Some(Start::Afresh) | None => {}
        }
        if let Some(name) = &self.name {
            option("--name", name);
        }
        if let Some(file) = &self.profile {
            option("--profile", &file.display().to_string());
        }
        if self.device.choice() != DeviceChoice::Best {
            option("--device", &self.device.choice().to_string());
        }
        words.extend(self.dry_run.then(|| "--dry-run".to_owned()));
        words.extend(self.grants.words());
        words.extend(self.lock.words());
        words
    }
}

fn resume(text: &str) -> Result<Start, std::convert::Infallible> {
    Ok(if text == "auto" { Start::Latest } else { Start::From(text.into()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resume_is_auto_or_a_path() {
        assert_eq!(resume("auto"), Ok(Start::Latest));
        assert_eq!(
            resume("runs/a/checkpoints/step-10"),
            Ok(Start::From("runs/a/checkpoints/step-10".into()))
        );
    }
}
