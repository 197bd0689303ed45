//! `dsr launch` through the real program: ranks that train together, and all the ways they end.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{
    files::{copy, golden},
    program::{PATIENCE, dsr, out, text, wait_for},
    ranks::free_port,
};

mod machines;
mod meshes;

/// When a rank dies, the others are gone this soon.
const SOON: Duration = Duration::from_secs(10);

/// The golden model in a run that saves every fifth step; each step takes a little while, so that
/// a signal finds one.
const TRAIN: &str = r#"
param("steps", 30, "the last step");
param("pause", 0.0, "seconds between two steps");
let model = load_model("MODEL");
let engine = init_engine(model, #{ micro_batch_size: 2, optimizer: #{ type: "AdamW", lr: 5e-4 } });
let loader = dataset("TOKENS").loader(#{ micro_batch_size: 2, endless: true });
let run = start_run(engine, loader, #{ total_steps: P::steps, save_every: 5, name: "golden" });
for batch in run {
    engine.backward(engine.forward(batch));
    if engine.step() { run.after_step(); }
    if P::pause > 0.0 { sleep(P::pause); }
}
run.finish();
print("trained");
"#;

/// A loop of its own, in which `AT_STEP` stands for what one rank does otherwise.
const LOOP: &str = r#"
let model = load_model("MODEL");
let engine = init_engine(model, #{ micro_batch_size: 2, optimizer: #{ type: "AdamW", lr: 5e-4 } });
let loader = dataset("TOKENS").loader(#{ micro_batch_size: 2, endless: true });
for batch in loader {
    engine.backward(engine.forward(batch));
    let second = engine.rank + 1 == engine.world_size;
    AT_STEP
    if engine.step() && engine.global_step == 6 { break; }
}
"#;

/// A directory with a recipe in it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(recipe: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let recipe = recipe.replace("MODEL", "model").replace("TOKENS", "tokens.parquet");
        copy(&golden("gpt2-tiny-v512"), &folder.path().join("model"));
        copy(&golden("tokens-v512.parquet"), &folder.path().join("tokens.parquet"));
        fs::write(folder.path().join("r.rhai"), recipe).unwrap();
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn run_dir(&self) -> PathBuf {
        self.path().join("runs/golden")
    }

    fn launch(&self, args: &[&str]) -> Launched {
        Launched::start(launch(self.path(), args))
    }
}

/// `dsr launch` with these arguments, one thread a rank, on the CPU.
fn launch(dir: &Path, args: &[&str]) -> Command {
    let mut command = dsr(dir, &["launch"]);
    command.args(args).env("OMP_NUM_THREADS", "1");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A launcher that runs; one that a test leaves behind is killed.
struct Launched(Option<Child>);

impl Launched {
    fn start(mut command: Command) -> Self {
        Self(Some(command.spawn().unwrap()))
    }

    fn pid(&self) -> u32 {
        self.0.as_ref().unwrap().id()
    }

    fn signal(&self, signal: &str) {
        kill(self.pid(), signal);
    }

    /// Waits for the end.
    fn end(mut self) -> Output {
        let mut child = self.0.take().unwrap();
        let started = Instant::now();
        let out: Box<dyn Read + Send> = Box::new(child.stdout.take().unwrap());
        let err: Box<dyn Read + Send> = Box::new(child.stderr.take().unwrap());
        let pipes = [out, err].map(|mut pipe| {
            thread::spawn(move || {
                let mut bytes = Vec::new();
                pipe.read_to_end(&mut bytes).unwrap();
                bytes
            })
        });
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if started.elapsed() > PATIENCE {
                child.kill().unwrap();
                panic!("the launcher does not end");
            }
            thread::sleep(Duration::from_millis(20));
        };
        let [stdout, stderr] = pipes.map(|pipe| pipe.join().unwrap());
        Output { status, stdout, stderr }
    }

    /// The process of a rank, once it has one.
    fn rank(&self, rank: usize) -> u32 {
        wait_for("the rank", || {
            let children = children(self.pid());
            let is = |pid: &u32| {
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                let wanted = format!("RANK={rank}");
                environment.split(|byte| *byte == 0).any(|word| word == wanted.as_bytes())
            };
            children.into_iter().find(is)
        })
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn kill(pid: u32, signal: &str) {
    let status = Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(status.unwrap().success(), "kill {signal} {pid}");
}

/// The processes that `pid` has started.
fn children(pid: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(children.split_whitespace().map(|pid| pid.parse::<u32>().unwrap()));
    }
    found
}

fn is_gone(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    // One that nobody has waited for yet is gone, too.
    stat.map_or(true, |stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
}

/// Waits until a run has written down that many steps.
fn wait_for_steps(run: &Path, steps: usize) {
    wait_for("the step", || (losses(run).len() >= steps).then_some(()));
}

/// Step and loss of each step that a run wrote down.
fn losses(run: &Path) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let step = |line: &str| {
        let value: Value = serde_json::from_str(line).ok()?;
        Some((value["step"].as_u64()?, value["loss"].as_f64()?))
    };
    text.lines().filter_map(step).collect()
}

/// The losses of the run that nothing disturbs.
fn undisturbed() -> Vec<(u64, f64)> {
    let folder = Folder::new(TRAIN);
    out(&folder.launch(&["--nproc-per-node", "2", "r.rhai"]).end());
    let losses = losses(&folder.run_dir());
    assert_eq!(losses.len(), 30);
    losses
}

fn last_lines(output: &Output, from: &str) -> String {
    let err = text(&output.stderr);
    let at = err.rfind(from).unwrap_or_else(|| panic!("no {from:?} in:\n{err}"));
    err[at..].to_owned()
}

/// The golden recipe over several ranks, which share each global batch, prints PyTorch's losses
/// (2e-5 relative) and gradient norms (2e-4), as one rank does: sums in another order.
#[test]
fn ranks_train_as_one_and_print_pytorchs_losses() {
    let dir = tempfile::tempdir().unwrap();
    let model = format!("model={}", golden("gpt2-tiny-v512").display());
    let data = format!("data={}", golden("tokens-v512.parquet").display());
    let script = golden("gpt2_golden.rhai").display().to_string();
    let expected = fs::read_to_string(golden("gpt2-tiny-v512.fp32.json")).unwrap();
    let expected: Value = serde_json::from_str(&expected).unwrap();
    for (ranks, accum) in [("2", "accum=2"), ("4", "accum=1")] {
        let args = ["--nproc-per-node", ranks, &script, "-p", &model, "-p", &data, "-p", accum];
        let printed = out(&Launched::start(launch(dir.path(), &args)).end());
        let lines: Vec<Value> =
            printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 30, "the lines of rank 0 alone");
        for (i, line) in lines.iter().enumerate() {
            for (key, series, tolerance) in
                [("loss", "losses", 2e-5), ("grad_norm", "grad_norms", 2e-4)]
            {
                let expected = expected[series][i].as_f64().unwrap();
                let relative = (line[key].as_f64().unwrap() / expected - 1.0).abs();
                assert!(relative <= tolerance, "{ranks} ranks, step {}: {relative:.1e}", i + 1);
            }
        }
    }
    // A recipe that starts no run has its logs beside the runs, one for each launch.
    let log = dir.path().join("runs/gpt2_golden-launch-2/rank-3.log");
    let log = fs::read_to_string(log).unwrap();
    assert_eq!(log.lines().filter(|line| line.starts_with("[rank 3] {")).count(), 30);
}

#[test]
fn each_rank_has_its_log_in_the_runs_directory() {
    let folder = Folder::new(TRAIN);
    let steps = ["-p", "steps=6"];
    let output = folder.launch(&[&["--nproc-per-node", "2", "r.rhai"][..], &steps].concat()).end();
    assert_eq!(out(&output), "trained\n");
    assert!(text(&output.stderr).contains("a new run in "), "{}", text(&output.stderr));
    let log = |rank: usize| {
        fs::read_to_string(folder.run_dir().join(format!("rank-{rank}.log"))).unwrap()
    };
    assert!(log(0).contains("[rank 0] trained\n") && log(0).contains("[rank 0] step 6/6"));
    assert_eq!(log(1), "[rank 1] trained\n");
    // What goes on in the directory goes on in its logs, under the command that was typed.
    let more = ["--nproc-per-node", "2", "r.rhai", "-p", "steps=8", "--resume", "auto"];
    out(&folder.launch(&more).end());
    assert_eq!(log(1), "[rank 1] trained\n[rank 1] trained\n");
    let commands = fs::read_to_string(folder.run_dir().join("command.txt")).unwrap();
    let commands: Vec<_> = commands.lines().collect();
    assert!(commands[0].ends_with(" launch --nproc-per-node 2 r.rhai -p steps=6"), "{commands:?}");
    assert!(commands[1].ends_with(" -p steps=8 --resume auto"), "{commands:?}");
    let left: Vec<_> = fs::read_dir(folder.path().join("runs")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn a_recipes_error_is_shown_with_its_rank_and_place() {
    let at_step = "if second && engine.global_step == 3 { throw \"rank 1 is unwell\"; }";
    let folder = Folder::new(&LOOP.replace("AT_STEP", at_step));
    let output = folder.launch(&["--nproc-per-node", "2", "r.rhai"]).end();
    assert_eq!(output.status.code(), Some(1));
    let last = last_lines(&output, "rank 1 on localhost");
    let expected = "rank 1 on localhost failed with exit status 1:\n\
                    error[E111]: rank 1 is unwell\n   ,-[ r.rhai:8:44 ]\n";
    assert!(last.starts_with(expected), "{last}");
    assert!(last.ends_with("^\n"), "nothing follows the cause:\n{last}");
}

#[test]
fn a_rank_that_is_killed_ends_the_others_soon() {
    let folder = Folder::new(TRAIN);
    let args = ["--nproc-per-node", "3", "r.rhai", "-p", "pause=0.05", "-p", "steps=10000"];
    let launched = folder.launch(&args);
    wait_for_steps(&folder.run_dir(), 6);
    let ranks = [0, 1, 2].map(|rank| launched.rank(rank));
    let killed = Instant::now();
    kill(ranks[2], "-9");
    let output = launched.end();
    assert!(killed.elapsed() < SOON, "took {:?}", killed.elapsed());
    assert!(ranks.iter().all(|rank| is_gone(*rank)));
    assert_eq!(output.status.code(), Some(137));
    let last = last_lines(&output, "rank 2 on localhost");
    assert!(
        last.starts_with("rank 2 on localhost was killed by SIGKILL (signal 9)\n   = "),
        "{last}"
    );
}

/// A control group for processes that together may have 500 MB of memory; `None`, with the reason
/// printed, where the system does not allow one.
fn memory_group() -> Option<PathBuf> {
    let name = format!("dsr-test-{}", std::process::id());
    // Version 1 has a hierarchy for memory alone.
    let (root, limit) = match Path::new("/sys/fs/cgroup/memory").exists() {
        true => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        false => ("/sys/fs/cgroup", "memory.max"),
    };
    let group = Path::new(root).join(name);
    let made = fs::create_dir(&group).and_then(|()| fs::write(group.join(limit), "500000000"));
    if let Err(e) = made {
        println!("skipped: no control group {}: {e}", group.display());
        let _ = fs::remove_dir(&group);
        return None;
    }
    Some(group)
}

#[test]
fn a_kill_for_memory_is_called_one() {
    let Some(group) = memory_group() else { return };
    // Doubling sixteen characters 19 times makes 8 MiB; what functions hold is counted nowhere.
    let at_step = "if second && engine.global_step == 3 {
        let hoard = || 0;
        loop {
            let text = \"0123456789abcdef\";
            for i in 0..19 { text += text; }
            let held = hoard;
            hoard = || { held.call(); text.len() };
        }
    }";
    let folder = Folder::new(&LOOP.replace("AT_STEP", at_step));
    let inner = launch(folder.path(), &["--nproc-per-node", "2", "r.rhai"]);
    let mut command = Command::new("sh");
    let enter = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", group.display());
    command.args(["-c", &enter, "sh"]).arg(inner.get_program()).args(inner.get_args());
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = Launched::start(command).end();
    wait_for("the end of the group", || fs::remove_dir(&group).ok());
    assert_eq!(output.status.code(), Some(137), "{}", text(&output.stderr));
    let last = last_lines(&output, "rank 1 on localhost");
    assert!(last.contains("was killed by SIGKILL"), "{last}");
    assert!(last.contains("the kernel's out-of-memory killer ended it"), "{last}");
}

#[test]
fn signals_reach_all_ranks_and_the_run_goes_on_as_if_nothing_had_been() {
    let folder = Folder::new(TRAIN);
    let start = ["--nproc-per-node", "2", "r.rhai", "-p", "pause=0.05"];
    let resume = [&start[..], &["--resume", "auto"]].concat();
    for (args, signal, steps) in [(&start[..], "-INT", 7), (&resume, "-TERM", 14)] {
        let launched = folder.launch(args);
        wait_for_steps(&folder.run_dir(), steps);
        launched.signal(signal);
        let output = launched.end();
        assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
        let err = text(&output.stderr);
        let done = losses(&folder.run_dir()).len();
        let saved = format!("stopped after step {done}; the checkpoint of step {done} is saved\n");
        assert!(err.contains(&saved), "{err}");
        assert!(err.contains("go on with: "), "{err}");
        assert!(err.trim_end().ends_with("r.rhai -p pause=0.05 --resume auto"), "{err}");
    }
    out(&folder.launch(&resume).end());
    assert_eq!(losses(&folder.run_dir()), undisturbed());
}

#[test]
fn the_second_interrupt_ends_all_ranks_at_once() {
    let folder = Folder::new(&LOOP.replace("AT_STEP", "print(\"ready\"); sleep(1000);"));
    let launched = folder.launch(&["--nproc-per-node", "2", "r.rhai"]);
    let ranks = [0, 1].map(|rank| launched.rank(rank));
    wait_for("the sleep", || {
        let log = folder.path().join("runs/r-launch/rank-1.log");
        fs::read_to_string(log).unwrap_or_default().contains("ready").then_some(())
    });
    launched.signal("-INT");
    thread::sleep(Duration::from_millis(300));
    let asked = Instant::now();
    launched.signal("-INT");
    let output = launched.end();
    assert_eq!(output.status.code(), Some(130));
    assert!(asked.elapsed() < SOON && ranks.iter().all(|rank| is_gone(*rank)));
}

#[test]
fn ranks_end_with_a_launcher_that_is_killed() {
    let folder = Folder::new(TRAIN);
    let args = ["--nproc-per-node", "2", "r.rhai", "-p", "pause=0.05", "-p", "steps=10000"];
    let launched = folder.launch(&args);
    wait_for_steps(&folder.run_dir(), 3);
    let ranks = [0, 1].map(|rank| launched.rank(rank));
    launched.signal("-9");
    launched.end();
    wait_for("the end of the ranks", || ranks.iter().all(|rank| is_gone(*rank)).then_some(()));
}

#[test]
fn a_collective_that_one_rank_alone_reaches_is_an_error() {
    // The other rank ends, or is in another collective of the same number.
    let ends = LOOP.replace("AT_STEP", "if second && engine.global_step == 3 { break; }");
    let saves =
        "    if engine.rank == 1 && engine.global_step == 3 { engine.save_checkpoint(\"c\"); }\n";
    let saves = LOOP
        .replace("AT_STEP", "")
        .replace("    engine.backward", &format!("{saves}    engine.backward"));
    let cases =
        [(ends, "rank 1 has ended after all_reduce #"), (saves, " and does not take part in ")];
    for (recipe, expected) in cases {
        let folder = Folder::new(&recipe);
        let started = Instant::now();
        let output = folder.launch(&["--nproc-per-node", "2", "r.rhai"]).end();
        assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
        let last = last_lines(&output, "what each rank wrote: ");
        assert!(last.contains(expected), "{recipe}: {last}");
        assert!(last.contains("every rank must call the same collectives"), "{last}");
        assert!(started.elapsed() < PATIENCE / 2, "long before the timeout");
    }
}

#[test]
fn a_rank_that_hangs_is_named_after_the_timeout() {
    let at_step = "if second && engine.global_step == 3 { sleep(1000); }";
    let folder = Folder::new(&LOOP.replace("AT_STEP", at_step));
    let output = folder.launch(&["--nproc-per-node", "2", "--timeout", "6", "r.rhai"]).end();
    assert_eq!(output.status.code(), Some(7));
    let last = last_lines(&output, "rank 0 on localhost");
    assert!(last.contains(" timed out: rank 1 has not come since all_reduce #"), "{last}");
}

/// Two machines that are both this one: each has its launcher, started by hand.
#[test]
fn launchers_that_are_started_by_hand_stop_together() {
    let folder = Folder::new(TRAIN);
    let port = free_port().to_string();
    let start = |node: &str| {
        let args = ["--nnodes", "2", "--node-rank", node, "--master-addr", "127.0.0.1"];
        let more = ["--master-port", &port, "r.rhai", "-p", "pause=0.05", "-p", "steps=10000"];
        folder.launch(&[&args[..], &more].concat())
    };
    // The second may come first.
    let second = start("1");
    thread::sleep(Duration::from_millis(500));
    let first = start("0");
    wait_for_steps(&folder.run_dir(), 3);
    second.signal("-INT");
    for launched in [first, second] {
        let output = launched.end();
        assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    }
    // A user who gives up waiting for the first machine need not wait for the timeout.
    let alone = start("1");
    // Long enough for a loaded machine to start it; before, the signal would end it by itself.
    thread::sleep(Duration::from_secs(3));
    let asked = Instant::now();
    alone.signal("-INT");
    assert_eq!(alone.end().status.code(), Some(130));
    assert!(asked.elapsed() < SOON, "took {:?}", asked.elapsed());
}

#[test]
fn what_cannot_be_launched_is_refused_before_anything_starts() {
    let folder = Folder::new("print(1);");
    fs::write(folder.path().join("hosts"), "localhost slots=2\nb slots\n").unwrap();
    let cases: [(&[&str], i32, &str); 5] = [
        (&["-H", "hosts", "r.rhai"], 2, "hosts:2: expected `host slots=N`, found `b slots`"),
        (&["-i", "localhost:7", "r.rhai"], 2, "localhost has no slot 7"),
        (
            &["--nnodes", "2", "r.rhai"],
            2,
            "each machine needs --node-rank and --master-addr beside --nnodes",
        ),
        (&["-i", "a", "-e", "b", "r.rhai"], 2, "--include and --exclude exclude each other"),
        (&["--nproc-per-node", "2", "none.rhai"], 4, "there is no recipe none.rhai"),
    ];
    for (args, status, expected) in cases {
        let output = folder.launch(args).end();
        let err = text(&output.stderr);
        assert!(err.contains(expected), "{args:?}: {err}");
        assert_eq!(output.status.code(), Some(status), "{args:?}");
    }
    let help = folder.launch(&["--help"]).end();
    assert!(out(&help).contains("--nproc-per-node"));
}
