//! The machine around dsr: the kernel, the hub's cache, memory, cores and disks.

use std::{path::Path, thread};

use super::finding::Finding;
use crate::{
    error::{IoContext, Result},
    fs::{Place, available_bytes, read_to_string},
    hub::HubSettings,
    permission::sandbox::{self, Sandbox},
    recipe::rights::Environment,
    tensor::{self, Device, total_memory},
    units::{Bytes, proc_bytes},
};

/// Less than this fills up with the next checkpoint.
const LITTLE_DISK: u64 = 5 << 30;
/// The shared memory that NCCL and Gloo need, roughly.
const SHARED_MEMORY: u64 = 512 << 20;

/// The kernel first, then places.
pub(super) fn findings(env: &Environment) -> Vec<Finding> {
    let mut found = vec![landlock(), memory(), cores(env)];
    found.extend(shared_memory());
    found.push(disk("working directory", Path::new(".")));
    found.extend(hub(env));
    found
}

fn landlock() -> Finding {
    match sandbox::probe() {
        Ok(Sandbox::On) => Finding::fine("Landlock", "works"),
        Ok(Sandbox::Unavailable) => Finding::warning(
            "Landlock",
            "not in this kernel",
            "recipes are kept to their paths by dsr alone; Linux 5.13 and later have it, where the \
             boot option lsm= names it",
        ),
        Err(e) => Finding::warning("Landlock", e.message(), "--sandbox=off runs without it"),
    }
}

fn memory() -> Finding {
    let total = total_memory(Device::Cpu).ok().flatten();
    let text = read_to_string("/proc/meminfo").unwrap_or_default();
    match (total, proc_bytes(&text, "MemAvailable:")) {
        (Some(total), Some(free)) => {
            let value = format!("{}, {} available", Bytes(total), Bytes(free.min(total)));
            Finding::fine("memory", value)
        }
        _ => Finding::warning("memory", "the kernel does not tell", "is /proc mounted?"),
    }
}

fn cores(env: &Environment) -> Finding {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = tensor::num_threads();
    let set = env("OMP_NUM_THREADS").filter(|value| !value.is_empty());
    let said = set.map_or_else(|| "is not set".to_owned(), |value| format!("is {value}"));
    let value = format!("{cores} cores, {threads} threads of libtorch, OMP_NUM_THREADS {said}");
    match threads > cores {
        true => Finding::warning(
            "processor",
            value,
            "threads without a core wait for each other: OMP_NUM_THREADS should be the number of \
             cores at most",
        ),
        false => Finding::fine("processor", value),
    }
}

/// Containers have 64 MiB of it, unless they are told.
fn shared_memory() -> Option<Finding> {
    let free = available_bytes("/dev/shm").ok()?;
    let value = format!("{} free", Bytes(free));
    Some(match free < SHARED_MEMORY {
        true => Finding::warning(
            "/dev/shm",
            value,
            "several ranks of NCCL need more: docker has --shm-size=1g or --ipc=host",
        ),
        false => Finding::fine("/dev/shm", value),
    })
}

/// Whether a directory can be written to, and has room.
fn disk(name: &str, dir: &Path) -> Finding {
    let place = match dir.canonicalize() {
        Ok(place) => place.display().to_string(),
        Err(_) => format!("{} (not there yet)", dir.display()),
    };
    match room(dir) {
        Ok(free) if free < LITTLE_DISK => Finding::warning(
            name,
            format!("{place}, {} free", Bytes(free)),
            "a checkpoint or a model may not fit: free some space",
        ),
        Ok(free) => Finding::fine(name, format!("{place}, {} free", Bytes(free))),
        Err(e) => {
            Finding::problem(name, format!("{place}: {}", e.message()), "it must be writable")
        }
    }
}

/// The bytes that are free in a directory, or where it would be made, which must be writable.
fn room(dir: &Path) -> Result<u64> {
    let dir = std::path::absolute(dir).at("find", dir)?;
    let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(&dir);
    tempfile::tempfile_in(there).at("write to", there)?;
    available_bytes(Place::unguarded(there))
}

/// The cache, and what the hub is told of this user.
fn hub(env: &Environment) -> Vec<Finding> {
    let settings = match HubSettings::from_env(env) {
        Ok(settings) => settings,
        Err(e) => {
            let advice = e.hints().first().map_or("see its documentation", String::as_str);
            return vec![Finding::problem("Hugging Face hub", e.message(), advice)];
        }
    };
    let token = if settings.token.is_some() { "with a token" } else { "without a token" };
    let offline = if settings.offline { ", offline (HF_HUB_OFFLINE)" } else { "" };
    vec![
        Finding::fine("Hugging Face hub", format!("{}, {token}{offline}", settings.endpoint)),
        disk("hub's cache", &settings.cache_dir),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::Severity;

    #[test]
    fn a_directory_that_will_be_made_has_the_room_of_those_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let finding = disk("cache", &dir.path().join("a/b"));
        assert_ne!(finding.state, Severity::Problem);
        assert!(finding.value.contains("a/b (not there yet), "), "{}", finding.value);
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let finding = disk("cache", &file.join("hub"));
        assert_eq!(finding.state, Severity::Problem, "{}", finding.value);
    }

    #[test]
    fn a_token_is_told_of_and_not_told() {
        let env: Environment = Box::new(|name| match name {
            "HOME" => Some("/nowhere".to_owned()),
            "HF_TOKEN" => Some("hf_secret".to_owned()),
            _ => None,
        });
        let found = hub(&env);
        assert!(found[0].value.contains("with a token"), "{}", found[0].value);
        assert!(found.iter().all(|finding| !finding.value.contains("secret")));
    }
}
