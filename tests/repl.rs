//! A session: scripts on standard input, and the terminal itself through a pseudo-terminal.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Output, Stdio},
};

use crate::support::{program::command, terminal::Terminal};

mod completion;
mod editing;
mod looking;
mod stopping;

/// Runs `dsr` with `input` on its standard input.
fn fed(dir: &Path, args: &[&str], input: &str) -> Output {
    let mut child = command()
        .args(args)
        .current_dir(dir)
        .env("HOME", dir)
        .env("HF_HUB_OFFLINE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What a script that works prints.
fn printed(input: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let output = fed(dir.path(), &["repl"], input);
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).to_owned()
}

#[test]
fn a_script_runs_without_decoration() {
    let script = "let x = 2;\nx * 21\nfn twice(n) {\n    n * 2\n}\ntwice(x)\nlet y = twice(5)\nprint(\"said\");\n";
    assert_eq!(printed(script), "42\n4\n10\nsaid\n");
}

#[test]
fn a_script_ends_at_its_first_error() {
    let dir = tempfile::tempdir().unwrap();
    let output = fed(dir.path(), &["repl"], "1 + 1\nlet x = 3;\nx.lenn()\n5\n");
    assert_eq!(text(&output.stdout), "2\n");
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(error.contains("error[E110]: unknown function `lenn`"), "{error}");
    assert!(
        error.contains(",-[ <repl:3>:1:3 ]") && error.contains("did you mean `len`?"),
        "{error}"
    );
    assert!(!error.contains('\x1b'), "{error}");
}

#[test]
fn eval_prints_one_value() {
    let dir = tempfile::tempdir().unwrap();
    let of = |expression: &str| {
        let output = fed(dir.path(), &["eval", expression], "");
        (text(&output.stdout).to_owned(), output.status.code().unwrap())
    };
    assert_eq!(of("let a = [1, 2]; a.len() + 0.5"), ("2.5\n".to_owned(), 0));
    assert_eq!(of("\"text\""), ("text\n".to_owned(), 0));
    assert_eq!(of("let a = 1;"), (String::new(), 0));
    assert_eq!(of("nothing()").1, 2);
}

#[test]
fn variables_functions_imports_and_parameters_stay() {
    let script = "\
import \"dsr:metrics\" as metrics;
const N = 3;
fn n() { global::N + 1 }
param(\"steps\", 5, \"how many\");
fn p() { P::steps }
let add = |x| x + N;
n() + p()
add.call(1)
metrics::perplexity(0.0)
param(\"steps\", 6);
P::steps
p()
";
    assert_eq!(printed(script), "9\n4\n1.0\n6\n6\n");
}

#[test]
fn a_failed_input_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // A script would end at the error: it is caught by a session on a terminal, or here by hand.
    let mut terminal = Terminal::session(dir.path(), &[]);
    terminal.enter("let a = [1]; let n = 1; let inc = || n += 1; fn f() { 1 }");
    let error = terminal.enter("let b = 2; a.push(5); n = 9; inc.call(); fn f() { 2 } fn g() { 3 } param(\"q\", 1); throw \"no\"");
    assert!(error.contains("error[E111]: no") && error.contains("<repl:2>"), "{error}");
    assert!(terminal.enter("[a, n, f()]").ends_with("[[1], 1, 1]"));
    for gone in ["b", "g()", "P::q"] {
        let error = terminal.enter(gone);
        assert!(error.contains("error["), "{gone}: {error}");
    }
    assert!(terminal.enter("a.len").ends_with('1'));
}

#[test]
fn an_error_in_a_function_shows_the_input_that_defined_it() {
    let dir = tempfile::tempdir().unwrap();
    let output =
        fed(dir.path(), &["repl"], "fn broken(x) {\n    x / 0\n}\nlet y = 1;\nbroken(y)\n");
    let error = text(&output.stderr);
    assert!(error.contains(",-[ <repl:1>:2:7 ]"), "{error}");
    assert!(error.contains("in `broken`, called at <repl:3>:1:1"), "{error}");
}

#[test]
fn several_ranks_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let output = command()
        .arg("repl")
        .current_dir(dir.path())
        .envs([("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")])
        .envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29511")])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(error.contains("a session is for one process, and this is one of 2"), "{error}");
}

#[test]
fn a_loaded_recipe_has_its_parameters() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("r.rhai"), "param(\"n\", 1, \"count\");\nlet twice = P::n * 2;\n")
        .unwrap();
    let output = fed(dir.path(), &["repl", "--load", "r.rhai", "-p", "n=4"], "twice\nP::n\n");
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("8\n4\n", ""));
    let output = fed(dir.path(), &["repl", "-p", "n=4"], "");
    assert_eq!(output.status.code(), Some(2));
}

