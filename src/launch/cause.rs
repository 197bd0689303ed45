//! The cause of a process's end: its own report, the signal that killed it, the kernel's memory killer.
//!
//! A rank that fails writes its error into the file that `TORCHELASTIC_ERROR_FILE` names, in
//! torchelastic's form, so that torchrun shows it as well as `dsr launch` does.

use std::{
    os::unix::process::ExitStatusExt,
    path::Path,
    process::ExitStatus,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    error::{Code, Result},
    fs::{Place, read_to_string, write_atomic},
};

/// The variable that names the file for a rank's error.
pub const ERROR_FILE: &str = "TORCHELASTIC_ERROR_FILE";

/// A rank's error in its own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The number of its code, such as `E901`.
    pub code: String,
    /// The error as the rank shows it, with its place in the recipe.
    pub text: String,
}

impl Report {
    /// Writes the report for the launcher to read.
    pub fn write(&self, path: &Path) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let report = json!({
            "message": {
                "message": self.text,
                "extraInfo": {
                    "py_callstack": self.text,
                    "timestamp": now.to_string(),
                    "code": self.code,
                },
            },
        });
        write_atomic(Place::unguarded(path), report.to_string().as_bytes())
    }

    /// The report that a rank has left, if it has.
    pub(super) fn read(path: &Path) -> Option<Self> {
        let report: Value =
            serde_json::from_str(&read_to_string(Place::unguarded(path)).ok()?).ok()?;
        let message = &report["message"];
        Some(Self {
            code: message["extraInfo"]["code"].as_str()?.to_owned(),
            text: message["message"].as_str()?.to_owned(),
        })
    }

    /// Whether the error is about other ranks, so that one of them may be its cause.
    pub(super) fn is_about_others(&self) -> bool {
        self.code == Code::Dist.number()
    }
}

/// How a process ended, in the words of the sentence "rank 1 on a ...".
pub(super) fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("failed with exit status {code}"),
        (None, Some(signal)) => format!("was killed by {}", signal_name(signal)),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

/// The exit status that a shell gives for it: 128 and the signal's number for a signal.
pub(super) fn shell_status(status: ExitStatus) -> u8 {
    let number = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    number.and_then(|number| u8::try_from(number).ok()).unwrap_or(1)
}

fn signal_name(signal: i32) -> String {
    match signal_hook::low_level::signal_name(signal) {
        Some(name) => format!("{name} (signal {signal})"),
        None => format!("signal {signal}"),
    }
}

/// How often the kernel has killed a process of this one's control group for memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct MemoryKills(Option<u64>);

impl MemoryKills {
    /// The count as it stands.
    pub(super) fn now() -> Self {
        Self(memory_kills(&|path| read_to_string(Place::unguarded(path)).ok()))
    }

    /// The cause of a SIGKILL since then, as far as the kernel tells it.
    pub(super) fn hint(self) -> &'static str {
        match (self.0, Self::now().0) {
            (Some(before), Some(now)) if now > before => {
                "the kernel's out-of-memory killer ended it: use a smaller micro_batch_size, \
                 activation checkpointing or more memory"
            }
            (Some(_), Some(_)) => {
                "the kernel records no out-of-memory kill: it was killed from outside"
            }
            _ => "the out-of-memory killer, or somebody outside, ended it: see the kernel's log",
        }
    }
}

/// The count of the control group (version 2 or 1), or else that of the whole machine.
fn memory_kills(read: &dyn Fn(&str) -> Option<String>) -> Option<u64> {
    let groups = read("/proc/self/cgroup").unwrap_or_default();
    let of_group = groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?.trim_end_matches('/'));
        let file = match controllers {
            "" => format!("/sys/fs/cgroup{group}/memory.events"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                format!("/sys/fs/cgroup/memory{group}/memory.oom_control")
            }
            _ => return None,
        };
        count(&read(&file)?)
    });
    of_group.or_else(|| count(&read("/proc/vmstat")?))
}

/// The number in the line `oom_kill N`.
fn count(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("error.json");
        assert_eq!(Report::read(&path), None);
        let report = Report { code: "E901".into(), text: "error[E901]: lost\n  = a hint\n".into() };
        report.write(&path).unwrap();
        assert_eq!(Report::read(&path), Some(report));
        // The keys that torchrun looks for.
        let json: Value = serde_json::from_str(&read_to_string(&path).unwrap()).unwrap();
        let timestamp = json["message"]["extraInfo"]["timestamp"].as_str().unwrap();
        assert!(timestamp.parse::<u64>().unwrap() > 0);
    }

    #[test]
    fn ends_have_words_and_a_shells_status() {
        let cases = [
            (ExitStatus::from_raw(2 << 8), "failed with exit status 2", 2),
            (ExitStatus::from_raw(9), "was killed by SIGKILL (signal 9)", 137),
            (ExitStatus::from_raw(11), "was killed by SIGSEGV (signal 11)", 139),
            (ExitStatus::from_raw(40), "was killed by signal 40", 168),
        ];
        for (status, words, number) in cases {
            assert_eq!((how(status).as_str(), shell_status(status)), (words, number));
        }
    }

    #[test]
    fn memory_kills_are_counted_where_the_kernel_counts_them() {
        let files: [&[(&str, &str)]; 4] = [
            &[
                ("/proc/self/cgroup", "0::/user/a\n"),
                ("/sys/fs/cgroup/user/a/memory.events", "low 0\noom 4\noom_kill 3\n"),
            ],
            &[
                ("/proc/self/cgroup", "5:cpu:/\n4:memory:/b\n0::/\n"),
                ("/sys/fs/cgroup/memory/b/memory.oom_control", "under_oom 0\noom_kill 3\n"),
            ],
            &[("/proc/self/cgroup", "0::/\n"), ("/proc/vmstat", "pgfault 1\noom_kill 3\n")],
            &[("/proc/vmstat", "oom_kill 3\n")],
        ];
        for files in files {
            let read = |path: &str| {
                let file = files.iter().find(|(name, _)| *name == path)?;
                Some(file.1.to_owned())
            };
            assert_eq!(memory_kills(&read), Some(3), "{files:?}");
        }
        assert_eq!(memory_kills(&|_| None), None);
    }
}
