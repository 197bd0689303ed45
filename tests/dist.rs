//! Ranks that exchange tensors: threads of this process and, where one leaves, processes that are
//! started as torchrun starts them.
//!
//! All numbers are small integers, which every dtype here holds exactly, so results are compared
//! without a tolerance.

use std::{
    env, fs,
    io::BufRead,
    net::TcpListener,
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use dsr::{
    dist::{ProcessGroup, ReduceOp, Rendezvous, Work},
    error::{Code, Error, Result},
};
use tch::{Device, Kind, Tensor};

use crate::support::{
    program::{dsr, text},
    ranks::{self, free_port, rendezvous, said, threads, threads_within},
};

/// For the tests in which a rank is waited for in vain.
const SHORT_TIMEOUT: Duration = Duration::from_secs(3);

#[test]
fn two_ranks_exchange_tensors() {
    threads(2, |group| collectives(group));
}

#[test]
fn four_ranks_exchange_tensors() {
    threads(4, |group| collectives(group));
}

#[test]
fn ranks_agree_on_a_flag() {
    threads(2, |group| agree(group));
    let alone = ProcessGroup::single(Device::Cpu).unwrap();
    assert!(alone.any(true).unwrap() && !alone.any(false).unwrap());
}

#[test]
fn works_complete_in_any_order_and_keep_their_tensors() {
    threads(2, |group| works(group));
}

#[test]
fn one_rank_goes_through_the_same_calls() {
    collectives(&ProcessGroup::single(Device::Cpu).unwrap());
    let alone = Rendezvous { world_size: 1, ..rendezvous(0, 1, 0) };
    collectives(&ProcessGroup::connect(&alone, Device::Cpu).unwrap());
}

/// Two ranks that do not fit together are told at once, and not after the time for which ranks wait.
#[test]
fn ranks_that_do_not_fit_together_are_named() {
    let told = |places: [(usize, usize); 2]| -> Vec<String> {
        let (started, port) = (Instant::now(), free_port());
        let connect = |(rank, world_size)| {
            let rendezvous = rendezvous(rank, world_size, port);
            refused(ProcessGroup::connect(&rendezvous, Device::Cpu)).to_string()
        };
        let words = thread::scope(|scope| {
            let ranks = places.map(|place| scope.spawn(move || connect(place)));
            ranks.map(|rank| rank.join().unwrap()).into()
        });
        assert!(started.elapsed() < Duration::from_secs(20), "{words:?}");
        words
    };
    let words = told([(0, 3), (1, 2)]);
    assert!(
        words.iter().any(|w| w.contains("WORLD_SIZE is ") && w.contains("for rank")),
        "{words:?}"
    );
}

/// A recipe in which ranks meet.
const TRAINS: &str = "init_engine(new_model(\"gpt2\", #{ n_layer: 1, n_embd: 8, n_head: 1 }), \
                      #{ micro_batch_size: 1 });";

/// The first process with a number keeps it, and the second is refused; both are named.
#[test]
fn two_ranks_with_one_number_are_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("r.rhai"), TRAINS).unwrap();
    let port = free_port().to_string();
    let start = |rank: &str| {
        dsr(dir.path(), &["run", "r.rhai"])
            .envs([("WORLD_SIZE", "3"), ("RANK", rank), ("LOCAL_RANK", rank)])
            .envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port), ("DSR_TIMEOUT", "60")])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let (started, ranks) = (Instant::now(), ["0", "1", "1"].map(start));
    let words = ranks.map(|rank| text(&rank.wait_with_output().unwrap().stderr));
    assert!(started.elapsed() < Duration::from_secs(45), "{words:?}");
    for word in &words {
        assert!(word.contains("two processes have the number of rank 1: process "), "{words:?}");
    }
}

