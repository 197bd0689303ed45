//! Typing: several lines, pasted recipes, history.

use std::fs;

use crate::support::terminal::{CTRL_C, CTRL_D, CTRL_R, ENTER, Terminal};

/// How soon there is a prompt, and how soon an answer: printed.
#[test]
fn the_start_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let mut terminal = Terminal::start(dir.path(), &["repl"]);
        terminal.wait_for("dsr>");
        let prompt = terminal.started.elapsed();
        terminal.wait_for_prompt();
        let editor = terminal.started.elapsed();
        terminal.enter("1 + 1");
        let answer = terminal.started.elapsed();
        println!(
            "a prompt after {prompt:?}, the editor after {editor:?}, an answer after {answer:?}"
        );
        terminal.send(CTRL_D);
        assert!(terminal.end().success());
    }
}

#[test]
fn an_input_goes_on_until_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::session(dir.path(), &[]);
    for line in ["let sum = 0;", "for i in 0..4 {"] {
        terminal.send(line);
        terminal.send(ENTER);
    }
    // The next line is indented, and its closing bracket is not.
    terminal.send("sum += i;");
    terminal.send(ENTER);
    terminal.wait_for("    sum += i;");
    terminal.enter("}");
    assert!(terminal.screen().contains("\n}"), "{}", terminal.screen());
    assert!(terminal.enter("sum").ends_with('6'), "{}", terminal.screen());
    // A comment without its end goes on, though Rhai takes it for whole.
    terminal.send("let c = 1 /* one");
    terminal.send(ENTER);
    terminal.send("line */ + 1");
    terminal.enter("");
    assert!(terminal.enter("c").ends_with('2'), "{}", terminal.screen());
}

#[test]
fn ctrl_c_gives_up_a_line_and_ctrl_d_leaves() {
    let dir = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::session(dir.path(), &[]);
    terminal.send("let x = [1,");
    terminal.send(ENTER);
    terminal.send("2,");
    terminal.wait_for("\n    2,");
    terminal.send(CTRL_C);
    terminal.wait("the second prompt", |screen| screen.matches("dsr>").count() == 2);
    assert!(terminal.enter("1 + 1").ends_with('2'));
    terminal.send(CTRL_D);
    assert!(terminal.end().success());
}

#[test]
fn a_whole_recipe_can_be_pasted() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = concat!(env!("CARGO_MANIFEST_DIR"), "/recipes/gpt2_loop.rhai");
    let recipe = fs::read_to_string(recipe).unwrap().replace("\"steps\", 20", "\"steps\", 3");
    let mut terminal = Terminal::session(dir.path(), &[]);
    terminal.paste(&recipe);
    terminal.enter("");
    terminal.wait_for("step 3  grad_norm");
    assert!(terminal.enter("P::steps").ends_with('3'), "{}", terminal.screen());
    let card = terminal.enter("engine");
    assert!(card.contains("Engine fp32 AdamW") && card.contains("step 3"), "{card}");
    // The same text again declares the same parameters again.
    terminal.paste("param(\"steps\", 4, \"optimizer steps\"); P::steps");
    assert!(terminal.enter("").ends_with('4'), "{}", terminal.screen());
}

#[test]
fn the_history_outlives_the_session() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Terminal::session(dir.path(), &[]);
    first.enter("let first = 12345;");
    first.enter("let list = [\n    1,\n];");
    first.send(CTRL_D);
    assert!(first.end().success());
    let mut second = Terminal::session(dir.path(), &[]);
    second.send(CTRL_R);
    second.send("fir");
    second.wait_for("let first = 12345;");
    second.send(ENTER);
    second.wait_for_prompt();
    assert!(second.enter("first").ends_with("12345"), "{}", second.screen());
    let history = second.enter(":history list");
    assert!(history.contains("let list = ["), "{history}");
    // Another directory has its own.
    let other = tempfile::tempdir().unwrap();
    let mut third = Terminal::session(other.path(), &[]);
    assert!(!third.enter(":history").contains("12345"));
}

#[test]
fn colours_are_left_out_where_they_are_not_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let output = crate::support::program::command()
        .args(["eval", "[1, 2]"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert_eq!(output.stdout, b"[1, 2]\n");
}
