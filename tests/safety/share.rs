//! Recipes that strangers share: addresses that lead elsewhere, bundles and locks that were changed.

use crate::support::user::{User, has};

#[test]
fn an_address_does_not_lead_to_a_private_one() {
    let user = User::new();
    let hash = dsr::hash::sha256("print(1);");
    for to in [
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://localhost:1/r.rhai",
        "http://[::1]/r.rhai",
        "http://2130706433/",
        "https://example.invalid/r.rhai",
    ] {
        user.web.redirect("/r.rhai", to);
        let address = format!("{}#sha256={hash}", user.web.address("/r.rhai"));
        let (said, status) = user.error(&["run", &address]);
        assert_eq!(status, 3, "{to}: {said}");
        has(&said, &["E501", "--allow-import="]);
        user.file("r.rhai", &format!("import \"{address}\" as r;"));
        let (said, status) = user.error(&["run", "r.rhai", "--allow-import=127.0.0.1"]);
        assert_eq!(status, 3, "{to}: {said}");
    }
    // A redirect on the same host is followed.
    user.web.put("/new.rhai", "print(1);");
    user.web.redirect("/r.rhai", "/new.rhai");
    let address = format!("{}#sha256={hash}", user.web.address("/r.rhai"));
    assert_eq!(user.says(&["run", &address]), "1\n");
}

const RUN: [&str; 2] = ["run", "c.rhai"];
const UNBUNDLE: [&str; 4] = ["recipe", "unbundle", "c.rhai", "apart"];

#[test]
fn a_bundle_that_was_changed_is_refused() {
    let user = User::new();
    user.file("r.rhai", "import \"parts/m\" as m;\nprint(m::f());\n");
    user.file("parts/m.rhai", "fn f() { 1 }\n");
    user.says(&["lock", "r.rhai"]);
    user.says(&["recipe", "bundle", "r.rhai", "-o", "b.rhai"]);
    let bundle = user.read("b.rhai");
    let line = |text: &str| bundle.lines().position(|l| l.contains(text)).unwrap() + 1;
    let cases = [
        ("fn f() { 1 }", "fn f() { 2 }", "E803", line("module \"parts/m")),
        ("print(m::f());", "print(m::g());", "E803", line("recipe \"r.rhai")),
        ("\"dsr\": \"", "\"dsr\": \"9", "E803", line("lock \"r.lock")),
        ("\"parts/m.rhai\" sha", "\"../m.rhai\" sha", "E501", line("module \"parts/m")),
        ("\"parts/m.rhai\" sha", "\"/etc/m.rhai\" sha", "E501", line("module \"parts/m")),
        ("\"parts/m.rhai\" sha", "\"a/../../m.rhai\" sha", "E501", line("module \"parts/m")),
        ("\"parts/m.rhai\" sha", "\"https://h/m\" sha256=1 sha", "E803", line("module \"parts/m")),
        ("bundle: recipe \"r.rhai", "bundle: recipe \"../r.rhai", "E501", line("recipe \"r.rhai")),
        ("//| fn f", "fn f", "E803", line("fn f")),
        ("bundle: end ---", "bundle: end --", "E803", line("bundle: end")),
    ];
    for (from, to, code, line) in cases {
        assert!(bundle.contains(from), "{from}");
        user.file("c.rhai", &bundle.replacen(from, to, 1));
        // The commands read a bundle in one way.
        let commands: &[&[&str]] = match from {
            "fn f() { 1 }" => {
                &[&RUN, &["run", "c.rhai", "--help"], &["check", "c.rhai"], &UNBUNDLE]
            }
            _ if code == "E501" => &[&UNBUNDLE],
            _ => &[&RUN],
        };
        for command in commands {
            let (said, _) = user.error(command);
            has(&said, &[code, &format!("c.rhai:{line}:1")]);
        }
        assert!(!user.work().join("apart").exists());
    }
}

#[test]
fn what_is_no_lock_is_refused_before_the_recipe_runs() {
    let user = User::new();
    user.file("r.rhai", "print(1);\n");
    user.says(&["lock", "r.rhai"]);
    let lock = user.read("r.lock");
    let cases = [
        ("{".to_owned(), "r.lock:1:1"),
        ("[]".to_owned(), "damaged"),
        (String::new(), "damaged"),
        (lock.replace("\"recipes\"", "\"recipe\""), "did you mean `recipes`?"),
        (lock.replace("\"r.rhai\": \"", "\"r.rhai\": \"x"), "`r.rhai` is no entry"),
        (lock.replace("\"dsr\"", "\"models\": { \"O/m@main\": {} },\n  \"dsr\""), "`O/m@main`"),
    ];
    for (text, why) in cases {
        user.file("r.lock", &text);
        // The commands read a lock in one way.
        let commands: &[&[&str]] = match text.as_str() {
            "{" => &[&["run", "r.rhai"], &["check", "r.rhai"], &["lock", "--check", "r.rhai"]],
            _ => &[&["run", "r.rhai"]],
        };
        for command in commands {
            let (said, status) = user.error(command);
            assert_eq!(status, 4, "{said}");
            has(&said, &["E803", "r.lock", why, "dsr lock RECIPE"]);
        }
        assert_eq!(user.read("r.lock"), text);
    }
    has(&user.says(&["lock", "r.rhai"]), &["written"]);
    assert_eq!(user.read("r.lock"), lock);
}