/// A session is written as a recipe that `dsr check` accepts and `dsr run` repeats.
#[test]
fn a_saved_session_runs_as_a_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let script = "\
param(\"n\", 2, \"count\", #{ min: 0 });
let x = 1
fn f(a) { a }
:seed 7
let t = randn([2])
x + 1
fn f(a) { a + P::n }
let y = f(x);
print(`${y} ${t.sum().item()}`);
:save s.rhai
";
    let output = fed(dir.path(), &["repl"], script);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let shown =
        text(&output.stdout).lines().find(|line| line.starts_with("3 ")).unwrap().to_owned();
    let check = fed(dir.path(), &["check", "s.rhai"], "");
    assert!(check.status.success(), "{}{}", text(&check.stdout), text(&check.stderr));
    let run = fed(dir.path(), &["run", "s.rhai"], "");
    assert_eq!(text(&run.stdout).trim_end(), shown, "{}", text(&run.stderr));
    // Its own file is written again, another is not.
    assert!(fed(dir.path(), &["repl"], "let a = 1;\n:save s.rhai\n").status.success());
    fs::write(dir.path().join("mine.rhai"), "let x = 1;").unwrap();
    let refused = fed(dir.path(), &["repl"], "let a = 1;\n:save mine.rhai\n");
    assert_eq!(refused.status.code(), Some(4));
    assert!(text(&refused.stderr).contains(":save --force"), "{}", text(&refused.stderr));
    assert!(fed(dir.path(), &["repl"], "let a = 1;\n:save --force mine.rhai\n").status.success());
    assert!(fs::read_to_string(dir.path().join("mine.rhai")).unwrap().contains("let a = 1;"));
}

/// Two directories that each have a module of the same name.
#[test]
fn a_loaded_recipe_imports_from_its_own_directory() {
    let dir = tempfile::tempdir().unwrap();
    for (name, value) in [("a", 1), ("b", 2)] {
        let own = dir.path().join(name);
        fs::create_dir(&own).unwrap();
        fs::write(own.join("part.rhai"), format!("fn value() {{ {value} }}\n")).unwrap();
        let recipe = format!("import \"part\" as part;\nlet {name} = part::value();\n");
        fs::write(own.join("r.rhai"), recipe).unwrap();
    }
    fs::write(dir.path().join("wrong.rhai"), "import \"part\" as part;\n").unwrap();
    let script = ":load a/r.rhai\na\n:load b/r.rhai\nb\npart::value()\nimport \"part\" as again;\nagain::value()\n";
    let output = fed(dir.path(), &["repl"], script);
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("1\n2\n2\n2\n", ""));
    let output = fed(dir.path(), &["repl"], ":load wrong.rhai\n");
    assert!(text(&output.stderr).contains("there is no file"), "{}", text(&output.stderr));

    // What is saved imports from its own directory too.
    let output = fed(dir.path(), &["repl"], ":load a/r.rhai\n:save s.rhai\n");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains(":save a/s.rhai"), "{}", text(&output.stderr));
    assert!(!dir.path().join("s.rhai").exists());
    assert!(fed(dir.path(), &["repl"], ":load a/r.rhai\n:save a/s.rhai\n").status.success());
    assert!(fed(dir.path(), &["check", "a/s.rhai"], "").status.success());
}
