//! Cards, curves, commands, permissions; and the screens that the documentation shows.

use std::{fs, path::Path};

use crate::support::terminal::{ENTER, TAB, Terminal};

const MODEL: &str =
    "let model = new_model(\"gpt2\", #{ n_layer: 4, n_head: 2, n_embd: 32, n_positions: 64 })";

fn printed(input: &str) -> String {
    super::printed(input)
}

#[test]
fn every_value_has_a_card() {
    let tensor = printed("tensor([[1, 2], [3, 4]])\nones([100, 100]) * 0.5\n");
    let expected = "\
Tensor int64 [2, 2] on cpu
  min 1   mean 2.5000   max 4
[[1, 2],
 [3, 4]]
Tensor float32 [100, 100] on cpu
  min 0.5000   mean 0.5000   max 0.5000
[[0.5000, 0.5000, 0.5000, ...],
 [0.5000, 0.5000, 0.5000, ...],
 [0.5000, 0.5000, 0.5000, ...],
 ...]
";
    assert_eq!(tensor, expected);
    let model = printed(MODEL);
    for expected in ["Model gpt2", "memory 6.3 MiB", "h.0 .. h.3", "4 x 12,704"] {
        assert!(model.contains(expected), "{expected}\n{model}");
    }
    let dataset = printed("dataset(\"dsr:austen\")");
    for expected in ["Dataset dsr:austen [train]", "rows 9,350", "columns text: string", "  0  \""]
    {
        assert!(dataset.contains(expected), "{expected}\n{dataset}");
    }
    let long = printed("let a = []; for i in 0..1000 { a.push(i); } a\n");
    assert!(long.contains("array of 1000 numbers") && long.contains("... 980 more"), "{long}");
    let map = printed("#{ a: 1, b: [1, 2], c: \"text\", d: |x| x }");
    assert_eq!(map, "#{ a: 1, b: [1, 2], c: \"text\", d: function }\n");
}

#[test]
fn commands_tell_what_there_is() {
    let script = "\
let x = 3;
let t = zeros([256, 256]);
param(\"n\", 5, \"count\");
fn f(a, b) { a }
:vars
:type t.shape
:mem
:perm
:time x + 1
";
    let shown = printed(script);
    for expected in [
        "x        int",
        "t        Tensor",
        "P::n     5",
        "f(a, b)",
        "array\n",
        "256.0 KiB",
        "this process",
        "median ",
        "without a question",
    ] {
        assert!(shown.contains(expected), "{expected}\n{shown}");
    }
    let reset = printed("let x = 3;\n:reset\nlet y = 1;\n:vars\n");
    assert!(!reset.contains("x  int") && reset.contains('y'), "{reset}");
}

#[test]
fn curves_are_drawn_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let script = "let a = []; for i in 0..50 { a.push(i * i); }\n:plot a\n:plot a --svg a.svg\n";
    let output = super::fed(dir.path(), &["repl"], script);
    let shown = super::text(&output.stdout);
    assert!(shown.starts_with("a, 50 points\n") && shown.contains("2401"), "{shown}");
    assert!(fs::read_to_string(dir.path().join("a.svg")).unwrap().starts_with("<svg"));
    let none = super::fed(dir.path(), &["repl"], ":plot loss\n");
    assert!(super::text(&none.stderr).contains("no engine of this session has done a step"));
}

/// A path outside that is typed needs no answer, to read or to write; a denied one stays denied.
#[test]
fn a_typed_path_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let file = other.path().join("a.txt");
    fs::write(&file, "one").unwrap();
    let other = other.path().display();
    let denied = format!("--deny-read={other}/denied");
    let mut terminal = Terminal::session(dir.path(), &[&denied]);
    assert!(terminal.enter(&format!("dataset(\"{other}/a.txt\").count()")).ends_with('1'));
    assert!(terminal.enter(&format!("dataset(\"{other}/*.txt\").count()")).ends_with('1'));
    terminal.enter("let x = 1;");
    assert!(terminal.enter(&format!(":save {other}/x.rhai")).ends_with("x.rhai"));
    let refused = terminal.enter(&format!("dataset(\"{other}/denied/a.txt\")"));
    assert!(refused.contains("E501"), "{refused}");
    assert!(!terminal.screen().contains("Allow?"), "{}", terminal.screen());
    let saved = fs::read_to_string(file.with_file_name("x.rhai")).unwrap();
    let script = format!("{saved}\n:save {other}/y.rhai\n");
    let fed = super::fed(dir.path(), &["repl"], &script);
    assert!(super::text(&fed.stderr).contains("E501"), "a script is not typed");
}