/// SIGTERM, SIGINT and SIGHUP end a rank that waits for others.
#[test]
fn a_rank_that_waits_hears_the_user() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("r.rhai"), TRAINS).unwrap();
    for (rank, signal) in [("0", "-TERM"), ("1", "-TERM"), ("0", "-INT"), ("1", "-HUP")] {
        let port = free_port().to_string();
        let mut waiting = dsr(dir.path(), &["run", "r.rhai"])
            .envs([("WORLD_SIZE", "2"), ("RANK", rank), ("LOCAL_RANK", rank)])
            .envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)])
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_secs(3));
        let asked = Instant::now();
        let sent = Command::new("kill").args([signal, &waiting.id().to_string()]).status();
        assert!(sent.unwrap().success());
        while waiting.try_wait().unwrap().is_none() {
            assert!(
                asked.elapsed() < Duration::from_secs(60),
                "rank {rank} does not hear {signal}"
            );
            thread::sleep(Duration::from_millis(50));
        }
        let output = waiting.wait_with_output().unwrap();
        // On a loaded machine the line before says that the stop takes long.
        let words = text(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{words}");
        assert!(
            words.lines().any(|line| line.starts_with("stopped while waiting for ")),
            "{words}"
        );
    }
}

/// Sends a signal to a process.
fn send(signal: &str, to: &Child) {
    let sent = Command::new("kill").args([signal, &to.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

/// One SIGTERM ends a rank in a collective that another one, which was not asked, keeps from its end: by an
/// endless loop, or as it shows no sign of life.
#[test]
fn a_rank_that_hangs_in_a_collective_hears_the_user() {
    let recipe = format!(
        "param(\"hangs\", false);\nlet e = {TRAINS}\nprint(\"ready\");\n\
         if P::hangs {{ while true {{}} }}\ne.save_checkpoint(\"c\");"
    );
    for (silent, why) in [(false, "rank 1 has not come since "), (true, ", silent for ")] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("r.rhai"), &recipe).unwrap();
        let port = free_port().to_string();
        let start = |rank: &str, hangs: &str| {
            let mut rank = dsr(dir.path(), &["run", "r.rhai", "-p", hangs])
                .envs([("WORLD_SIZE", "2"), ("RANK", rank), ("LOCAL_RANK", rank)])
                .envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)])
                .stdout(std::process::Stdio::piped())
                .stderr(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let printed = std::io::BufReader::new(rank.stdout.take().unwrap());
            (rank, printed)
        };
        let (mut waiting, mut first) = start("0", "hangs=false");
        let (mut other, mut second) = start("1", "hangs=true");
        for printed in [&mut first, &mut second] {
            printed.read_line(&mut String::new()).unwrap();
        }
        // It has told of itself by then.
        thread::sleep(Duration::from_secs(3));
        if silent {
            send("-STOP", &other);
        }
        let asked = Instant::now();
        send("-TERM", &waiting);
        while waiting.try_wait().unwrap().is_none() && asked.elapsed() < Duration::from_secs(30) {
            thread::sleep(Duration::from_millis(50));
        }
        other.kill().unwrap();
        other.wait().unwrap();
        // A rank that still waits then ends with the other.
        let output = waiting.wait_with_output().unwrap();
        let words = text(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{words}");
        assert!(words.contains("stopped while waiting for ") && words.contains(why), "{words}");
    }
}

#[test]
fn a_rank_that_never_comes_is_named() {
    let started = Instant::now();
    let port = free_port();
    let connect = |rank| {
        let rendezvous = Rendezvous { timeout: SHORT_TIMEOUT, ..rendezvous(rank, 4, port) };
        refused(ProcessGroup::connect(&rendezvous, Device::Cpu))
    };
    let present = thread::scope(|scope| {
        [0, 2].map(|rank| scope.spawn(move || connect(rank))).map(|rank| rank.join().unwrap())
    });
    for (rank, e) in [0, 2].into_iter().zip(present) {
        assert_eq!(e.code(), Code::Dist);
        // Rank 0 hosts the store, so that whoever is slower may find it gone.
        let expected = format!("127.0.0.1:{port}: ranks 1, 3 did not come within 3 s");
        let lost = format!("127.0.0.1:{port} was lost while ranks were waited for");
        let said = e.message();
        assert!(said.contains(&expected) || (rank == 2 && said.contains(&lost)), "{said}");
    }
    assert!(started.elapsed() < SHORT_TIMEOUT * 6, "took {:?}", started.elapsed());
}

