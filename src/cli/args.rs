//! The arguments of the program, as typed.

use std::path::PathBuf;

use clap::{
    Args, ColorChoice, CommandFactory, Parser, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use clap_complete::Shell;

use super::{
    chat::ChatArgs,
    device::DeviceArgs,
    generate::GenerateArgs,
    grants::GrantArgs,
    origin::{FetchArgs, LockArgs},
    run_args::{ParamArgs, RunArgs},
    runs::RunsArgs,
    score::ScoreArgs,
    sweep::SweepArgs,
    trust::TrustArgs,
    watch::WatchArgs,
};
use crate::{tensor::DeviceChoice, units::Bytes};

/// Train GPT-class models from Rhai recipes.
#[derive(Debug, Parser)]
#[command(name = "dsr", version, arg_required_else_help = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,

    /// Show causes and backtraces of errors.
    #[arg(long, short, global = true)]
    pub(super) verbose: bool,

    /// Show colours: on a terminal, always or never [default: auto].
    ///
    /// Without it NO_COLOR and CLICOLOR_FORCE decide.
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        value_enum,
        default_value_t,
        hide_default_value = true
    )]
    pub(super) color: ColorChoice,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a recipe.
    #[command(disable_help_flag = true)]
    Run(RunArgs),

    /// Estimate the memory and the time that a recipe needs, without loading weights.
    Plan(PlanArgs),

    /// Run a recipe with each combination of parameter values, one run after another.
    Sweep(SweepArgs),

    /// List, compare and remove runs.
    Runs(RunsArgs),

    /// Show a run that goes on, or one that has ended, on a screen with its curves.
    Watch(WatchArgs),

    /// Check a recipe without running it.
    Check(CheckArgs),

    /// List, show, copy and check the recipes that are part of dsr.
    Recipe(RecipeArgs),

    /// Create or check the lock of a recipe: its imports, models and datasets, with their hashes.
    Lock(LockCommandArgs),

    /// Print the reference of what recipes can call.
    Doc(DocArgs),

    /// Run a recipe in several processes, on one or more machines.
    #[command(disable_help_flag = true)]
    Launch(LaunchArgs),

    /// Start an interactive session, or run a script from standard input.
    Repl(ReplArgs),

    /// Evaluate an expression and print its value.
    Eval(EvalArgs),

    /// Generate texts with a model.
    Generate(GenerateArgs),

    /// Talk with a model, by its own chat template.
    Chat(ChatArgs),

    /// Score a text with a model: loss, perplexity, bits per byte.
    Score(ScoreArgs),

    /// Report versions, GPUs, memory and disks of this machine, with a remedy for each problem.
    Doctor(DoctorArgs),

    /// Show a DeepSpeed config file as the options of `init_engine`.
    Config(ConfigArgs),

    /// Trust directories of your own recipes with what these ask for, or list them.
    Trust(TrustArgs),

    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        #[arg(value_parser = shell())]
        shell: Shell,
    },

    /// Write the manual pages, dsr.1 and one for each command.
    #[command(hide = true)]
    Man {
        /// The directory, which must be there.
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// The recipe: a .rhai file, one that is part of dsr, or https://HOST/FILE#sha256=HEX.
    pub(super) recipe: PathBuf,

    #[command(flatten)]
    pub(super) given: ParamArgs,

    /// Plan for a GPU of this name, such as "RTX 5090".
    #[arg(long, value_name = "NAME", conflicts_with = "gpu_memory")]
    pub(super) gpu: Option<String>,

    /// Plan for a GPU with this much memory, such as 32GB.
    #[arg(long, value_name = "SIZE")]
    pub(super) gpu_memory: Option<Bytes>,

    /// Plan for this device of this machine: cpu, cuda or cuda:N [default: DSR_DEVICE, else a GPU
    /// where there is one].
    #[arg(long, value_name = "DEVICE", conflicts_with_all = ["gpu", "gpu_memory"])]
    pub(super) device: Option<DeviceChoice>,

    /// The number of processes.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) world_size: u16,

    /// Print the plan as JSON: bytes and seconds.
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    pub(super) grants: GrantArgs,

    #[command(flatten)]
    pub(super) lock: LockArgs,
}

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// The recipe: a .rhai file, one that is part of dsr, or https://HOST/FILE#sha256=HEX.
    pub(super) recipe: PathBuf,

    #[command(flatten)]
    pub(super) given: ParamArgs,

    /// Print the errors as JSON, for editors.
    #[arg(long)]
    pub(super) json: bool,

    #[command(flatten)]
    pub(super) fetch: FetchArgs,

    #[command(flatten)]
    pub(super) lock: LockArgs,
}

