//! The arguments of the program, as typed.

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};

use super::plan::PlanArgs;
use crate::run::Start;

/// Train GPT-class models from Rhai recipes.
#[derive(Debug, Parser)]
#[command(name = "dsr", version, arg_required_else_help = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,

    /// Show what lies under an error: causes and backtraces.
    #[arg(long, short, global = true)]
    pub(super) verbose: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a recipe.
    #[command(disable_help_flag = true)]
    Run(RunArgs),

    /// Print what a recipe will need of memory, without loading weights.
    Plan(PlanArgs),
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The recipe, a .rhai file.
    #[arg(required_unless_present = "help")]
    pub(super) recipe: Option<PathBuf>,

    /// Set a parameter that the recipe declares.
    #[arg(short = 'p', long = "param", value_name = "NAME=VALUE")]
    pub(super) param: Vec<String>,

    /// Read parameters from a JSON object; -p wins.
    #[arg(long, value_name = "FILE.json")]
    pub(super) params: Option<PathBuf>,

    /// Go on from a checkpoint: `auto` takes the newest of the newest run of this name.
    #[arg(long, value_name = "auto|PATH", value_parser = resume)]
    pub(super) resume: Option<Start>,

    /// Name the run and its directory.
    #[arg(long)]
    pub(super) name: Option<String>,

    /// Print help; with a recipe, what the recipe does and its parameters.
    #[arg(short, long)]
    pub(super) help: bool,
}

fn resume(text: &str) -> Result<Start, std::convert::Infallible> {
    Ok(if text == "auto" { Start::Latest } else { Start::From(text.into()) })
}

/// The help of `dsr run` itself.
pub(super) fn run_help() -> String {
    let mut cli = Cli::command();
    // Builds the usage lines of the subcommands.
    cli.build();
    let run = cli.find_subcommand_mut("run").expect("the subcommand is declared above");
    run.render_help().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn resume_is_auto_or_a_path() {
        assert_eq!(resume("auto"), Ok(Start::Latest));
        assert_eq!(
            resume("runs/a/checkpoints/step-10"),
            Ok(Start::From("runs/a/checkpoints/step-10".into()))
        );
    }
}
