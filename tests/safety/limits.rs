//! Recipes that want more than there is: memory, depth, numbers.

use super::*;

#[test]
fn memory_depth_and_numbers_have_limits() {
    let place = Place::new();
    let deep_json = format!("parse_json(\"{}\");", "[".repeat(100_000));
    let deep_text = format!("let x = {}1{};", "(".repeat(5000), ")".repeat(5000));
    let many_functions: String = (0..2000).map(|i| format!("fn f{i}() {{ {i} }}\n")).collect();
    let many_variables: String = (0..2000).map(|i| format!("let v{i} = {i};\n")).collect();
    assert_codes(
        &place,
        &[
            ("fn f(n) { f(n + 1) }\nf(0);", Code::Recipe),
            ("fn a(n) { b(n) }\nfn b(n) { a(n) }\na(0);", Code::Recipe),
            ("let f = |x| 0;\nf = |g| g.call(g);\nf.call(f);", Code::Recipe),
            ("let s = \"x\";\nloop { s += s; }", Code::Recipe),
            ("let a = [0];\nloop { a += a; }", Code::Recipe),
            ("let a = [\"x\"];\nloop { a = [a, a]; }", Code::Recipe),
            ("let m = #{};\nloop { m = #{ a: m, b: m }; }", Code::Recipe),
            ("let f = |a, b| 1;\nloop { f = f.curry(f); }", Code::Syntax),
            ("let s = \"\";\ns.pad(1000000000000, \"x\");", Code::Recipe),
            ("let s = \"\";\ns.pad(10, \"\");", Code::BadValue),
            (
                "let s = \"\";\ns.pad(1000000, \"a\");\nlet t = s;\ns.replace(\"a\", t);",
                Code::Recipe,
            ),
            ("let s = \"\";\ns.pad(1000000, \"a\");\nlet t = s;\ns.replace('a', t);", Code::Recipe),
            ("let b = blob(1000000000000);", Code::Recipe),
            ("let a = [];\na.pad(1000000000000, 1);", Code::Recipe),
            ("let x = 9223372036854775807 + 1;", Code::Recipe),
            ("let x = 1 / 0;", Code::Recipe),
            ("let x = 1 % 0;", Code::Recipe),
            ("let x = 1 << 9223372036854775807;\nthrow x;", Code::Recipe),
            ("let a = [1];\nlet x = a[9223372036854775807];", Code::BadValue),
            ("eval(\"1\");", Code::Syntax),
            (&deep_json, Code::BadValue),
            (&deep_text, Code::Syntax),
            (&many_functions, Code::Syntax),
            (&many_variables, Code::Recipe),
            ("for i in 0..9223372036854775807 { }", Code::Recipe),
            ("new_model(\"gpt2\", #{ vocab_size: 9000000000000000 });", Code::ModelConfig),
            ("new_model(\"gpt2\", #{ n_layer: 1000000000000 });", Code::ModelConfig),
            (
                "init_engine(new_model(\"gpt2\", #{ n_embd: 1200000 }), #{ micro_batch_size: 1 });",
                Code::Memory,
            ),
            ("dataset(\"rows.txt\").loader(#{ micro_batch_size: -1 });", Code::BadValue),
            ("dataset(\"rows.txt\").take(-1);", Code::BadValue),
        ],
    );
}

/// The time of a recipe ends as if the user had asked.
#[test]
fn an_endless_loop_can_be_stopped() {
    let place = Place::new();
    let stopped = place.run("let x = 0;\nloop { x += 1; }", |host| {
        let interrupt = host.interrupt.clone();
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(100));
            interrupt.request();
        });
    });
    assert_eq!(stopped.unwrap_err().code(), Code::Interrupted);
}

/// Values that are each within their limit fill no memory together.
#[test]
fn many_large_values_end_the_recipe_before_the_memory_ends() {
    let dir = tempfile::tempdir().unwrap();
    let recipes = [
        "let a = []; a.pad(10000, 0); a.map(|x| { let c = []; c.pad(1000000, 0); c });",
        "let a = []; a.pad(10000, 0); a.map(|x| { let c = \"\"; c.pad(16000000, \"x\"); c });",
        "let f = []; for i in 0..100000 { let s = []; s.pad(100000, 0); let g = || s; f.push(g); }",
    ];
    for recipe in recipes {
        write(&dir.path().join("r.rhai"), recipe);
        let output = std::process::Command::new("prlimit")
            .args(["--as=6000000000", env!("CARGO_BIN_EXE_dsr"), "run", "r.rhai"])
            .current_dir(dir.path())
            .output()
            .unwrap();
        let text = support::program::text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{recipe}: {text}");
        assert!(text.contains("error[E111]: the recipe's values take more than"), "{text}");
    }
}

/// Memory that the system refuses is one sentence with its code.
#[test]
fn refused_memory_is_told_in_words() {
    let recipes = [
        "let a = ones([30000, 30000]);",
        "let a = randn([1000000]); for i in 0..12 { a = cat([a, a]); }",
        "init_engine(new_model(\"gpt2-medium\"), #{ micro_batch_size: 1 });",
    ];
    for recipe in recipes {
        let output = std::process::Command::new("prlimit")
            .args(["--as=4500000000", env!("CARGO_BIN_EXE_dsr"), "eval", recipe])
            .env("DSR_DEVICE", "cpu")
            .output()
            .unwrap();
        let text = support::program::text(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{recipe}: {text}");
        assert!(text.starts_with("error[E301]: ") && !text.contains("frame #"), "{text}");
    }
}
