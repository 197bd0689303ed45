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
