//! The other machines: the same program with the same arguments, started over ssh.

use std::process::Command;

use super::Launch;
use crate::{launch::hostfile::Host, run::shell_line};

/// The environment variables that go along, by what they begin with: DeepSpeed's list for CUDA,
/// and what libtorch, the hub and dsr read.
const PREFIXES: &[&str] = &["NCCL_", "UCX_", "GLOO_", "OMP_", "MKL_", "TORCH_", "HF_", "DSR_"];
/// Others that go along.
const NAMES: &[&str] = &["LD_LIBRARY_PATH", "HF_HOME", "TOKENIZERS_PARALLELISM", "NO_COLOR"];
/// Words in a name that must not be seen in the list of a machine's processes.
const SECRETS: &[&str] = &["TOKEN", "SECRET", "PASSWORD", "_KEY"];

/// The command that starts the ranks of machine `node` on `host`.
pub(super) fn command(launch: &Launch, node: usize, host: &Host, port: u16) -> Command {
    let mut command = Command::new(&launch.ssh[0]);
    command.args(&launch.ssh[1..]).arg(&host.name);
    command.arg(line(launch, node, host, port));
    command
}

/// The line for the shell of the other machine.
fn line(launch: &Launch, node: usize, host: &Host, port: u16) -> String {
    let mut words = vec!["exec".to_owned(), "env".to_owned()];
    let goes_along = |name: &str| {
        let known = NAMES.contains(&name) || PREFIXES.iter().any(|p| name.starts_with(p));
        known && !SECRETS.iter().any(|secret| name.contains(secret))
    };
    let variables = launch.environment.iter().filter(|(name, _)| goes_along(name));
    words.extend(variables.map(|(name, value)| format!("{name}={value}")));
    if launch.plan.devices.is_some() {
        let devices: Vec<_> = host.slots.iter().map(|slot| slot.to_string()).collect();
        words.push(format!("CUDA_VISIBLE_DEVICES={}", devices.join(",")));
    }
    words.push(launch.program.display().to_string());
    words.push("launch".to_owned());
    let plan = &launch.plan;
    let options = [
        ("--nnodes", plan.nnodes.to_string()),
        ("--node-rank", node.to_string()),
        ("--nproc-per-node", host.slots.len().to_string()),
        ("--master-addr", plan.master.0.clone()),
        ("--master-port", port.to_string()),
        ("--timeout", plan.timeout.as_secs().to_string()),
    ];
    words.extend(options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
    words.extend(launch.run_args.iter().cloned());
    let place = shell_line(&[launch.work_dir.display().to_string()]);
    format!("cd {place} && {}", shell_line(&words))
}