#[derive(Debug, Args)]
pub(super) struct ReplArgs {
    /// Start with this recipe: a .rhai file, or one that is part of dsr.
    #[arg(long, value_name = "RECIPE")]
    pub(super) load: Option<PathBuf>,

    #[command(flatten)]
    pub(super) given: ParamArgs,

    #[command(flatten)]
    pub(super) device: DeviceArgs,

    #[command(flatten)]
    pub(super) grants: GrantArgs,
}

#[derive(Debug, Args)]
pub(super) struct EvalArgs {
    /// The expression, such as '1 + 1' or 'dataset("dsr:austen").count()'.
    pub(super) text: String,

    #[command(flatten)]
    pub(super) device: DeviceArgs,

    #[command(flatten)]
    pub(super) grants: GrantArgs,
}

#[derive(Debug, Args)]
pub(super) struct DocArgs {
    /// A function, property, type or concept: `forward`, `engine.loss`, `Dataset`, `model`.
    pub(super) name: Option<String>,

    /// Print a line for each entry, by concept.
    #[arg(long, conflicts_with = "name")]
    pub(super) list: bool,

    /// Print everything, as one Markdown text.
    #[arg(long, conflicts_with_all = ["name", "list"])]
    pub(super) all: bool,

    /// Print as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// Print as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct RecipeArgs {
    #[command(subcommand)]
    pub(super) command: RecipeCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum RecipeCommand {
    /// List the recipes that are part of dsr.
    Ls {
        /// Print them as JSON.
        #[arg(long)]
        json: bool,
    },

    /// Print the text of a recipe.
    Show {
        /// A recipe that is part of dsr, a .rhai file, or https://HOST/FILE#sha256=HEX.
        recipe: PathBuf,

        #[command(flatten)]
        fetch: FetchArgs,
    },

    /// Copy a recipe, to edit it.
    Cp {
        /// A recipe that is part of dsr, a .rhai file, or https://HOST/FILE#sha256=HEX.
        recipe: PathBuf,

        /// The new file, or the directory that it goes into.
        to: PathBuf,

        #[command(flatten)]
        fetch: FetchArgs,
    },

    /// Write a recipe, its imports and its lock into one file.
    Bundle(BundleArgs),

    /// Write the parts of a bundle into a new directory.
    Unbundle {
        /// The bundle.
        bundle: PathBuf,

        /// The directory, which must not be there.
        to: PathBuf,

        #[command(flatten)]
        fetch: FetchArgs,
    },

    /// Compare two recipes: text, permissions, parameters.
    Diff {
        /// A recipe that is part of dsr, a .rhai file, or https://HOST/FILE#sha256=HEX.
        old: PathBuf,

        /// Another one.
        new: PathBuf,

        #[command(flatten)]
        fetch: FetchArgs,
    },

    /// Check a recipe without running it, as `dsr check` does.
    Check(CheckArgs),
}

#[derive(Debug, Args)]
pub(super) struct BundleArgs {
    /// The recipe: a .rhai file, one that is part of dsr, or https://HOST/FILE#sha256=HEX.
    pub(super) recipe: PathBuf,

    #[command(flatten)]
    pub(super) given: ParamArgs,

    /// The lock to include [default: NAME.lock beside the recipe, where there is one].
    #[arg(long, value_name = "FILE")]
    pub(super) lock: Option<PathBuf>,

    /// The new file [default: NAME.bundle.rhai].
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,

    #[command(flatten)]
    pub(super) fetch: FetchArgs,
}

#[derive(Debug, Args)]
pub(super) struct LockCommandArgs {
    /// The recipe: a .rhai file, one that is part of dsr, or https://HOST/FILE#sha256=HEX.
    pub(super) recipe: PathBuf,

    #[command(flatten)]
    pub(super) given: ParamArgs,

    /// The lock [default: NAME.lock beside the recipe].
    #[arg(long, value_name = "FILE")]
    pub(super) lock: Option<PathBuf>,

    /// Only compare the lock with the recipe, and fail if they differ.
    #[arg(long)]
    pub(super) check: bool,

