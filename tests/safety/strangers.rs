//! What a stranger's recipe, run or checkpoint may try: names that are read in two ways, links among files,
//! names in manifests, text that orders the terminal, consent for something else.

use std::{
    io::Write,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use dsr::{
    fs::{self as places, Place as GuardedPlace},
    permission::{AccessContext, Grants, Permissions},
};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::*;
use crate::support::user::{User, has};

const MODEL: &str = "let m = new_model(\"gpt2\", #{ vocab_size: 8, n_positions: 8, n_embd: 4, \
                     n_layer: 1, n_head: 1 });\n";
const ENGINE: &str = "let e = init_engine(m, #{ micro_batch_size: 1 });\n";

/// A user with rows and a model outside of the working directory.
fn user() -> User {
    let user = User::new();
    write(&user.home.path().join("out/rows.txt"), "SECRET\n");
    user.file("out.rhai", &format!("{MODEL}m.export_hf(\"m\");"));
    user.says(&["run", "out.rhai"]);
    fs::rename(user.work().join("m"), user.home.path().join("out/m")).unwrap();
    user
}

#[test]
fn a_pattern_is_a_pattern_for_the_judge_and_for_the_reader() {
    let user = user();
    let out = user.home.path().join("out");
    user.file("data/sub/x", "");
    user.file(".hidden/a.txt", "SECRET\n");
    symlink(out.join("rows.txt"), user.work().join("data/a.txt")).unwrap();
    symlink(&out, user.work().join("link")).unwrap();
    for spec in [
        "data/*",
        "data/?.txt",
        "data/[a]*",
        "./data/*",
        "data/sub/../*",
        "link/*",
        "link/r*",
        "link/?ows*",
        "l*/rows*",
        "?hidden/*",
        "[.]hidden/*",
    ] {
        let rows = format!("for row in dataset(\"{spec}\" + \"\") {{ print(row.text); }}");
        user.file("r.rhai", &rows);
        let (said, status) = user.error(&["run", "r.rhai"]);
        assert_eq!(status, 3, "{spec}: {said}");
        assert!(!said.contains("SECRET"), "{spec}: {said}");
    }
}

#[test]
fn what_begins_as_a_part_of_dsr_is_never_a_path() {
    let user = user();
    for call in [
        "load_model(\"dsr:/../../out/m\")",
        "tokenizer(\"dsr:/../../out/m\")",
        "dataset(\"dsr:/../../out/rows.txt\")",
        "dataset(\"dsr:/../../out/*\")",
    ] {
        user.file("r.rhai", &format!("{MODEL}m.export_hf(\"dsr:\");\n{call};\nprint(\"loaded\");"));
        let output = user.dsr(&["run", "r.rhai"]);
        assert!(!output.status.success() && output.stdout.is_empty(), "{call}");
    }
}

/// A value gives the network where the text hands it to what loads from there.
#[test]
fn a_value_is_consent_for_its_use() {
    let user = User::new();
    let steal = "try { load_model(\"thief/my-\" + \"secret\"); } catch (e) { print(e.code); }\n";
    let code = |text: &str, value: &str| {
        user.file("r.rhai", &format!("param(\"out\", \"\");\n{text}\n{steal}"));
        let output = user.dsr(&["run", "r.rhai", "-p", &format!("out={value}")]);
        String::from_utf8(output.stdout).unwrap()
    };
    for value in ["exports/gpt2-medium-wikitext", "and/or", "runs/x y"] {
        for text in ["print(P::out.len());", "if P::out == \"\" { dataset(\"a\" + P::out); }"] {
            assert!(code(text, value).contains("E501"), "{text} {value}");
        }
    }
    for text in [
        "if P::out == \"\" { load_model(P::out); }",
        "fn get(name) { tokenizer(name) } if P::out == \"\" { get(P::out); }",
        "let name = P::out; if P::out == \"\" { dataset(name); }",
    ] {
        assert!(!code(text, "gpt/x").contains("E501"), "{text}");
        assert!(code(text, "runs/x y").contains("E501"), "{text}");
    }
}

#[test]
fn a_value_gives_only_the_paths_that_it_names_as_a_path() {
    let user = user();
    let reads = |text: &str, value: &str, what: &str| {
        let rest = format!("print(dataset(\"{what}\" + \"\").count());");
        user.file("r.rhai", &format!("param(\"v\", \"\");\n{text}\n{rest}"));
        user.dsr(&["run", "r.rhai", "-p", &format!("v={value}")]).status.success()
    };
    for value in ["/", "..", "Why?", "../*", "/*"] {
        assert!(!reads("print(P::v);", value, "../out/rows.txt"), "{value}");
    }
    let uses = "if P::v == \"\" { dataset(P::v); }";
    assert!(reads(uses, "../out", "../out/rows.txt"));
    assert!(reads(uses, "../out/*.txt", "../out/rows.txt"));
    assert!(reads(uses, "../out/*.txt", "../out/*.txt"));
    assert!(!reads(uses, "../out/*.json", "../out/rows.txt"));
}

#[test]
fn a_manifest_names_files_of_its_checkpoint_only() {
    let user = user();
    let secret = user.home.path().join("out/secret.bin");
    fs::write(&secret, [0; 12345]).unwrap();
    user.file("r.rhai", &format!("{MODEL}{ENGINE}e.load_checkpoint(\"c\");"));
    let absolute = secret.display().to_string();
    for name in ["../../../out/secret.bin", &absolute, "/etc/hostname", "a/../../x", "..", ""] {
        user.file("c/latest", "step-00000001\n");
        let file = "{\"bytes\":12345,\"crc32\":\"00000000\"}";
        let manifest = format!("{{\"format\":1,\"step\":1,\"files\":{{\"{name}\":{file}}}}}");
        user.file("c/step-00000001/manifest.json", &manifest);
        let (said, _) = user.error(&["run", "r.rhai"]);
        has(&said, &["E801", "no file of its own"]);
        assert!(!said.contains("12345 bytes") && !said.contains("CRC-32 "), "{name}: {said}");
    }
}

#[test]
fn what_is_not_a_checkpoint_or_an_export_stays() {
    let user = User::new();
    let save = |dir: &str| format!("{MODEL}{ENGINE}e.save_checkpoint(\"{dir}\");");
    let export = |dir: &str| format!("{MODEL}m.export_hf(\"{dir}\");");
    user.file("d/step-00000000/manifest.json", "{\"format\":1,\"step\":0,\"files\":{}}");
    let table = [
        ("a/step-00000000/thesis.tex", save("a")),
        ("b/step-00000000", save("b")),
        ("c/latest", save("c")),
        ("d/step-00000000/x", save("d")),
        ("e/config.json", export("e")),
        ("f/model.safetensors/x", export("f")),
        ("g/notes.txt", export("g")),
        ("h", export("h")),
    ];
    for (mine, recipe) in table {
        user.file(mine, "mine");
        user.file("r.rhai", &recipe);
        let (said, _) = user.error(&["run", "r.rhai"]);
        assert_eq!(user.read(mine), "mine", "{mine}: {said}");
        has(&said, &[mine.split('/').next().unwrap()]);
    }
    // What is dsr's own is replaced.
    for recipe in [save("own"), export("exported")] {
        user.file("r.rhai", &recipe);
        user.says(&["run", "r.rhai"]);
        user.says(&["run", "r.rhai"]);
    }
}

/// What a recipe writes as one file takes the place of its own kind alone.
#[test]
fn a_file_of_another_kind_is_not_overwritten() {
    let user = User::new();
    let writers = [
        ("tokenizer(\"dsr:gpt2\").save(\"FILE\");", "tok.json"),
        ("save_plot(\"FILE\", [[1, 2], [2, 3]], #{});", "plot.svg"),
    ];
    for (writer, file) in writers {
        user.file("r.rhai", &writer.replace("FILE", file));
        for mine in ["mine", "{}", "<svg></svg>\n", ""] {
            user.file(file, mine);
            let (said, _) = user.error(&["run", "r.rhai"]);
            has(&said, &[file, "is not overwritten"]);
            assert_eq!(user.read(file), mine);
        }
        fs::remove_file(user.work().join(file)).unwrap();
        symlink("r.rhai", user.work().join(file)).unwrap();
        has(&user.error(&["run", "r.rhai"]).0, &["is not overwritten"]);
        fs::remove_file(user.work().join(file)).unwrap();
        user.says(&["run", "r.rhai"]);
        let written = user.read(file);
        user.says(&["run", "r.rhai"]);
        assert_eq!(user.read(file), written);
    }
}

/// The files of a run that are links lead nowhere.
#[test]
fn nothing_is_written_through_a_link() {
    let user = User::new();
    let out = user.home.path().join("out");
    fs::create_dir(&out).unwrap();
    let run = "start_run(e, dataset(\"dsr:austen\").tokenize(tokenizer(\"dsr:gpt2\")).pack(8)\
               .loader(#{ micro_batch_size: 1 }), #{ total_steps: 1 });";
    user.file("r.rhai", &format!("{MODEL}{ENGINE}{run}"));
    symlink(&out, user.work().join("runs")).unwrap();
    for command in [&["run", "r.rhai"][..], &["launch", "--nproc-per-node", "1", "r.rhai"]] {
        let (said, _) = user.error(command);
        has(&said, &["E501"]);
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "{command:?}");
    }
    let logs = "let e = init_engine(m, #{ micro_batch_size: 1, csv_monitor: #{ enabled: true, \
                output_path: \"logs\", job_name: \"j\" } });";
    user.file("l.rhai", &format!("{MODEL}{logs}"));
    fs::create_dir_all(user.work().join("logs/j")).unwrap();
    for name in ["Train_Samples_lr.csv", "Train_Samples_train_loss.csv"] {
        let link = user.work().join("logs/j").join(name);
        let _ = fs::remove_file(&link);
        symlink(out.join("new"), &link).unwrap();
        user.error(&["run", "l.rhai"]);
        assert!(!out.join("new").exists(), "{name}");
        fs::remove_file(link).unwrap();
    }
}

