//! Ctrl-C: what runs ends, the session goes on, and a training has lost nothing.

use std::{
    fs,
    net::TcpListener,
    time::{Duration, Instant},
};

use crate::support::terminal::{CTRL_C, ENTER, Terminal};

/// A training of which a step takes some tenths of a second.
const SETUP: &str = "\
let loader = dataset(\"dsr:austen\", #{ split: \"train\" })
    .tokenize(tokenizer(\"dsr:gpt2\"), #{ append_eos: true })
    .pack(64)
    .loader(#{ micro_batch_size: 4, endless: true });
let model = new_model(\"gpt2\", #{ n_layer: 3, n_head: 2, n_embd: 64, n_positions: 64 });
let engine = init_engine(model, #{
    micro_batch_size: 4,
    gradient_accumulation_steps: 3,
    optimizer: #{ type: \"AdamW\", lr: 1e-3 },
});
";

const LOOP: &str = "for batch in loader { let loss = engine.forward(batch); engine.backward(loss); if engine.step() { print(`step ${engine.global_step} ${engine.loss}`); } if engine.global_step == 16 { break; } }";

fn losses(text: &str) -> Vec<String> {
    let mut lines: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("step "))
        .map(|l| l.trim().to_owned())
        .collect();
    lines.dedup();
    lines
}

/// Presses Ctrl-C and waits for the prompt. How long it took.
fn stop(terminal: &mut Terminal) -> Duration {
    let pressed = Instant::now();
    terminal.send(CTRL_C);
    terminal.wait("the prompt after Ctrl-C", |_| terminal.is_at_prompt());
    pressed.elapsed()
}

/// How long a stop takes is printed, and not judged: the machine may be busy.
#[test]
fn a_training_that_is_stopped_goes_on_as_if_it_had_not_been() {
    let _alone = crate::support::alone();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("whole.rhai"), format!("{SETUP}{LOOP}\n")).unwrap();
    let whole = super::fed(dir.path(), &["run", "whole.rhai"], "");
    let expected = losses(super::text(&whole.stdout));
    assert_eq!(expected.len(), 16, "{}", super::text(&whole.stderr));

    let mut terminal = Terminal::sized(dir.path(), &["repl"], (100, 60));
    terminal.wait_for_prompt();
    terminal.paste(SETUP);
    terminal.enter("");
    let (mut seen, mut longest, mut stops) = (Vec::new(), Duration::ZERO, 0);
    for pause in [60, 10, 35, 90, 20, 50, 5, 70, 40, 15, 80, 30] {
        terminal.clear();
        terminal.send(LOOP);
        terminal.send(ENTER);
        std::thread::sleep(Duration::from_millis(pause));
        // A key that comes before the loop has begun only gives up the line.
        terminal.wait("the loop", |_| !terminal.is_editing());
        longest = longest.max(stop(&mut terminal));
        stops += usize::from(terminal.screen().contains("interrupted"));
        seen.extend(losses(&terminal.screen()));
        if seen.len() >= 13 {
            break;
        }
    }
    terminal.clear();
    let rest = terminal.enter(LOOP);
    seen.extend(losses(&rest));
    seen.dedup();
    println!("{stops} stops, each within {longest:?}");
    assert!(stops > 0, "{}", terminal.screen());
    // A stop between a step and its line leaves the line out. A batch that was lost or came twice
    // would change the loss of every step behind it.
    let shown: Vec<_> = expected.iter().filter(|line| seen.contains(line)).cloned().collect();
    assert_eq!((&seen, seen.last()), (&shown, expected.last()));
    assert!(terminal.enter("engine.global_step").ends_with("16"));
}

#[test]
fn what_has_no_end_is_stopped_and_variables_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::session(dir.path(), &[]);
    terminal.enter("let n = 1;");
    terminal.send("let before = 7; loop { n += 1; }");
    terminal.send(ENTER);
    std::thread::sleep(Duration::from_millis(300));
    let took = stop(&mut terminal);
    println!("an endless loop stops within {took:?}");
    assert!(terminal.screen().contains("interrupted"), "{}", terminal.screen());
    assert!(terminal.enter("before").ends_with('7'));
    assert!(terminal.enter("n > 1").ends_with("true"));
    // What had run of it is part of what is saved.
    terminal.enter(":save s.rhai");
    let saved = fs::read_to_string(dir.path().join("s.rhai")).unwrap();
    assert!(saved.contains("let before = 7;") && !saved.contains("loop"), "{saved}");
}

#[test]
fn a_tokenization_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let line =
        "It is a truth universally acknowledged, that a single man must be in want. ".repeat(8);
    fs::write(dir.path().join("big.txt"), format!("{line}\n").repeat(80_000)).unwrap();
    let mut terminal = Terminal::session(dir.path(), &[]);
    terminal.enter("let ds = dataset(\"big.txt\").tokenize(tokenizer(\"dsr:gpt2\")).pack(64);");
    terminal.send("ds.cache().count()");
    terminal.send(ENTER);
    std::thread::sleep(Duration::from_millis(500));
    let took = stop(&mut terminal);
    println!("a tokenization stops within {took:?}");
    assert!(terminal.screen().contains("interrupted"), "{}", terminal.screen());
    terminal.enter("let lines = dataset(\"big.txt\", #{ sample_by: \"line\" });");
    let answer =
        terminal.enter("lines.tokenize(tokenizer(\"dsr:gpt2\")).pack(64)[0].input_ids.len()");
    assert!(answer.ends_with("64"), "{answer}");
}

/// A server that takes connections and says nothing.
#[test]
fn a_download_is_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", server.local_addr().unwrap());
    let mut terminal =
        Terminal::with(dir.path(), &["repl"], (100, 40), &[("HF_ENDPOINT", url.as_str())]);
    terminal.wait_for_prompt();
    terminal.send("let kept = 5; let ds = dataset(\"Some/data\");");
    terminal.send(ENTER);
    std::thread::sleep(Duration::from_millis(500));
    let took = stop(&mut terminal);
    println!("a download stops within {took:?}");
    assert!(terminal.screen().contains("interrupted"), "{}", terminal.screen());
    assert!(terminal.enter("kept").ends_with('5'));
}