#[test]
fn a_master_that_never_comes_is_an_error_in_time() {
    let started = Instant::now();
    let (rendezvous, device) = (rendezvous(1, 2, free_port()), Device::Cpu);
    let rendezvous = Rendezvous { timeout: SHORT_TIMEOUT, ..rendezvous };
    let e = refused(ProcessGroup::connect(&rendezvous, device));
    assert_eq!(e.code(), Code::Dist);
    let address = format!("127.0.0.1:{}", rendezvous.master_port);
    assert_eq!(
        e.message(),
        format!("rank 1 of 2: {address} cannot be reached within 3 s"),
        "the message names the rank and the address"
    );
    assert!(started.elapsed() < SHORT_TIMEOUT * 5, "took {:?}", started.elapsed());
}

#[test]
fn a_port_that_is_taken_is_an_error() {
    let taken = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let e = refused(ProcessGroup::connect(&rendezvous(0, 2, port), Device::Cpu));
    assert_eq!(e.code(), Code::Dist);
    assert!(e.message().starts_with(&format!("rank 0 of 2: 127.0.0.1:{port} cannot be opened")));
    assert!(!e.message().contains("Exception raised from"), "{e}");
}

#[test]
fn a_rank_that_leaves_fails_the_others() {
    for (rank, output) in ranks::run(2, as_rank).iter().enumerate() {
        assert!(output.status.success(), "rank {rank}:\n{}", said(output));
        // A filter that matches nothing succeeds, too.
        assert!(said(output).contains("1 passed"), "{}", said(output));
    }
}

#[test]
fn a_rank_that_does_not_take_part_is_not_waited_for_forever() {
    threads_within(SHORT_TIMEOUT, 2, |group| late(group));
}

#[test]
fn tensors_that_do_not_fit_are_refused_before_anything_is_sent() {
    let group = ProcessGroup::single(Device::Cpu).unwrap();
    let of = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));
    let (a, b) = (of(&[4], Kind::Float), of(&[6], Kind::Float));
    let cases = [
        (
            group.all_gather_into(&b, &a),
            "all_gather_into: out must have 1 times the 4 elements of shard, one shard a rank, \
             found 6",
        ),
        (
            group.reduce_scatter(&a, &of(&[4], Kind::Int64), ReduceOp::Sum),
            "reduce_scatter: input has dtype int64, but shard has float32",
        ),
        (
            group.all_reduce(&of(&[2, 3], Kind::Float).tr(), ReduceOp::Sum),
            "all_reduce: the tensor of shape [3, 2] must be contiguous, found strides [1, 3]",
        ),
        (
            group.all_reduce(&of(&[4], Kind::Int64), ReduceOp::Avg),
            "all_reduce: an average needs a floating-point tensor, found int64",
        ),
        (group.all_reduce(&Tensor::new(), ReduceOp::Sum), "all_reduce: the tensor is undefined"),
    ];
    for (result, message) in cases {
        let e = result.unwrap_err();
        assert_eq!((e.code(), e.message()), (Code::Shape, message));
    }
    let e = group.broadcast(&a, 1).unwrap_err();
    assert_eq!(e.code(), Code::Dist);
    assert_eq!(e.message(), "broadcast: rank 1 cannot be the root: the ranks are 0 to 0");
}

/// One rank of the test of a rank that leaves.
#[test]
#[ignore = "is started by another test, once a rank"]
fn rank() {
    let rendezvous = Rendezvous::from_env(|name| env::var(name).ok()).unwrap().unwrap();
    let rendezvous = Rendezvous { timeout: SHORT_TIMEOUT, ..rendezvous };
    leave(&ProcessGroup::connect(&rendezvous, Device::Cpu).unwrap());
}

