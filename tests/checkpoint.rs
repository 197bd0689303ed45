//! Checkpoints survive the death of their writer at any instant.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use dsr::{checkpoint::Store, fs::Place};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Tells the writing process which store is its own.
const STORE: &str = "DSR_TEST_STORE";
const KILLS: usize = 40;

#[test]
fn a_killed_writer_leaves_whole_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("checkpoints");
    let store = Store::open(Place::unguarded(&root));
    let mut random = ChaCha8Rng::seed_from_u64(0);
    let (mut last_step, mut torn) = (0, 0);
    for kill in 0..KILLS {
        let mut writer = start_writer(&root);
        thread::sleep(Duration::from_micros(random.random_range(0..30_000)));
        writer.kill().unwrap();
        writer.wait().unwrap();
        torn += temporaries(&root);

        let saved = store.list().unwrap();
        for checkpoint in &saved {
            Store::verify(Place::unguarded(&checkpoint.path))
                .unwrap_or_else(|e| panic!("after kill {kill}: {e:?}"));
            assert_eq!(fs::read(checkpoint.path.join("a")).unwrap(), content(checkpoint.step));
        }
        if saved.is_empty() {
            assert_eq!(last_step, 0, "after kill {kill}: the checkpoints are gone");
            continue;
        }
        let latest = store.latest().unwrap_or_else(|e| panic!("after kill {kill}: {e:?}"));
        let step = saved.iter().find(|c| latest == c.path).unwrap().step;
        assert!(step >= last_step, "after kill {kill}: step {step} came after {last_step}");
        last_step = step;
    }
    println!("{KILLS} kills, {torn} in the middle of a write, {last_step} steps saved");
    assert!(last_step > 0, "no writer got as far as its first checkpoint");
    assert!(torn > 0, "no kill came in the middle of a write: nothing was tested");

    store.save(last_step + 1, Some(1), |_| Ok(())).unwrap();
    assert_eq!(store.list().unwrap().len(), 1, "those that a kill kept from being pruned go");
    assert_eq!(temporaries(&root), 0, "the next writer removes what the killed ones left");
}

/// Saves one checkpoint after the other, each twice, until it is killed.
#[test]
#[ignore = "a process of its own, started by the test above"]
fn writer() {
    let store = Store::open(Place::unguarded(PathBuf::from(
        env::var_os(STORE).expect("started by the test above"),
    )));
    let first = store.list().unwrap().last().map_or(1, |saved| saved.step + 1);
    println!("\nwriting");
    for step in first.. {
        // The second time the directory is there already and has to be exchanged.
        for _ in 0..2 {
            let write = |dir: &Place| {
                let dir = dir.path();
                fs::write(dir.join("a"), content(step)).unwrap();
                fs::write(dir.join("b"), content(step + 1)).unwrap();
                Ok(())
            };
            store.save(step, Some(2), write).unwrap();
        }
    }
}

fn start_writer(root: &Path) -> Child {
    let mut child = Command::new(env::current_exe().unwrap())
        .args(["checkpoint::writer", "--exact", "--ignored", "--nocapture"])
        .env(STORE, root)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let ready = stdout.lines().any(|line| line.unwrap() == "writing");
    assert!(ready, "the writer ended before it began");
    child
}

fn content(step: u64) -> Vec<u8> {
    (0..50_000 + step).map(|i| (i ^ step) as u8).collect()
}

fn temporaries(root: &Path) -> usize {
    let Ok(entries) = fs::read_dir(root) else { return 0 };
    entries.filter(|entry| dsr::fs::is_temporary(&entry.as_ref().unwrap().path())).count()
}
