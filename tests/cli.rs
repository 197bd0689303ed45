//! The program itself: arguments, what it prints where, and its exit statuses.

use std::{
    io::{BufRead, BufReader, Read},
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use crate::support::{
    hub_server::{HubRepo, HubServer},
    program::command,
    ranks::free_port,
};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(recipe: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        std::fs::write(folder.path("r.rhai"), recipe).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn dsr(&self, args: &[&str]) -> Run {
        let output = command().args(args).current_dir(self.0.path()).output();
        Run(output.unwrap())
    }
}

struct Run(Output);

impl Run {
    fn status(&self) -> i32 {
        self.0.status.code().unwrap()
    }

    fn out(&self) -> String {
        String::from_utf8(self.0.stdout.clone()).unwrap()
    }

    fn err(&self) -> String {
        String::from_utf8(self.0.stderr.clone()).unwrap()
    }
}

/// What `dsr run r.rhai` prints to standard error, and its status.
fn error_of(recipe: &str) -> (String, i32) {
    let run = Folder::new(recipe).dsr(&["run", "r.rhai"]);
    (run.err(), run.status())
}

#[test]
fn a_recipe_prints_to_standard_output() {
    let run =
        Folder::new("print(1 + 1);\nlog(#{ step: 3, loss: 2.5, a: 1 });").dsr(&["run", "r.rhai"]);
    assert_eq!((run.out().as_str(), run.err().as_str()), ("2\nstep 3  a 1  loss 2.5\n", ""));
    assert_eq!(run.status(), 0);
}

/// The first line is the system's, and counts as a line.
#[test]
fn a_recipe_with_a_shebang_is_a_program() {
    use std::os::unix::fs::PermissionsExt;
    let shebang = format!("#!/usr/bin/env -S {} run\n", env!("CARGO_BIN_EXE_dsr"));
    let folder = Folder::new(&format!("{shebang}param(\"n\", 1);\nprint(P::n + 1);\n"));
    let program = folder.path("r.rhai");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let run = Run(Command::new(&program).args(["-p", "n=4"]).output().unwrap());
    assert_eq!((run.out().as_str(), run.err().as_str()), ("5\n", ""));
    let (error, _) = error_of(&format!("{shebang}let x = ;\n"));
    assert!(error.contains("r.rhai:2:9"), "{error}");
    assert_eq!(error_of("#!").1, 0);
    let session = folder.path("r.rhai").display().to_string();
    let loaded = folder.dsr(&["repl", "--load", &session, "-p", "n=6"]);
    assert_eq!((loaded.out().as_str(), loaded.status()), ("7\n", 0), "{}", loaded.err());
}

#[test]
fn a_syntax_error_shows_its_line() {
    let (text, status) = error_of("let x = 1\nlet y = 2;\n");
    let expected = "\
error[E100]: this statement has no `;` at its end
   ,-[ r.rhai:1:9 ]
   |
 1 | let x = 1
   |         |
   |         `-- write ; behind it
";
    assert_eq!(text, expected);
    assert_eq!(status, 2);
}

#[test]
fn all_unknown_functions_are_found_before_the_recipe_runs() {
    let run = Folder::new("print(\"began\");\npritn(1);\nif false { lgo(#{}); }\n")
        .dsr(&["run", "r.rhai"]);
    let expected = "\
error[E110]: unknown function `pritn`
   ,-[ r.rhai:2:1 ]
   |
 2 | pritn(1);
   | ^^|^^
   |   `---- did you mean `print`?

error[E110]: unknown function `lgo`
   ,-[ r.rhai:3:12 ]
   |
 3 | if false { lgo(#{}); }
   |            ^|^
   |             `--- did you mean `log`?
";
    assert_eq!(run.err(), expected);
    assert_eq!(run.out(), "", "nothing ran");
    assert_eq!(run.status(), 2);
}

#[test]
fn an_unknown_option_is_marked_in_the_map() {
    let (text, status) =
        error_of("param(\"lr\", 1e-3, \"rate\", #{\n    mni: 0,\n    max: \"1\",\n});\n");
    // The declaration is read from the text, and both faults stand at the call of `param`.
    assert!(
        text.contains(
            "error[E102]: `max` must be a number, found string \"1\"\n   ,-[ r.rhai:3:10 ]"
        ),
        "{text}"
    );
    assert!(
        text.contains("error[E101]: `param` has no option `mni`\n   ,-[ r.rhai:2:5 ]"),
        "{text}"
    );
    assert!(text.contains("did you mean `min`?"), "{text}");
    assert_eq!(status, 2);
}

#[test]
fn calls_are_listed_innermost_first() {
    let (text, status) =
        error_of("fn inner() { throw \"no rows\" }\nfn outer() { inner() }\nouter();\n");
    assert!(text.starts_with("error[E111]: no rows\n   ,-[ r.rhai:1:14 ]"), "{text}");
    assert!(
        text.ends_with(
            "   in `inner`, called at r.rhai:2:14\n   in `outer`, called at r.rhai:3:1\n"
        ),
        "{text}"
    );
    assert_eq!(status, 1);
}

#[test]
fn thrown_maps_show_their_kind() {
    let (text, status) = error_of("throw #{ kind: \"stalled\", step: 3 };");
    assert!(text.starts_with("error[E111]: stalled: step: 3\n"), "{text}");
    assert_eq!(status, 1);
}

const PARAMETERS: &str = r#"//! Trains nothing.
//!
//! Prints its learning rate.
param("lr", 3e-4, "peak learning rate", #{ min: 0 });
param("steps", 100, "optimizer steps");
param("data", "wikitext");
print(`${P::lr} ${P::steps} ${P::data}`);
"#;

#[test]
fn parameters_come_from_the_command_line_and_from_a_file() {
    let folder = Folder::new(PARAMETERS);
    assert_eq!(folder.dsr(&["run", "r.rhai"]).out(), "0.0003 100 wikitext\n");
    assert_eq!(
        folder.dsr(&["run", "r.rhai", "-p", "lr=1", "-p", "steps=1e3"]).out(),
        "1.0 1000 wikitext\n"
    );
    std::fs::write(folder.path("p.json"), r#"{"lr": 1, "data": "a=b"}"#).unwrap();
    let run = folder.dsr(&["run", "r.rhai", "--params", "p.json", "-p", "lr=0.5"]);
    assert_eq!(run.out(), "0.5 100 a=b\n");
}

#[test]
fn wrong_parameters_are_refused_together() {
    let folder = Folder::new(PARAMETERS);
    let run = folder.dsr(&["run", "r.rhai", "-p", "step=5", "-p", "lr=fast", "-p", "lr=-1"]);
    let expected = "\
error[E101]: the recipe has no parameter `step`
   = did you mean `steps`?
   = its parameters: lr, steps, data

error[E102]: parameter `lr` must be a number, found `fast`
   = its default is 0.0003

error[E103]: parameter `lr` must be 0 or more, found -1.0
";
    assert_eq!(run.err(), expected);
    assert_eq!(run.out(), "");
    assert_eq!(run.status(), 2);

    let run = folder.dsr(&["run", "r.rhai", "-p", "lr"]);
    assert!(run.err().starts_with("error[E105]: `-p lr` is not of the form name=value\n"));
    assert_eq!(run.status(), 2);
}

#[test]
fn an_undeclared_parameter_in_the_recipe_is_found_before_it_runs() {
    let (text, status) = error_of("param(\"steps\", 1);\nprint(P::step);");
    assert!(
        text.starts_with("error[E101]: the recipe has no parameter `step`\n   ,-[ r.rhai:2:10 ]"),
        "{text}"
    );
    assert!(text.contains("did you mean `steps`?"), "{text}");
    assert_eq!(status, 2);
}

#[test]
fn run_help_shows_the_recipes_own() {
    let folder = Folder::new(PARAMETERS);
    let expected = "\
Trains nothing.

Prints its learning rate.

Usage: dsr run r.rhai [-p NAME=VALUE]...

Parameters:
  lr     float   0.0003      peak learning rate (0 or more)
  steps  int     100         optimizer steps
  data   string  \"wikitext\"
";
    for flag in ["--help", "-h"] {
        let run = folder.dsr(&["run", "r.rhai", flag]);
        assert_eq!((run.out().as_str(), run.status()), (expected, 0));
    }
    let run = folder.dsr(&["run", "--help"]);
    assert!(run.out().contains("Usage: dsr run"), "{}", run.out());
    assert!(run.out().contains("--resume"), "{}", run.out());
    assert_eq!(run.status(), 0);
}

#[test]
fn version_and_usage() {
    let folder = Folder::new("");
    assert_eq!(folder.dsr(&["--version"]).out(), concat!("dsr ", env!("CARGO_PKG_VERSION"), "\n"));
    assert_eq!(folder.dsr(&["run"]).status(), 2);
    assert_eq!(folder.dsr(&["rnu", "r.rhai"]).status(), 2);
    let missing = folder.dsr(&["run", "missing.rhai"]);
    assert!(
        missing
            .err()
            .contains("there is no recipe missing.rhai: neither a file nor a recipe of dsr"),
        "{}",
        missing.err()
    );
    assert_eq!(missing.status(), 4);
}

#[test]
fn leaving_the_recipes_directory_is_a_permission_error() {
    let (text, status) = error_of("import \"../other\" as other;");
    assert!(text.starts_with("error[E501]: cannot import \"../other\""), "{text}");
    assert_eq!(status, 3);
    let (text, status) = error_of("import \"other\" as other;");
    assert!(text.starts_with("error[E802]: cannot import \"other\": there is no file"), "{text}");
    assert_eq!(status, 4);
}

#[test]
fn there_is_no_eval() {
    let (text, status) = error_of("eval(\"1\");");
    assert!(text.starts_with("error[E100]: "), "{text}");
    assert_eq!(status, 2);
}

#[test]
fn data_is_looked_for_in_the_working_directory() {
    let folder = Folder::new("");
    std::fs::create_dir(folder.path("recipes")).unwrap();
    let recipe = "param(\"data\", \"\");\nprint(dataset(P::data)[0].text);";
    std::fs::write(folder.path("recipes/r.rhai"), recipe).unwrap();
    std::fs::write(folder.path("a.txt"), "one").unwrap();
    let run = folder.dsr(&["run", "recipes/r.rhai", "-p", "data=*.txt"]);
    assert_eq!((run.out().as_str(), run.err().as_str()), ("one\n", ""));
    let run = folder.dsr(&["run", "recipes/r.rhai", "-p", "data=b.txt"]);
    assert!(run.err().starts_with("error[E601]: no file b.txt\n"), "{}", run.err());
    assert_eq!(run.status(), 4);
}

#[test]
fn each_rank_takes_its_own_batches() {
    let folder = Folder::new(
        "let tok = tokenizer(\"dsr:gpt2\");
         let ds = dataset(\"a.txt\", #{ sample_by: \"line\" }).tokenize(tok);
         for batch in ds.loader(#{ micro_batch_size: 1 }) { print(batch.first_row); }",
    );
    std::fs::write(folder.path("a.txt"), "a\nb\nc\nd\n").unwrap();
    let port = free_port();
    let ranks = ["0", "1"].map(|rank| {
        let mut command = command();
        command.args(["run", "r.rhai"]).current_dir(folder.0.path());
        command.envs([("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", "2")]);
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    let outputs = ranks.map(|rank| Run(rank.wait_with_output().unwrap()));
    let printed = outputs.map(|run| (run.out(), run.err()));
    assert_eq!(printed[0], ("0\n2\n".to_owned(), String::new()));
    assert_eq!(printed[1], ("1\n3\n".to_owned(), String::new()));
}

#[test]
fn a_download_is_told_in_lines_where_there_is_no_terminal() {
    let server = HubServer::start();
    server.put("datasets/O/data", HubRepo::new([("train.txt", b"one\ntwo\n".as_slice())]));
    let folder = Folder::new("print(dataset(\"O/data\", #{ sample_by: \"line\" }).count());");
    let output = command()
        .args(["run", "r.rhai", "--allow-net=127.0.0.1"])
        .current_dir(folder.0.path())
        .env("HF_HOME", folder.path("hf"))
        .env("HF_ENDPOINT", &server.url)
        .env_remove("http_proxy")
        .env_remove("HTTP_PROXY")
        .output();
    let run = Run(output.unwrap());
    assert_eq!(run.out(), "2\n");
    assert_eq!(
        run.err(),
        "downloading O/data: train.txt (8 B)\ndownloaded O/data: train.txt in 0 seconds\n"
    );
}

/// The status of a recipe that has printed its first line and then gets these signals, and its errors.
fn interrupted(recipe: &str, signals: &[&str]) -> (Option<i32>, String) {
    let (status, _, errors) = interrupted_with_output(recipe, signals);
    (status, errors)
}

/// The same with what it prints behind that line.
fn interrupted_with_output(recipe: &str, signals: &[&str]) -> (Option<i32>, String, String) {
    let folder = Folder::new(recipe);
    let mut child = command()
        .args(["run", "r.rhai"])
        .current_dir(folder.0.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut line, mut rest) = (String::new(), String::new());
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    lines.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    for signal in signals {
        // The recipe gets on to its next line; and two signals of one kind that wait together are
        // delivered as one.
        std::thread::sleep(Duration::from_millis(200));
        let status = Command::new("kill").args([signal, child.id().to_string().as_str()]).status();
        assert!(status.unwrap().success());
    }
    lines.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), rest, String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_first_interrupt_stops_the_recipe_in_order() {
    for signal in ["-INT", "-TERM", "-HUP"] {
        for waiting in ["while true {}", "sleep(1e300);", "sleep(9223372036854775807);"] {
            let recipe = format!("print(\"ready\");\n{waiting}\n");
            let (status, text) = interrupted(&recipe, &[signal]);
            assert_eq!((status, text.as_str()), (Some(130), "interrupted\n"), "{signal} {waiting}");
        }
    }
}

/// The pieces that a function of the recipe takes, and the texts: the recipe has seconds to use them.
#[test]
fn an_interrupt_keeps_the_texts_that_are_there() {
    let recipe = |rest: &str| {
        format!(
            "let tok = tokenizer(\"dsr:gpt2\");
             let model = new_model(\"gpt2\", #{{ n_layer: 1, n_head: 1, n_embd: 8, n_positions: 100000 }});
             let pieces = 0;
             let options = #{{ max_new_tokens: 90000, return_details: true, on_token: |piece| {{ pieces += 1; if pieces == 1 {{ print(\"ready\"); }} }} }};
             let text = generate(model, tok, \"She\", options);
             print(text.finish_reason);
             print(pieces > 0 && text.token_ids.len > 0);
             {rest}"
        )
    };
    for rest in ["", "while true {}", "generate(model, tok, \"She\"); print(1);"] {
        let (status, output, errors) = interrupted_with_output(&recipe(rest), &["-INT"]);
        assert_eq!(output, "interrupted\ntrue\n", "{rest}");
        assert!(errors.ends_with("interrupted\n"), "{errors}");
        assert_eq!(status, Some(130));
    }
}

#[test]
fn the_second_interrupt_stops_at_once() {
    let started = Instant::now();
    let (status, text) = interrupted(
        "let a = ones([8000, 8000]);\nprint(\"ready\");\nloop { a = a.matmul(a); }\n",
        &["-INT", "-INT"],
    );
    assert_eq!((status, text.as_str()), (Some(130), ""));
    assert!(started.elapsed() < Duration::from_secs(30), "the product was not waited for");
}

/// A file whose name is no text is a file; a flag's value that is none is an error in words.
#[test]
fn arguments_that_are_no_text_are_understood_or_refused() {
    use std::{ffi::OsString, os::unix::ffi::OsStringExt};
    let folder = Folder::new("print(1);");
    let dir = folder.0.path();
    let named = |before: &str, after: &str| {
        let bytes = [before.as_bytes(), b"a\xff", after.as_bytes()].concat();
        OsString::from_vec(bytes)
    };
    let own = named("", ".rhai");
    std::fs::write(dir.join(&own), "print(1);").unwrap();
    let word = |text: &str| OsString::from(text);
    let cases: Vec<Vec<OsString>> = vec![
        vec![word("run"), own.clone()],
        vec![word("check"), own.clone()],
        vec![word("plan"), own.clone()],
        vec![word("lock"), own.clone()],
        vec![word("launch"), word("--nproc-per-node"), word("1"), own.clone()],
        vec![word("run"), word("r.rhai"), named("--audit=", ".log")],
        vec![word("run"), word("r.rhai"), word("--resume"), named("", "")],
        vec![word("run"), word("r.rhai"), named("--lock=", "")],
        vec![word("run"), word("r.rhai"), word("--params"), named("", "")],
        vec![word("run"), word("r.rhai"), word("-p"), named("x=", "")],
        vec![word("recipe"), word("bundle"), own.clone(), word("-o"), named("", ".b")],
        vec![word("config"), named("", ".json")],
        vec![word("run"), word("r.rhai"), named("--allow-read=", "")],
        vec![word("eval"), named("", "")],
        vec![word("doc"), named("", "")],
        vec![named("", "")],
    ];
    for args in cases {
        let output = command().args(&args).current_dir(dir).env("HOME", dir).output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(0..=7)), "{args:?}: {words}");
        assert!(
            !words.contains("panicked") && !words.contains("internal error"),
            "{args:?}: {words}"
        );
    }
}

/// What the shell takes away is told in one sentence.
/// A run has one owner: whoever goes on with it at the same time is refused.
#[test]
fn a_run_that_is_resumed_twice_has_one_owner() {
    let recipe = r#"
param("steps", 30);
let model = new_model("gpt2", #{ vocab_size: 100, n_positions: 16, n_embd: 32, n_layer: 1, n_head: 1 });
let engine = init_engine(model, #{ micro_batch_size: 2 });
let loader = dataset("rows.jsonl").loader(#{ micro_batch_size: 2, endless: true });
let run = start_run(engine, loader, #{ total_steps: P::steps, save_every: 3 });
for batch in run { engine.backward(engine.forward(batch)); if engine.step() { run.after_step(); } }
run.finish();
"#;
    let folder = Folder::new(recipe);
    let dir = folder.0.path();
    let rows: String = (0..40).map(|i| format!("{{\"input_ids\": [{i}, 1, 2, 3]}}\n")).collect();
    std::fs::write(dir.join("rows.jsonl"), rows).unwrap();
    let start = |args: &[&str]| {
        let mut command = command();
        command.args(["run", "r.rhai"]).args(args).current_dir(dir);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    assert!(start(&["-p", "steps=3"]).wait_with_output().unwrap().status.success());
    let both = [start(&["--resume", "auto"]), start(&["--resume", "auto"])];
    let both = both.map(|child| child.wait_with_output().unwrap());
    let words = both.each_ref().map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
    assert!(both.iter().any(|output| output.status.success()), "{words:?}");
    for (output, words) in both.iter().zip(&words) {
        let is_refused = words.contains("goes on with") && words.contains("error[E801]");
        assert!(output.status.success() || is_refused, "{words}");
    }
    let metrics = std::fs::read_to_string(dir.join("runs/r/metrics.jsonl")).unwrap();
    let steps: Vec<u64> = metrics
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter_map(|line| line["loss"].as_f64().and(line["step"].as_u64()))
        .collect();
    assert_eq!(steps, (1..=30).collect::<Vec<_>>());
}