/// Every collective in both its forms, in every dtype that is trained in.
fn collectives(group: &ProcessGroup) {
    assert_eq!(group.device(), Device::Cpu);
    for kind in [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16] {
        reductions(group, kind, &[ReduceOp::Sum, ReduceOp::Avg, ReduceOp::Max, ReduceOp::Min]);
        movements(group, kind);
    }
    reductions(group, Kind::Int64, &[ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min]);
    movements(group, Kind::Int64);
}

fn reductions(group: &ProcessGroup, kind: Kind, ops: &[ReduceOp]) {
    let (rank, world_size) = (group.rank() as i64, group.world_size() as i64);
    for &op in ops {
        // Rank r has r + [1, 3, 5, ...], two elements for each rank.
        let own = || Tensor::arange_start_step(1, 4 * world_size, 2, (kind, Device::Cpu)) + rank;
        // What becomes of the ranks 0 .. n-1 in x + r; the average of them is (n - 1) / 2.
        let reduced = |x: f64| match (op, world_size as f64) {
            (ReduceOp::Sum, n) => x * n + n * (n - 1.0) / 2.0,
            (ReduceOp::Avg, n) => x + (n - 1.0) / 2.0,
            (ReduceOp::Max, n) => x + n - 1.0,
            (ReduceOp::Min, _) => x,
        };
        let expected: Vec<f64> = (0..2 * world_size).map(|i| reduced((2 * i + 1) as f64)).collect();
        let slice = &expected[2 * rank as usize..][..2];

        let (now, later) = (own(), own());
        group.all_reduce(&now, op).unwrap();
        group.all_reduce_async(&later, op).unwrap().wait().unwrap();
        assert_eq!(values(&now), expected, "all_reduce {op:?} {kind:?}");
        assert_eq!(values(&later), expected, "all_reduce_async {op:?} {kind:?}");

        let (now, later) = (empty(2, kind), empty(2, kind));
        group.reduce_scatter(&now, &own(), op).unwrap();
        group.reduce_scatter_async(&later, &own(), op).unwrap().wait().unwrap();
        assert_eq!(values(&now), slice, "reduce_scatter {op:?} {kind:?}");
        assert_eq!(values(&later), slice, "reduce_scatter_async {op:?} {kind:?}");
    }
}

fn movements(group: &ProcessGroup, kind: Kind) {
    let (rank, world_size) = (group.rank() as i64, group.world_size() as i64);
    // Rank r has [10 r, 10 r + 1, 10 r + 2].
    let shard = Tensor::arange(3, (kind, Device::Cpu)) + 10 * rank;
    let expected: Vec<f64> =
        (0..world_size).flat_map(|r| (0..3).map(move |i| (10 * r + i) as f64)).collect();
    let (now, later) = (empty(3 * world_size, kind), empty(3 * world_size, kind));
    group.all_gather_into(&now, &shard).unwrap();
    group.all_gather_into_async(&later, &shard).unwrap().wait().unwrap();
    assert_eq!(values(&now), expected, "all_gather_into {kind:?}");
    assert_eq!(values(&later), expected, "all_gather_into_async {kind:?}");
    // The whole may have any shape of that many elements.
    let rows = now.view([world_size, 3]).zeros_like();
    group.all_gather_into(&rows, &shard).unwrap();
    assert_eq!(values(&rows.flatten(0, 1)), expected);

    for root in 0..group.world_size() {
        let expected = &expected[3 * root..][..3];
        let (now, later) = (shard.copy(), shard.copy());
        group.broadcast(&now, root).unwrap();
        group.broadcast_async(&later, root).unwrap().wait().unwrap();
        assert_eq!(values(&now), expected, "broadcast {kind:?} from {root}");
        assert_eq!(values(&later), expected, "broadcast_async {kind:?} from {root}");
    }
    group.barrier().unwrap();
    group.barrier_async().unwrap().wait().unwrap();
}

/// A flag of any one rank is seen by all. Tells the cost of an answer, too.
fn agree(group: &ProcessGroup) {
    for setter in 0..group.world_size() {
        assert!(group.any(group.rank() == setter).unwrap());
    }
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..1000 {
        let started = Instant::now();
        assert!(!group.any(false).unwrap());
        times.push(started.elapsed());
    }
    times.sort();
    println!("an answer took {:?}, half of them less than {:?}", times[0], times[500]);
}

