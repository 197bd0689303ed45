//! `dsr watch`: the screen of a run, as text and in a pseudo-terminal.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
};

use crate::support::{
    files::{names, repository},
    program::{dsr, out, text},
    terminal::{BACK_TAB, TAB, Terminal},
    watched_run::{folder, step},
};

/// The block of `docs/src/runs.md` that shows the screen.
fn documented(screen: &str) {
    let file = repository().join("docs/src/runs.md");
    let page = fs::read_to_string(&file).unwrap();
    let start = page.find("```text\n").expect("the page shows the screen") + "```text\n".len();
    let end = start + page[start..].find("```").unwrap();
    if std::env::var_os("DSR_UPDATE_DOCS").is_some() {
        fs::write(&file, format!("{}{screen}{}", &page[..start], &page[end..])).unwrap();
        return;
    }
    assert_eq!(&page[start..end], screen, "write the page again with DSR_UPDATE_DOCS=1");
}

/// What orders the terminal is shown as its escape.
#[test]
fn without_a_terminal_the_screen_is_text_and_the_documentation_shows_it() {
    let dir = folder();
    let screen = out(&dsr(dir.path(), &["watch", "low"]).output().unwrap());
    assert!(screen.contains(r"NVIDIA \u{1b}[2JH100"), "{screen}");
    documented(&screen.replace(r"\u{1b}[2J", ""));
    assert_eq!(out(&dsr(dir.path(), &["watch"]).output().unwrap()), screen);
    assert_eq!(out(&dsr(dir.path(), &["watch", "runs/low"]).output().unwrap()), screen);
    let error = text(&dsr(dir.path(), &["watch", "lwo"]).output().unwrap().stderr);
    assert!(error.contains("no run \"lwo\" in runs"), "{error}");
    assert!(error.contains("did you mean \"low\"?"), "{error}");
}

/// The first row of the charts, which has the title of the large one first.
fn chosen(screen: &str) -> &str {
    screen.lines().find(|line| line.starts_with('┌')).unwrap_or_default()
}

#[test]
fn the_screen_follows_a_run_and_its_keys_and_leaves_the_run_as_it_is() {
    let dir = folder();
    let run = dir.path().join("runs/low");
    let append = |text: &str| {
        let mut file = File::options().append(true).open(run.join("metrics.jsonl")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    };
    let mut terminal = Terminal::sized(dir.path(), &["watch", "low"], (100, 30));
    terminal.wait_for("q: end");
    terminal.wait("the whole loss", |screen| {
        chosen(screen).starts_with("┌ loss ") && screen.contains("step 600/800 (75%)")
    });
    terminal.send(TAB);
    terminal.wait("the next chart", |screen| chosen(screen).starts_with("┌ learning rate "));
    terminal.send("\x1b[D");
    terminal.wait("the chart before", |screen| chosen(screen).starts_with("┌ loss "));
    terminal.send("+");
    terminal.wait("the later half", |screen| screen.contains("300 ") && !screen.contains("│1 "));
    terminal.send(BACK_TAB);
    terminal.wait("the ranks", |screen| chosen(screen).starts_with("┌ ranks "));
    terminal.send(BACK_TAB);
    terminal.wait("the samples", |screen| {
        chosen(screen).starts_with("┌ samples ") && screen.contains("step 600: It is a truth")
    });
    append(&step(601)[..40]);
    append(&step(601)[40..]);
    terminal.wait_for("step 601/800");
    terminal.send("q");
    assert!(terminal.end().success());
    assert_eq!(names(&run), ["metrics.jsonl", "run.json", "samples.jsonl"], "nothing is written");
}

/// A run that goes on has its time left, and one whose process is gone is seen as killed.
#[test]
fn a_run_whose_lock_is_free_was_killed() {
    let dir = folder();
    let file = dir.path().join("runs/low/run.json");
    let told = fs::read_to_string(&file).unwrap().replace("interrupted", "running");
    fs::write(&file, told).unwrap();
    let shown = |dir: &Path| out(&dsr(dir, &["watch"]).output().unwrap());
    assert!(shown(dir.path()).contains("runs/low  killed  step 600/800 (75%)\n"));
    let lock = File::create(dir.path().join("runs/low/lock")).unwrap();
    lock.lock().unwrap();
    // 200 steps of 8192 tokens at 52,000 a second.
    assert!(shown(dir.path()).contains("runs/low  running  step 600/800 (75%)  31s left\n"));
}
