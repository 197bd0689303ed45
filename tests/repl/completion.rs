//! Completion and help.

use std::fs;

use crate::support::terminal::{TAB, Terminal};

/// Types `text` and Tab, and gives the screen when it shows `expected`.
fn completed(terminal: &mut Terminal, text: &str, expected: &str) -> String {
    terminal.send(text);
    terminal.send(TAB);
    terminal.wait(&format!("{expected} after {text}"), |screen| screen.contains(expected));
    let screen = terminal.screen();
    terminal.clear();
    screen
}

#[test]
fn names_members_options_files_parameters_and_commands() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("corpus.txt"), "some text\n").unwrap();
    let mut terminal = Terminal::session(dir.path(), &[]);
    terminal.enter(
        "let model = new_model(\"gpt2\", #{ n_layer: 1, n_head: 1, n_embd: 8, n_positions: 8 });",
    );
    terminal.enter("let settings = #{ alpha: 1, beta: \"b\" };");
    terminal.enter("param(\"learning\", 0.1, \"how fast\"); fn my_function(a) { a }");

    // Members of the value, with the help of each.
    let screen = completed(&mut terminal, "model.", "num_params");
    for expected in ["export_hf(", "logits(", "config", "the number of parameters"] {
        assert!(screen.contains(expected), "{expected}\n{screen}");
    }
    assert!(!screen.contains("tokenize("), "{screen}");
    completed(&mut terminal, "settings.al", "settings.alpha");
    // Options of a call, also in maps within, and their words.
    completed(&mut terminal, "init_engine(model, #{ gradient_acc", "gradient_accumulation_steps:");
    let screen = completed(
        &mut terminal,
        "init_engine(model, #{ optimizer: #{ type: \"AdamW\", ",
        "weight_decay:",
    );
    assert!(screen.contains("betas:") && screen.contains("eps:"), "{screen}");
    let screen = completed(&mut terminal, "init_engine(model, #{ precision: \"", "bf16");
    assert!(screen.contains("fp16"), "{screen}");
    // Of functions of the session and of modules.
    terminal.enter("import \"dsr:trainer\" as trainer;");
    terminal
        .enter("fn warm(options) { read_options(\"warm\", options, #{ peak: 0.1, steps: 3 }) }");
    let screen = completed(&mut terminal, "trainer::fit(1, 2, #{ ", "total_steps:");
    assert!(screen.contains("the last optimizer step"), "{screen}");
    completed(&mut terminal, "trainer::fit(1, 2, #{ early_stopping: #{ pat", "patience:");
    terminal.enter("import \"dsr:schedule\" as schedule;");
    completed(&mut terminal, "schedule::cosine(#{ peak: 1, wa", "warmup_steps:");
    completed(&mut terminal, "warm(#{ pe", "peak:");
    // Names, functions of the session, modules, files, parameters, commands.
    completed(&mut terminal, "my_f", "my_function(");
    completed(&mut terminal, "sett", "settings");
    completed(&mut terminal, "nn::cross_e", "nn::cross_entropy(");
    completed(&mut terminal, "dataset(\"corp", "dataset(\"corpus.txt");
    completed(&mut terminal, "P::lea", "P::learning");
    completed(&mut terminal, ":relo", ":reload");
    fs::write(dir.path().join("mine.rhai"), "let x = 1;").unwrap();
    completed(&mut terminal, ":load mi", ":load mine.rhai");
    completed(&mut terminal, ":load gpt2_l", ":load gpt2_loop");
    completed(&mut terminal, ":save --force mi", ":save --force mine.rhai");
    completed(&mut terminal, "dataset(\"corpus.txt\").tok", "dataset(\"corpus.txt\").tokenize(");
}

#[test]
fn help_is_that_of_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::session(dir.path(), &[]);
    terminal.enter(
        "let model = new_model(\"gpt2\", #{ n_layer: 1, n_head: 1, n_embd: 8, n_positions: 8 });",
    );
    let help = terminal.enter("?model.export_hf");
    assert!(
        help.contains("export_hf(dir: string)")
            && help.contains("model.export_hf(\"exports/gpt2\");"),
        "{help}"
    );
    let help = terminal.enter("?manual_seed");
    assert!(help.contains("manual_seed("), "{help}");
    let error = terminal.enter("?new_modle");
    assert!(
        error.contains("nothing is called `new_modle`")
            && error.contains("did you mean `new_model`?"),
        "{error}"
    );
    let error = terminal.enter("?model.exprt_hf");
    assert!(error.contains("did you mean `export_hf`?"), "{error}");
    let error = terminal.enter(":vras");
    assert!(error.contains("did you mean :vars?"), "{error}");
}

/// How long completion takes among 200 variables: printed, as a loaded machine proves nothing.
#[test]
fn completion_among_200_variables_is_measured() {
    use dsr::{live::Live, script::Host};
    let mut host = Host::new(".", |_| ());
    host.ranks.device = dsr::tensor::DeviceChoice::Cpu;
    let mut live = Live::new(host).unwrap();
    for i in 0..200 {
        live.eval(&format!("let variable_{i} = #{{ a: {i}, b: [1, 2, 3] }};")).unwrap();
    }
    live.eval("let t = randn([4, 4]);").unwrap();
    let texts = ["vari", "variable_7.", "t.", "init_engine(t, #{ ", "dataset(\"dsr:austen\").tok"];
    for round in ["first", "later"] {
        for text in texts {
            let began = std::time::Instant::now();
            let found = live.complete(text, text.len());
            println!(
                "{round} {text:30} {:3} candidates {:?}",
                found.candidates.len(),
                began.elapsed()
            );
            assert!(!found.candidates.is_empty(), "{text}");
        }
    }
}