fn works(group: &ProcessGroup) {
    let other = 1.0 - group.rank() as f64;
    // One that cannot be done before the other rank has started it, too.
    if group.rank() == 1 {
        std::thread::sleep(Duration::from_millis(500));
    }
    let tensor = Tensor::from_slice(&[group.rank() as f32]);
    let work = group.all_reduce_async(&tensor, ReduceOp::Sum).unwrap();
    if group.rank() == 0 {
        assert!(!work.is_completed().unwrap(), "the other rank sleeps");
    }
    while !work.is_completed().unwrap() {
        std::thread::yield_now();
    }
    work.wait().unwrap();
    assert_eq!(values(&tensor), [1.0]);

    // Several at once, waited for in the opposite order.
    let tensors: Vec<Tensor> = (0..8).map(|i| Tensor::from_slice(&[i as f32, 1.0])).collect();
    let started: Vec<Work> =
        tensors.iter().map(|t| group.all_reduce_async(t, ReduceOp::Sum).unwrap()).collect();
    started.into_iter().rev().for_each(|work| work.wait().unwrap());
    for (i, tensor) in tensors.iter().enumerate() {
        assert_eq!(values(tensor), [2.0 * i as f64, 2.0]);
    }

    // The caller's last handle of the input goes away while 16 MiB are on their way.
    let input = Tensor::ones([4 << 20], (Kind::Float, Device::Cpu)) * group.rank() as f64;
    let output = Tensor::zeros([8 << 20], (Kind::Float, Device::Cpu));
    let work = group.all_gather_into_async(&output, &input).unwrap();
    drop(input);
    let _reuses_freed_memory = Tensor::full([4 << 20], 7.0, (Kind::Float, Device::Cpu));
    work.wait().unwrap();
    let theirs = output.chunk(2, 0).swap_remove(other as usize);
    assert_eq!(values(&theirs.min()), [other]);
    assert_eq!(values(&theirs.max()), [other]);
}

/// Rank 1 leaves at once; rank 0 expects to be told, within the timeout.
fn leave(group: &ProcessGroup) {
    if group.rank() == 1 {
        return;
    }
    let started = Instant::now();
    let tensor = Tensor::ones([4], (Kind::Float, Device::Cpu));
    let e = group.all_reduce(&tensor, ReduceOp::Sum).unwrap_err();
    assert_eq!(e.code(), Code::Dist);
    assert!(e.message().starts_with("all_reduce failed on rank 0 of 2: "), "{e}");
    assert!(!e.message().contains("Exception raised from"), "{e}");
    assert!(e.hints()[0].contains("another rank has stopped"));
    assert!(started.elapsed() < SHORT_TIMEOUT * 5, "took {:?}", started.elapsed());
}

/// Rank 1 is there, but never calls the collective that rank 0 has started.
fn late(group: &ProcessGroup) {
    if group.rank() == 1 {
        return std::thread::sleep(SHORT_TIMEOUT * 2);
    }
    let started = Instant::now();
    let work = group.barrier_async().unwrap();
    let e = work.wait().unwrap_err();
    let waited = started.elapsed();
    assert_eq!(e.code(), Code::Dist);
    assert!(e.message().starts_with("barrier failed on rank 0 of 2: "), "{e}");
    assert!(e.message().to_lowercase().contains("timed out"), "{e}");
    assert!(SHORT_TIMEOUT <= waited && waited < SHORT_TIMEOUT * 2, "waited {waited:?}");
}

fn empty(len: i64, kind: Kind) -> Tensor {
    Tensor::full([len], -1, (kind, Device::Cpu))
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(tensor.to_kind(Kind::Double).reshape([-1])).unwrap()
}

fn refused(connected: Result<ProcessGroup>) -> Error {
    connected.err().expect("a group that cannot be connected")
}

/// This test binary as a rank.
fn as_rank() -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "dist::rank", "--nocapture"]);
    command
}