/// A path outside that an input computes is asked for once.
#[test]
fn a_computed_path_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let file = other.path().join("a.txt");
    fs::write(&file, "one").unwrap();
    let mut terminal = Terminal::session(dir.path(), &[]);
    let line = format!("dataset(\"{}\" + \"/a.txt\").count()", other.path().display());
    terminal.send(&line);
    terminal.send(ENTER);
    terminal.wait_for("Allow?");
    terminal.send("n");
    terminal.send(ENTER);
    terminal.wait_for("error[E501]");
    terminal.wait_for_prompt();
    terminal.send(&line);
    terminal.send(ENTER);
    terminal.wait("the second question", |screen| screen.matches("Allow?").count() == 2);
    terminal.enter("y");
    assert!(terminal.answer().ends_with('1'), "{}", terminal.screen());
    assert!(terminal.enter(&line).ends_with('1'), "it is remembered: {}", terminal.screen());
    assert!(terminal.enter(":perm").contains("a.txt"));
}

/// Compares a screen with the file of the documentation that shows it; `DSR_UPDATE_DOCS=1` writes
/// the file instead.
fn is_documented(name: &str, screen: &str) {
    is_the_file(&format!("{name}.txt"), &format!("{screen}\n"));
}

fn is_the_file(name: &str, screen: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/src/repl").join(name);
    if std::env::var_os("DSR_UPDATE_DOCS").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, screen).unwrap();
    }
    let known = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(screen, known, "{}: write it again with DSR_UPDATE_DOCS=1", file.display());
}

#[test]
fn the_documentation_shows_the_screens() {
    let dir = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::sized(dir.path(), &["repl"], (90, 34));
    terminal.wait_for_prompt();
    is_documented("1-start", &terminal.screen());

    terminal.send(&format!("{MODEL};"));
    terminal.send(ENTER);
    terminal.wait("the next prompt", |screen| screen.matches("dsr>").count() == 2);
    terminal.send("model.");
    terminal.send(TAB);
    terminal.wait_for("num_params");
    terminal.wait("the line again", |screen| screen.trim_end().ends_with("model."));
    is_documented("2-completion", &terminal.screen());
    terminal.clear();
    terminal.enter("model");
    is_documented("3-card", &terminal.screen());

    terminal.clear();
    terminal.enter("let losses = []; for i in 0..60 { losses.push(2.5 + 4.0 / (1.0 + 0.2 * i)); }");
    terminal.enter(":plot losses");
    is_documented("4-plot", &terminal.screen());

    terminal.clear();
    terminal.enter("let engine = init_engine(model, #{ micro_batch_size: 4, optimizer: #{ type: \"AdamW\", lrr: 1e-3 } })");
    is_documented("5-error", &terminal.screen());
}

/// The book shows the card as it is.
#[test]
fn the_page_on_the_session_shows_a_screen() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |file: &str| fs::read_to_string(root.join("docs/src").join(file)).unwrap();
    let shown = format!("```text\n{}```", read("repl/3-card.txt"));
    assert!(read("repl.md").contains(&shown), "docs/src/repl.md shows another screen");
}

/// The picture at the top of the README.
#[test]
fn the_readme_shows_a_session() {
    let dir = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::sized(dir.path(), &["repl"], (100, 34));
    terminal.wait_for_prompt();
    terminal.enter(&format!("{MODEL};"));
    terminal.clear();
    terminal.enter("model");
    terminal.enter("model.logits(tensor([[464, 3290]]))[.., -1].shape");
    terminal.enter(
        "let engine = init_engine(model, #{ micro_batch_size: 4, optimizer: #{ lrr: 1e-3 } })",
    );
    let rows = terminal.screen().lines().count().try_into().unwrap();
    is_the_file("session.svg", &terminal.picture(rows));
}
