//! Adapters and frozen parameters on meshes: what they learn on one rank they learn on several.

use std::{fs, path::Path, process::Output};

use crate::support::{
    files::golden,
    program::{dsr, out, two_ranks},
};

const RECIPE: &str = r#"
param("base", "", "directory of the base");
param("data", "", "Parquet file with token rows");
param("quantize", "", "of the base");
param("dora", false, "with magnitudes");
param("freeze", "", "a pattern; there is an adapter without it");
param("save", "", "a module that is trained as it is");
param("stages", 1, "of a pipeline");
param("shares", 1, "ranks of a layer");
param("steps", 2, "optimizer steps");

let model = load_model(P::base, if P::quantize == "" { #{} } else { #{ quantize: P::quantize } });
let settings = #{
    micro_batch_size: 2,
    gradient_accumulation_steps: 2,
    optimizer: #{ type: "AdamW", lr: 5e-3 },
    pipeline: #{ stages: P::stages },
    tensor_parallel: #{ autotp_size: P::shares },
};
if P::freeze != "" {
    settings.freeze = [P::freeze];
} else {
    let saved = if P::save == "" { [] } else { [P::save] };
    model.lora(#{
        r: 4, lora_alpha: 8, target_modules: "all-linear", use_dora: P::dora, modules_to_save: saved,
    });
}
let engine = init_engine(model, settings);
let rows = dataset(P::data);
let loader = rows.loader(#{ micro_batch_size: 2, endless: true });
let run = start_run(engine, loader, #{ total_steps: P::steps, name: "r" });
while run.train_batch() { print(engine.loss); }
run.finish();
let model = engine.model;
print(engine.grad_norm);
print(engine.evaluate(rows.take(3)).loss);
let last = || model.logits(tensor([[3, 4, 5, 6]])).select(1, 3).mean().item();
print(last.call());
if P::freeze == "" {
    print(model.disable_adapter(last));
    model.export_adapter("adapter");
}
model.export_hf("merged");
"#;

/// What one rank did with these parameters, and what two did with a mesh as well.
struct Both {
    one: tempfile::TempDir,
    two: tempfile::TempDir,
    told: [String; 2],
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("r.rhai"), RECIPE).unwrap();
    folder
}

fn arguments(base: &str, params: &[&str]) -> Vec<String> {
    let base = format!("base={}", golden("families").join(base).display());
    let data = format!("data={}", golden("tokens-v512.parquet").display());
    let given = [&base[..], &data].into_iter().chain(params.iter().copied());
    let read = format!("--allow-read={}", golden("").display());
    let words = given.flat_map(|param| ["-p".to_owned(), param.to_owned()]);
    ["run".to_owned(), "r.rhai".to_owned(), read].into_iter().chain(words).collect()
}

fn on_one(dir: &Path, args: &[String]) -> Output {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    dsr(dir, &args).env("OMP_NUM_THREADS", "1").output().unwrap()
}

fn on_two(dir: &Path, args: &[String]) -> String {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    values(&two_ranks(dir, &args)[0])
}

/// The numbers that were printed; a resumed run says more.
fn values(output: &Output) -> String {
    let text = out(output);
    let numbers = text.lines().filter(|line| line.parse::<f64>().is_ok());
    numbers.collect::<Vec<_>>().join("\n")
}

impl Both {
    fn run(base: &str, params: &[&str], mesh: &str) -> Self {
        let (one, two) = (folder(), folder());
        let of_one = values(&on_one(one.path(), &arguments(base, params)));
        let with_mesh = [params, &[mesh]].concat();
        let of_two = on_two(two.path(), &arguments(base, &with_mesh));
        Self { one, two, told: [of_one, of_two] }
    }

    /// The bytes of a file that both wrote.
    fn files(&self, name: &str) -> [Vec<u8>; 2] {
        [&self.one, &self.two].map(|dir| fs::read(dir.path().join(name)).unwrap())
    }

    /// Numbers of sums in another order: within 2e-6 of values of up to 7.
    fn assert_close(&self) {
        let [one, two] = self
            .told
            .each_ref()
            .map(|told| told.lines().map(|line| line.parse::<f64>().unwrap()).collect::<Vec<_>>());
        assert!(one.len() > 4 && one.len() == two.len(), "{:?}", self.told);
        for (one, two) in one.iter().zip(&two) {
            assert!((one - two).abs() < 2e-6, "{one} is not {two}");
        }
    }
}

const ADAPTER: &str = "adapter/adapter_model.safetensors";
const MERGED: &str = "merged/model.safetensors";

/// To the bit: stages make the same operations in the same order. The last case leaves nothing to train in
/// the first stage.
#[test]
fn stages_train_what_one_rank_trains() {
    for params in [&["save=lm_head"][..], &["quantize=nf4"], &["dora=true"], &["freeze=model.*"]] {
        let both = Both::run("llama-gqa", params, "stages=2");
        assert_eq!(both.told[0], both.told[1], "{params:?}");
        let files =
            if params[0].starts_with("freeze") { &[MERGED][..] } else { &[ADAPTER, MERGED] };
        for file in files {
            let [one, two] = both.files(file);
            assert!(one == two, "{params:?}: {file} differs");
        }
    }
}

#[test]
fn ranks_that_share_layers_train_what_one_rank_trains() {
    for (base, params) in [
        ("llama-gqa", &["save=lm_head"][..]),
        ("gpt2-wide", &[]),
        ("bloom-h4", &[]),
        ("llama-gqa", &["freeze=model.layers.0.*"]),
    ] {
        let both = Both::run(base, params, "shares=2");
        both.assert_close();
        let [one, two] = both.files(MERGED);
        assert_eq!(one.len(), two.len(), "{base}");
    }
}

/// A checkpoint of two ranks that share layers goes on on two stages, and from there on one rank.
#[test]
fn a_checkpoint_of_an_adapter_goes_from_mesh_to_mesh() {
    let (straight, moved) = (folder(), folder());
    let params = |steps: &'static str| arguments("llama-gqa", &["save=lm_head", steps]);
    let expected = values(&on_one(straight.path(), &params("steps=3")));
    let with = |steps: &'static str, mesh: &[&str], resume: bool| {
        let mesh = mesh.iter().map(|word| (*word).to_owned());
        let resume = resume.then(|| ["--resume", "auto"].map(str::to_owned));
        params(steps)
            .into_iter()
            .chain(mesh)
            .chain(resume.into_iter().flatten())
            .collect::<Vec<_>>()
    };
    on_two(moved.path(), &with("steps=1", &["-p", "shares=2"], false));
    on_two(moved.path(), &with("steps=2", &["-p", "stages=2"], true));
    let found = values(&on_one(moved.path(), &with("steps=3", &[], true)));
    let last =
        |told: &str| told.lines().rev().take(5).map(|x| x.parse().unwrap()).collect::<Vec<f64>>();
    for (found, expected) in last(&found).iter().zip(last(&expected)) {
        assert!((found - expected).abs() < 2e-6, "{found} is not {expected}");
    }
}

/// No rank has the whole model.
#[test]
fn a_merge_on_a_mesh_is_refused() {
    let dir = folder();
    let recipe = RECIPE.replace("model.export_hf(\"merged\");", "model.merge();");
    fs::write(dir.path().join("r.rhai"), recipe).unwrap();
    let args = arguments("llama-gqa", &["stages=2"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = &two_ranks(dir.path(), &args)[0];
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("whose ranks have parts of it"), "{said}");
    assert!(said.contains("export_hf writes the model with its adapter merged"), "{said}");
}

/// What looks at whole matrices is refused before anything is loaded.
#[test]
fn what_needs_whole_matrices_is_refused() {
    for params in [["dora=true", "shares=2"], ["quantize=nf4", "shares=2"]] {
        let dir = folder();
        let args = arguments("llama-gqa", &params);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = &two_ranks(dir.path(), &args)[0];
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("DoRA and quantized bases look at whole matrices"), "{said}");
    }
}
