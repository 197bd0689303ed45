//! The README and the book in `docs/`: every command and every recipe in them runs, page by page, as
//! a reader would copy them.
//!
//! ```` ```rhai ```` is a recipe; where its first line is a file name, `// mine.rhai`, it is written
//! there and checked, for the commands below it. ```` ```sh ```` runs in bash. ```` ```console ````
//! has commands behind `$ ` with the output that follows them, in which `...` stands for lines and
//! `[..]` for characters. `ignore` after the language leaves a block out: what takes a GPU, other
//! machines, the real hub or minutes.

use std::{fs, path::Path, process::Command};

use page::Page;

use crate::support::{
    files::repository,
    program::{DEVICE, dsr, out},
};

mod blocks;
mod page;

/// A test for each page, which runs its blocks.
macro_rules! pages {
    ($($test:ident: $file:literal),* $(,)?) => {
        const PAGES: &[&str] = &[$($file),*];

        $(#[test]
        fn $test() {
            Page::new($file).run();
        })*
    };
}

pages! {
    the_readme: "README.md",
    install: "docs/src/install.md",
    rhai: "docs/src/rhai.md",
    data: "docs/src/data.md",
    models: "docs/src/models.md",
    training: "docs/src/training.md",
    runs: "docs/src/runs.md",
    generation: "docs/src/generation.md",
    memory: "docs/src/memory.md",
    sparse: "docs/src/sparse.md",
    launch: "docs/src/launch.md",
    deepspeed: "docs/src/deepspeed.md",
    repl: "docs/src/repl.md",
    permissions: "docs/src/permissions.md",
    sharing: "docs/src/sharing.md",
    editors: "docs/src/editors.md",
    errors: "docs/src/errors.md",
    embedding: "docs/src/embedding.md",
    examples: "examples/README.md",
    from_deepspeed: "examples/from_deepspeed/README.md",
    two_machines: "examples/two_machines/README.md",
    editors_of_the_examples: "examples/editors/README.md",
}

/// Pages that are made from something else, which has tests of its own.
const MADE: &[&str] = &["docs/src/SUMMARY.md", "docs/src/reference.md", "docs/src/architecture.md"];

/// Where pages are.
const DIRECTORIES: [&str; 5] = [
    "docs/src",
    "examples",
    "examples/editors",
    "examples/from_deepspeed",
    "examples/two_machines",
];

/// The Markdown files in these directories, from the root of the repository.
fn markdown(directories: &[&str]) -> Vec<String> {
    let files = |directory: &&str| {
        let entries = fs::read_dir(repository().join(directory)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let pages = names.filter(|name| Path::new(name).extension().is_some_and(|end| end == "md"));
        pages.map(|name| format!("{directory}/{name}")).collect::<Vec<_>>()
    };
    let mut all: Vec<String> = directories.iter().flat_map(files).collect();
    all.sort();
    all
}

#[test]
fn every_page_is_run_and_stands_in_the_contents() {
    let contents = fs::read_to_string(repository().join("docs/src/SUMMARY.md")).unwrap();
    for file in markdown(&DIRECTORIES) {
        let is_known = PAGES.contains(&file.as_str()) || MADE.contains(&file.as_str());
        assert!(is_known, "{file} is in no test");
        let Some(name) = file.strip_prefix("docs/src/") else { continue };
        assert!(name == "SUMMARY.md" || contents.contains(&format!("({name})")), "{file}");
    }
}

/// A link leads to a file of the repository, or out of it.
#[test]
fn no_link_is_dead() {
    let mut files = markdown(&DIRECTORIES);
    files.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"].map(String::from));
    let mut dead = Vec::new();
    for file in files {
        let path = repository().join(&file);
        for link in blocks::links(&fs::read_to_string(&path).unwrap()) {
            let target = link.split('#').next().unwrap_or_default();
            let is_file = target.is_empty() || path.parent().unwrap().join(target).exists();
            if !link.contains("://") && !is_file {
                dead.push(format!("{file}: {link}"));
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
}

#[test]
fn the_readme_is_short() {
    let readme = fs::read_to_string(repository().join("README.md")).unwrap();
    assert!(
        readme.lines().count() <= 150,
        "{} lines: the rest is for docs/",
        readme.lines().count()
    );
}

/// The reference in the book is what `dsr doc --all` prints; `DSR_UPDATE_DOCS=1` writes it.
#[test]
fn the_reference_is_current() {
    let file = repository().join("docs/src/reference.md");
    let reference = out(&dsr(repository(), &["doc", "--all"]).output().unwrap());
    if std::env::var_os("DSR_UPDATE_DOCS").is_some() {
        fs::write(&file, &reference).unwrap();
    }
    let known = fs::read_to_string(&file).unwrap_or_default();
    assert!(known == reference, "{}: write it again with DSR_UPDATE_DOCS=1", file.display());
}

/// dsr as a library: `examples/embed.rs`, built by `cargo test`.
#[test]
fn a_program_embeds_dsr() {
    let program = Path::new(env!("CARGO_BIN_EXE_dsr")).with_file_name("examples").join("embed");
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(&program);
    command.env(DEVICE.0, &DEVICE.1).current_dir(dir.path());
    let printed = out(&command.output().expect("cargo build --release --examples builds it"));
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 3, "{printed}");
    assert!(lines[2].starts_with("step 3: loss 10."), "{printed}");
}