#[test]
fn what_a_stranger_wrote_orders_no_terminal() {
    let user = User::new();
    let orders = "\u{1b}[2J\u{1b}]52;c;aGk=\u{7}";
    let recipes = [
        format!("dataset(\"/etc/{orders}x.txt\");"),
        "dataset(\"/etc/\\x1b]0;title\\x07\\x1b[2Jx.txt\");".to_owned(),
        format!("let a = {orders} 1;"),
        format!("param(\"a\", 1, \"{orders}help\");\nprint(P::a);"),
        format!("//! {orders} what this does\nprint(1);"),
        "import \"\\x1b[2Jm\" as m;".to_owned(),
        "throw \"\\x1b[2J\\x9b2J\";".to_owned(),
        "new_model(\"gpt2\", #{ \"\\x1b[2Jk\": 1 });".to_owned(),
        "print(\"\\x1b]0;title\\x07\\x1b[2J\\x08\\r\");".to_owned(),
    ];
    user.file("plain.rhai", "print(1);\n");
    for recipe in recipes {
        user.file("r.rhai", &recipe);
        for command in [
            &["check", "r.rhai"][..],
            &["run", "--no-prompt", "r.rhai"],
            &["run", "r.rhai", "--help"],
            &["run", "r.rhai", "--explain-permissions"],
            &["recipe", "diff", "plain.rhai", "r.rhai"],
        ] {
            let output = user.dsr(command);
            let said = [output.stdout, output.stderr].concat();
            let shown = String::from_utf8_lossy(&said);
            assert!(!shown.contains(['\u{1b}', '\u{7}', '\u{8}', '\r']), "{command:?}: {shown}");
        }
    }
    user.file("r.rhai", "print(\"\\x1b[1mbold\\x1b[0m \\x1b[2J\");");
    let bold = "\u{1b}[1mbold\u{1b}[0m ";
    assert_eq!(user.says(&["run", "r.rhai"]), format!("{bold}\\u{{1b}}[2J\n"));
    assert_eq!(user.says(&["run", "--raw", "r.rhai"]), format!("{bold}\u{1b}[2J\n"));
}

