//! The program, run as a user runs it.

use std::{
    env, fs,
    path::Path,
    process::{Command, Output},
    sync::{LazyLock, Once},
    thread,
    time::{Duration, Instant},
};

use super::ranks;

/// The program, on the CPU wherever it runs, unless [`DEVICE`] is another: tests compare what the CPU computes.
/// Those that are for a GPU say so.
pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dsr"));
    command.env(DEVICE.0, &DEVICE.1).env(CACHES.0, caches());
    command
}

/// The variable that says where caches are.
const CACHES: (&str, &str) = ("XDG_CACHE_HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/caches"));

/// The caches of the programs of this run of the tests, which begin empty.
fn caches() -> &'static str {
    static EMPTIED: Once = Once::new();
    EMPTIED.call_once(|| {
        let _ = fs::remove_dir_all(CACHES.1);
    });
    CACHES.1
}

/// The variable that says which device programs compute on, and the device: the CPU, or that of
/// `DSR_TEST_DEVICE`, with which the values of other tools hold on a GPU, too (`families::`).
pub(crate) static DEVICE: LazyLock<(&str, String)> =
    LazyLock::new(|| ("DSR_DEVICE", env::var("DSR_TEST_DEVICE").unwrap_or("cpu".to_owned())));

/// A command that runs dsr in `dir`.
pub(crate) fn dsr(dir: &Path, args: &[&str]) -> Command {
    let mut command = command();
    command.args(args).current_dir(dir);
    for name in ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"] {
        command.env_remove(name);
    }
    command
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Standard output of a run that succeeds.
pub(crate) fn out(output: &Output) -> String {
    assert!(output.status.success(), "{:?}\n{}", output.status, text(&output.stderr));
    text(&output.stdout)
}

/// Two ranks of `dsr` with these arguments, started as torchrun would and run to their end.
pub(crate) fn two_ranks(dir: &Path, args: &[&str]) -> Vec<Output> {
    ranks::run(2, || dsr(dir, args))
}

/// Long enough for a loaded machine, short enough for a test that fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The first thing that `find` finds, as soon as it does.
pub(crate) fn wait_for<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = find() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{what} does not come");
        thread::sleep(Duration::from_millis(20));
    }
}
