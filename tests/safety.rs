//! Wrong recipes: each asks for what it was not given or for more than there is, or brings a
//! poisoned file, and ends with one error of the expected code.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use dsr::{
    error::Code,
    permission::Scope,
    recipe::Failure,
    script::{Host, Session},
};

use crate::support::{self, recipe::Recipe};

mod files;
mod limits;
mod net;
mod own_work;
mod paths;
mod program;
mod runs;
mod share;
mod shipped_links;
mod strangers;

/// A recipe's directory with a home and a directory that it was not given beside it.
struct Place {
    recipe: Recipe,
    /// `OUT` in a recipe: a directory of somebody else.
    out: tempfile::TempDir,
    /// `HOME` in a recipe.
    home: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            recipe: Recipe::new(""),
            out: tempfile::tempdir().unwrap(),
            home: tempfile::tempdir().unwrap(),
        };
        for file in ["rows.txt", "d/rows.txt", "m/config.json", "evil.rhai", "merges.txt"] {
            write(&place.out.path().join(file), "1\n");
        }
        for file in [".ssh/id.txt", ".aws/credentials.txt", ".netrc"] {
            write(&place.home.path().join(file), "1\n");
        }
        write(&place.home.path().join(".config/dsr/trust.toml"), "# Nothing.\n");
        let own = place.recipe.directory();
        for file in ["rows.txt", "sub/rows.txt", ".hidden/rows.txt", "data/1.txt", "vocab.json"] {
            write(&own.join(file), "1\n");
        }
        let out = place.out.path();
        symlink(out, own.join("link")).unwrap();
        symlink(out.join("rows.txt"), own.join("link.txt")).unwrap();
        symlink(out.join("none"), own.join("nowhere")).unwrap();
        symlink("loop", own.join("loop")).unwrap();
        symlink(out.join("rows.txt"), own.join("data/2.txt")).unwrap();
        symlink("rows.txt", own.join("fine.txt")).unwrap();
        place
    }

    fn text(&self, recipe: &str) -> String {
        let out = self.out.path().display().to_string();
        recipe.replace("OUT", &out).replace("HOME", &self.home.path().display().to_string())
    }

    /// How the recipe ends, in a host that `prepare` has changed.
    fn run(&self, recipe: &str, prepare: impl FnOnce(&mut Host)) -> Result<(), Failure> {
        self.recipe.file("recipe.rhai", &self.text(recipe));
        let home = self.home.path().display().to_string();
        let (_, result) = self.recipe.run(|mut host| {
            host.workspace.rights.env =
                Box::new(move |name| (name == "HOME").then(|| home.clone()));
            prepare(&mut host);
            Session::new(host)
        });
        result
    }
}

fn write(path: &Path, text: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Runs each recipe; all that end otherwise than with their code are shown together.
fn assert_codes(place: &Place, table: &[(&str, Code)]) {
    let mut wrong = Vec::new();
    for (recipe, expected) in table {
        let shown = recipe.chars().take(120).collect::<String>();
        match place.run(recipe, |_| ()) {
            Ok(()) => wrong.push(format!("{shown}\n    ended well, expected {expected:?}")),
            Err(failure) if failure.code() != *expected => {
                wrong.push(format!(
                    "{shown}\n    {:?}, expected {expected:?}",
                    failure.faults[0].error
                ));
            }
            Err(failure) => {
                let fault = &failure.faults[0];
                if fault.error.message().contains("panicked") {
                    wrong.push(format!("{shown}\n    a panic: {:?}", fault.error));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