#[test]
fn a_request_is_one_line_of_what_is_seen() {
    let user = User::new();
    let paths = [
        "x.txt\\n  read    ./harmless.txt",
        "x\t\tok.txt",
        "\u{202e}txt.x",
        "\u{2028}y.txt",
        "a\u{200b}b.txt",
    ];
    for path in paths {
        user.file("r.rhai", &format!("dataset(\"/etc/{path}\");"));
        let said = user.says(&["run", "r.rhai", "--explain-permissions"]);
        assert_eq!(said.lines().count(), 2, "{said}");
        assert!(!said.contains(['\t', '\u{202e}', '\u{2028}', '\u{200b}']), "{said}");
    }
}

#[test]
fn a_bundle_runs_what_stands_above_its_first_mark() {
    let user = User::new();
    for (open, close) in [
        ("print(\"open\"); /* the end", "// */ print(\"HIDDEN\"); /*"),
        ("print(\"open\"); let x = `the end", "// `; print(\"HIDDEN\"); let y = `"),
    ] {
        let (mark, hash) = ("// --- dsr bundle: ", dsr::hash::sha256(open));
        let head = format!("{mark}recipe \"r.rhai\" sha256={hash} ---");
        user.file("b.rhai", &format!("{open}\n{head}\n{close}\n{mark}end ---\n"));
        let output = user.dsr(&["run", "b.rhai"]);
        assert!(!String::from_utf8_lossy(&output.stdout).contains("HIDDEN"), "{open}");
    }
}

