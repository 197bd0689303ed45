//! `--device` and `DSR_DEVICE`: which device a command computes on, and those that are not there.

use std::{path::Path, process::Output};

use dsr::tensor::{cuda_device_count, cuda_is_available};

use crate::support::{
    program::{dsr, out, text},
    ranks,
};

const RECIPE: &str = r#"
let model = new_model("gpt2", #{ n_layer: 1, n_head: 1, n_embd: 4, n_positions: 4, vocab_size: 5 });
print(model.logits(tensor([[0]])).device);
"#;

/// A directory with the recipe.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("r.rhai"), RECIPE).unwrap();
    folder
}

fn run(dir: &Path, args: &[&str]) -> Output {
    dsr(dir, args).output().unwrap()
}

fn gpus() -> usize {
    if cuda_is_available() { cuda_device_count() } else { 0 }
}

#[test]
fn the_cpu_is_always_there() {
    let folder = folder();
    let commands: [&[&str]; 4] = [
        &["run", "r.rhai", "--device", "cpu"],
        &["run", "r.rhai", "--device=cpu"],
        &["launch", "--device", "cpu", "r.rhai"],
        &["eval", "--device", "cpu", "zeros([2]).device"],
    ];
    for command in commands {
        assert_eq!(out(&run(folder.path(), command)).trim(), "cpu", "{command:?}");
    }
    let planned = out(&run(folder.path(), &["plan", "gpt2_loop", "--device", "cpu"]));
    assert!(planned.contains("on the CPU here"), "{planned}");
}

#[test]
fn the_variable_says_the_same_and_the_flag_wins() {
    let folder = folder();
    let with = |variable: &str, args: &[&str]| {
        dsr(folder.path(), args).env("DSR_DEVICE", variable).output().unwrap()
    };
    assert_eq!(out(&with("cpu", &["run", "r.rhai"])), "cpu\n");
    assert_eq!(out(&with("cuda:99", &["run", "r.rhai", "--device", "cpu"])), "cpu\n");
    let refused = with("cuda:99", &["run", "r.rhai"]);
    assert!(text(&refused.stderr).contains("--device cuda:99"), "{}", text(&refused.stderr));
    // What is planned for is elsewhere then.
    let args = ["plan", "gpt2_loop", "--gpu", "H100"];
    assert!(out(&with("cpu", &args)).contains("on H100, 79.1 GiB"));
    let refused = with("gpu", &["plan", "gpt2_loop"]);
    let error = text(&refused.stderr);
    assert!(error.contains("DSR_DEVICE is \"gpu\": a device is cpu, cuda or cuda:N"), "{error}");
}

#[test]
fn a_device_that_is_not_there_is_refused_before_anything_runs() {
    let folder = folder();
    let commands: [&[&str]; 5] =
        [&["run", "r.rhai"], &["launch", "r.rhai"], &["plan", "r.rhai"], &["eval", "1"], &["repl"]];
    let missing = format!("cuda:{}", gpus());
    for command in commands {
        let output = run(folder.path(), &[command, &["--device", &missing]].concat());
        let (printed, error) = (text(&output.stdout), text(&output.stderr));
        assert_eq!((output.status.code(), printed.as_str()), (Some(2), ""), "{command:?}: {error}");
        let expected = format!("error[E105]: --device {missing}: there ");
        assert!(error.starts_with(&expected), "{command:?}: {error}");
    }
    let output = run(folder.path(), &["run", "r.rhai", "--device", "gpu"]);
    let error = text(&output.stderr);
    assert!(error.contains("a device is cpu, cuda or cuda:N, such as cuda:0"), "{error}");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn without_a_gpu_the_error_says_why_there_is_none() {
    if gpus() > 0 {
        return println!("skipped: there is a GPU");
    }
    let folder = folder();
    let output = run(folder.path(), &["run", "r.rhai", "--device", "cuda"]);
    let error = text(&output.stderr);
    let reasons = ["a libtorch for the CPU", "no NVIDIA driver is loaded", "CUDA sees no device"];
    assert!(error.starts_with("error[E105]: --device cuda: there is no GPU here\n"), "{error}");
    assert!(reasons.iter().any(|reason| error.contains(reason)), "{error}");
}

#[test]
fn several_ranks_have_no_gpu_by_its_number() {
    let folder = folder();
    let expected = "error[E105]: --device cuda:0 is one GPU, for 2 processes on a machine\n";
    let args = ["launch", "--nproc-per-node", "2", "--device", "cuda:0", "r.rhai"];
    let output = run(folder.path(), &args);
    assert!(text(&output.stderr).starts_with(expected), "{}", text(&output.stderr));
    for rank in ranks::run(2, || dsr(folder.path(), &["run", "r.rhai", "--device", "cuda:0"])) {
        assert!(text(&rank.stderr).starts_with(expected), "{}", text(&rank.stderr));
    }
}

#[test]
fn a_recipe_that_is_kept_to_the_cpu_makes_no_tensor_elsewhere() {
    let folder = folder();
    let args = ["eval", "--device", "cpu", "zeros([2], #{ device: \"cuda\" })"];
    let output = run(folder.path(), &args);
    let error = text(&output.stderr);
    assert!(error.contains("there is no device \"cuda\""), "{error}");
}

#[test]
fn the_gpu_is_the_default_where_there_is_one() {
    if gpus() == 0 {
        return println!("skipped: no CUDA device");
    }
    let folder = folder();
    for (variable, last) in [("", 0), ("cuda", 0), (&format!("cuda:{}", gpus() - 1), gpus() - 1)] {
        let mut command = dsr(folder.path(), &["run", "r.rhai"]);
        let printed = out(&command.env("DSR_DEVICE", variable).output().unwrap());
        assert_eq!(printed, format!("cuda:{last}\n"));
    }
}
