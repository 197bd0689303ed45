//! Tells the fuzzers where libtorch is when they run: the arguments that `dsr` links with are only for
//! its own programs.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let lib = PathBuf::from(env::var_os("LIBTORCH").unwrap_or_default()).join("lib");
    match lib.canonicalize() {
        Ok(lib) => println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display()),
        Err(e) => println!("cargo::error={}: {e}", lib.display()),
    }
}