#[test]
fn commands_of_a_script_write_where_a_recipe_may() {
    let user = User::new();
    write(&user.home.path().join(".bashrc"), "mine\n");
    let home = user.home.path().display();
    let run = |script: String, flags: &[&str]| {
        let mut command = support::program::dsr(&user.work(), &["repl", "--no-prompt"]);
        command.args(flags).env("HOME", user.home.path()).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        child.wait().unwrap().success()
    };
    assert!(!run(format!("let s = 1;\n:save --force {home}/.bashrc\n"), &[]));
    assert_eq!(fs::read_to_string(user.home.path().join(".bashrc")).unwrap(), "mine\n");
    assert!(!run(format!("let a = 1;\n:save {home}/x.rhai\n"), &[]));
    assert!(!run(format!(":plot [1.0, 2.0, 3.0] --svg {home}/x.svg\n"), &[]));
    assert!(!run("let a = 1;\n:save here.rhai\n".to_owned(), &["--deny-write"]));
    assert!(!user.home.path().join("x.rhai").exists() && !user.work().join("here.rhai").exists());
    assert!(run("let a = 1;\n:save here.rhai\n".to_owned(), &[]));
    let flag = format!("--allow-write={home}/x.rhai");
    assert!(run(format!("let a = 1;\n:save {home}/x.rhai\n"), &[&flag]));
}

/// A loop exchanges a directory for a link to another while files in it are read, written, listed and
/// removed. Nothing is read from, and nothing comes to, where the link leads. The exchanges come in
/// bursts: on a machine of any speed some fall between two steps of one access, and some accesses
/// meet none. The rounds go on until each kind of access has succeeded.
fn race(rounds: usize) {
    let root = tempfile::tempdir().unwrap();
    let (work, out) = (root.path().join("work"), root.path().join("out"));
    for dir in [&work.join("d"), &out] {
        fs::create_dir_all(dir).unwrap();
    }
    fs::write(work.join("d/file"), "mine").unwrap();
    fs::write(out.join("file"), "SECRET").unwrap();
    symlink(&out, work.join("link")).unwrap();
    let context = AccessContext { work_dir: work.clone(), ..AccessContext::default() };
    let guard = Arc::new(Permissions::new(Grants::default(), context, None));
    let ended = Arc::new(AtomicBool::new(false));
    let swapper = thread::spawn({
        let (ended, d, link) = (Arc::clone(&ended), work.join("d"), work.join("link"));
        move || {
            while !ended.load(Ordering::Relaxed) {
                for _ in 0..9 {
                    renameat_with(CWD, &d, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                }
                thread::sleep(Duration::from_micros(100));
            }
        }
    });
    let place = GuardedPlace::guarded(work.join("d"), guard);
    let mut done = [0_usize; 6];
    let mut round = 0;
    while round < rounds || (done.contains(&0) && round < 100 * rounds) {
        round += 1;
        if let Ok(text) = place.join("file").read_to_string() {
            assert_eq!(text, "mine");
            done[0] += 1;
        }
        let new = place.join(format!("new-{}", round % 7));
        done[1] += usize::from(places::write_atomic(&new, b"x").is_ok());
        done[2] += usize::from(place.join("log").append().is_ok());
        if let Ok(names) = place.list() {
            assert!(names.iter().any(|name| name == "file"));
            done[3] += 1;
        }
        if let Ok(file) = place.unnamed_file() {
            assert!(!std::fs::read_link(places::path_of(&file)).unwrap().starts_with(&out));
            done[5] += 1;
        }
        if round % 16 == 0 {
            let made = places::NewDir::create(place.join("dir")).and_then(|new| {
                fs::write(new.place().path().join("x"), "x").unwrap();
                new.publish()
            });
            done[4] +=
                usize::from(made.and_then(|()| places::remove_dir(place.join("dir"))).is_ok());
        }
    }
    ended.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    println!(
        "{round} rounds; read, written, appended, listed, made and removed, without a name: {done:?}"
    );
    assert!(!done.contains(&0), "{done:?}");
    let names: Vec<_> = fs::read_dir(&out).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["file"]);
    assert_eq!(fs::read_to_string(out.join("file")).unwrap(), "SECRET");
}

#[test]
fn a_directory_that_becomes_a_link_meanwhile_leads_nowhere() {
    race(2_000);
}

/// `cargo test race_of_many_rounds -- --ignored --nocapture`
#[test]
#[ignore = "it takes minutes"]
fn race_of_many_rounds() {
    race(100_000);
}