    #[command(flatten)]
    pub(super) grants: GrantArgs,
}

/// The names are torchrun's and DeepSpeed's.
#[derive(Debug, Args)]
pub(super) struct LaunchArgs {
    /// Processes on each machine [default: one for each GPU, or 1].
    #[arg(long, visible_alias = "nproc_per_node", value_name = "N")]
    pub(super) nproc_per_node: Option<usize>,

    /// The number of machines; with --hostfile, the first N of the file.
    #[arg(long, value_name = "N")]
    pub(super) nnodes: Option<usize>,

    /// The rank of this machine, from 0, if each machine is started by hand.
    #[arg(long, visible_alias = "node_rank", value_name = "K")]
    pub(super) node_rank: Option<usize>,

    /// The first machine's name or address [default: its name in the hostfile].
    #[arg(long, visible_alias = "master_addr", value_name = "ADDRESS")]
    pub(super) master_addr: Option<String>,

    /// A port on the first machine [default: 29500; on one machine any free one].
    #[arg(long, visible_alias = "master_port", value_name = "PORT")]
    pub(super) master_port: Option<u16>,

    /// Start the ranks on the machines of this file, lines such as `worker-1 slots=4`, over ssh.
    #[arg(short = 'H', long, value_name = "FILE")]
    pub(super) hostfile: Option<PathBuf>,

    /// Use only these slots: NAME[:SLOT[,SLOT ...]], several joined by @.
    #[arg(short, long, value_name = "SLOTS")]
    pub(super) include: Option<String>,

    /// Use all slots but these.
    #[arg(short, long, value_name = "SLOTS")]
    pub(super) exclude: Option<String>,

    /// Seconds that a collective may wait for a rank [default: 1800].
    #[arg(long, value_name = "SECONDS")]
    pub(super) timeout: Option<u64>,

    /// The port for ssh.
    #[arg(long, visible_alias = "ssh_port", value_name = "PORT")]
    pub(super) ssh_port: Option<u16>,

    /// The command to use instead of ssh; its arguments are the machine's name and a shell command.
    #[arg(long, value_name = "COMMAND", env = "DSR_SSH")]
    pub(super) ssh: Option<String>,

    #[command(flatten)]
    pub(super) run: RunArgs,
}

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    /// DeepSpeed's JSON file.
    #[arg(required_unless_present = "keys")]
    pub(super) file: Option<PathBuf>,

    /// The number of processes [default: the number that the batch sizes in the file imply].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) world_size: Option<u32>,

    /// List every key that DeepSpeed knows, and how dsr treats it.
    #[arg(long, conflicts_with_all = ["file", "world_size"])]
    pub(super) keys: bool,
}

/// The shells that have a completion script.
fn shell() -> impl TypedValueParser<Value = Shell> {
    PossibleValuesParser::new(["bash", "zsh", "fish"]).try_map(|name| name.parse())
}

/// The help of `dsr run` or `dsr launch` itself.
pub(super) fn help(subcommand: &str) -> String {
    let mut cli = Cli::command();
    // Builds the usage lines of the subcommands.
    cli.build();
    let found = cli.find_subcommand_mut(subcommand).expect("the subcommand is declared above");
    found.render_help().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_ranks_arguments_say_what_the_launchers_said() {
        let of_launch =
            |words: &[&str]| match Cli::try_parse_from(["dsr", "launch"].iter().chain(words))
                .unwrap()
                .command
            {
                Command::Launch(args) => args.run.words(),
                _ => panic!("another subcommand"),
            };
        let given = ["--nnodes", "1", "a.rhai", "-p", "lr=-1", "-p", "a=b c", "--resume", "auto"];
        let expected = ["a.rhai", "--param=lr=-1", "--param=a=b c", "--resume=auto"];
        // As if DSR_DEVICE were set to nothing.
        assert_eq!(of_launch(&[&given[..], &["--device="]].concat()), expected);
        let given = ["a.rhai", "--name=b", "--resume", "runs/a", "--params", "p.json"];
        let expected = [
            "a.rhai",
            "--params=p.json",
            "--resume=runs/a",
            "--name=b",
            "--profile=trace.json",
            "--device=cpu",
        ];
        let given = [&given[..], &["--device", "cpu", "--profile"]].concat();
        assert_eq!(of_launch(&given), expected);
    }
}
