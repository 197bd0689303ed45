//! Builds the C++ bridge against the libtorch that tch uses, and links libtorch's shared libraries.
//!
//! libtorch is found as torch-sys finds it: `LIBTORCH`, which `.cargo/config.toml` sets to the
//! directory that `make libtorch` fills. For a CUDA libtorch the bridge is built with NCCL as well,
//! which needs CUDA's and NCCL's headers. It downloads nothing.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

const NATIVE: &str = "src/bridge/native";

fn main() {
    match Libtorch::find() {
        Ok(libtorch) => {
            compile(&libtorch);
            link(&libtorch);
        }
        // cargo shows it and counts this script as failed.
        Err(message) => println!("cargo::error={message}"),
    }
}

/// Where libtorch is, and what it was built for.
struct Libtorch {
    lib: PathBuf,
    /// Where headers are: libtorch's own and, with CUDA, those of CUDA and NCCL.
    includes: Vec<PathBuf>,
    cuda: bool,
}

impl Libtorch {
    fn find() -> Result<Self, String> {
        if var("LIBTORCH_USE_PYTORCH").is_some() {
            return Err("LIBTORCH_USE_PYTORCH is not supported: set LIBTORCH to the directory of \
                        the torch package, or unset both and run `make libtorch`"
                .into());
        }
        let root = var("LIBTORCH").unwrap_or_else(|| "libtorch".into());
        let include = var("LIBTORCH_INCLUDE").unwrap_or_else(|| root.clone()).join("include");
        let lib = var("LIBTORCH_LIB").unwrap_or_else(|| root.clone()).join("lib");
        let header = include.join("torch/csrc/distributed/c10d/Backend.hpp");
        for needed in [&header, &lib.join("libtorch_cpu.so")] {
            if !needed.is_file() {
                return Err(format!(
                    "no libtorch: {} does not exist; run `make libtorch`, or set LIBTORCH to a \
                     libtorch 2.13.0",
                    needed.display()
                ));
            }
        }
        // The linker and the dynamic loader need a path that holds in every working directory.
        let lib = lib.canonicalize().map_err(|e| format!("{}: {e}", lib.display()))?;
        println!("cargo:rerun-if-changed={}", lib.join("libtorch_cpu.so").display());
        let cuda = lib.join("libtorch_cuda.so").is_file();
        let mut includes = vec![include.join("torch/csrc/api/include"), include];
        if cuda {
            includes.extend(cuda_includes(&root)?);
        }
        Ok(Self { lib, includes, cuda })
    }
}

/// The directories of CUDA's and NCCL's headers: fetched with libtorch, or of an installed toolkit.
fn cuda_includes(root: &Path) -> Result<Vec<PathBuf>, String> {
    let toolkits = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(|name| var(name));
    let places: Vec<PathBuf> = [root.join("cuda")]
        .into_iter()
        .chain(toolkits)
        .chain(["/usr/local/cuda", "/usr"].map(PathBuf::from))
        .map(|place| place.join("include"))
        .collect();
    let mut includes = Vec::new();
    for header in ["cuda_runtime_api.h", "nccl.h"] {
        let Some(place) = places.iter().find(|place| place.join(header).is_file()) else {
            return Err(format!(
                "libtorch has CUDA, but {header} is missing; `scripts/fetch-libtorch.sh cuda` \
                 fetches it, or set CUDA_HOME to a CUDA 13.0 toolkit that has NCCL's headers"
            ));
        };
        includes.push(place.clone());
        // CUDA 13 keeps libcu++, which its own headers include, one level down.
        includes.extend(Some(place.join("cccl")).filter(|cccl| cccl.is_dir()));
    }
    includes.dedup();
    Ok(includes)
}

/// Compiles every C++ file of the bridge into one static library.
fn compile(libtorch: &Libtorch) {
    println!("cargo:rerun-if-changed={NATIVE}");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .pic(true)
        .flag("-std=c++20")
        // libtorch's loops over threads are made where they are used.
        .flag("-fopenmp")
        // Kernels of its own are as fast in every profile.
        .opt_level(3)
        .flag("-Wall")
        .flag("-Wextra")
        .include(NATIVE)
        .include(format!("{NATIVE}/gloo_fwd"))
        // As libtorch was built: it decides the layout of some of its classes.
        .define("NDEBUG", None)
        .define("USE_DISTRIBUTED", None)
        .define("DSR_VERSION", concat!("\"", env!("CARGO_PKG_VERSION"), "\""))
        .define("USE_C10D_GLOO", None)
        .files(sources());
    // As system headers, so that only our own code is warned about.
    for include in &libtorch.includes {
        build.flag("-isystem").flag(include.display().to_string());
    }
    if libtorch.cuda {
        build.define("USE_C10D_NCCL", None).define("DSR_CUDA", None);
    }
    build.compile("dsr_bridge");
}

fn sources() -> Vec<PathBuf> {
    let directory = Path::new(NATIVE);
    let entries = fs::read_dir(directory).expect("the bridge's directory is part of the package");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a directory that was opened can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cpp"))
        .collect();
    // Directory order is not stable; a stable order keeps builds the same.
    files.sort();
    files
}

/// Where an installed program finds libtorch; `scripts/install.sh` puts it there.
const INSTALLED: &str = "$ORIGIN/../lib/dsr";

/// Links libtorch's libraries. The program looks for them beside itself first, and then where they
/// were found for this build.
fn link(libtorch: &Libtorch) {
    let lib = libtorch.lib.display();
    println!("cargo:rustc-link-search=native={lib}");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{INSTALLED}:{lib}");
    // Libraries that register kernels when they are loaded have no symbol that we call.
    println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
    // The one that libtorch itself uses: two would have threads each.
    let openmp = fs::read_dir(&libtorch.lib).into_iter().flatten().flatten();
    let mut openmp = openmp.filter_map(|entry| entry.file_name().into_string().ok());
    let openmp = openmp.find(|name| name.starts_with("libgomp"));
    println!("cargo:rustc-link-arg=-l{}", openmp.map_or("gomp".into(), |name| format!(":{name}")));
    let cuda: &[&str] = if libtorch.cuda { &["torch_cuda", "c10_cuda"] } else { &[] };
    for name in ["torch_cpu", "c10"].iter().chain(cuda) {
        println!("cargo:rustc-link-arg=-l{name}");
    }
}

/// A path in the environment; cargo runs this script again when it changes.
fn var(name: &str) -> Option<PathBuf> {
    println!("cargo:rerun-if-env-changed={name}");
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}
