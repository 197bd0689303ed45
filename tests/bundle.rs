//! Bundles: one file that is and does what the recipe and its imports did.

use std::fs;

use crate::support::user::{User, has};

const RECIPE: &str = "//! Adds.\nparam(\"n\", 1, \"what\");\nimport \"parts/sum\" as sum;\n\
                      import \"dsr:schedule\" as schedule;\nprint(sum::two(P::n));\n";

fn user() -> User {
    let user = User::new();
    user.file("own/r.rhai", RECIPE);
    user.file("own/parts/sum.rhai", "import \"one\" as one;\nfn two(n) { one::one() + n }");
    user.file("own/parts/one.rhai", "// One.\n\nfn one() { 1 }\n");
    user
}

#[test]
fn a_bundle_does_the_same_anywhere() {
    let user = user();
    user.says(&["lock", "own/r.rhai"]);
    let said = user.says(&["recipe", "bundle", "own/r.rhai", "-o", "b.rhai"]);
    assert_eq!(said, "b.rhai: 2 modules, with its lock\n");
    let bundle = user.read("b.rhai");
    assert!(bundle.starts_with(RECIPE), "{bundle}");
    has(
        &bundle,
        &["module \"parts/one.rhai\" sha256=", "\n//| // One.\n//|\n//| fn one() { 1 }\n"],
    );
    fs::create_dir(user.work().join("else")).unwrap();
    fs::rename(user.work().join("b.rhai"), user.work().join("else/c.rhai")).unwrap();
    fs::remove_dir_all(user.work().join("own")).unwrap();
    for args in [&["run", "else/c.rhai"][..], &["run", "else/c.rhai", "--frozen", "--offline"]] {
        assert_eq!(user.says(args), "2\n");
    }
    has(&user.says(&["run", "else/c.rhai", "--help"]), &["Adds.", "what"]);
    has(&user.says(&["check", "else/c.rhai", "--frozen"]), &["no mistake found"]);
    has(&user.says(&["lock", "--check", "else/c.rhai"]), &["the lock is true"]);
    assert_eq!(user.says(&["recipe", "show", "else/c.rhai"]), bundle);
    // A bundle at an address is a recipe like any other.
    let address = user.web.put("/b.rhai", &bundle);
    assert_eq!(user.says(&["run", &address, "-p", "n=3"]), "4\n");
    // It has no files but those in it.
    user.file("parts/sum.rhai", "fn two(n) { 9 }\n");
    user.file("one.rhai", "fn one() { 9 }\n");
    assert_eq!(user.says(&["run", &address]), "2\n");
    let module = "import \"one\" as one;\nfn f() { one::one() }\n";
    let reaching = dsr::recipe::bundle::Bundle {
        name: "r.rhai".to_owned(),
        recipe: "import \"m\" as m;\nprint(m::f());\n".to_owned(),
        modules: [("m.rhai".to_owned(), module.to_owned())].into(),
        lock: None,
    };
    let (said, status) = user.error(&["run", &user.web.put("/o.rhai", reaching.text())]);
    assert_eq!(status, 3);
    has(&said, &["cannot import the file \"one\"", "m.rhai:1:8"]);
    // And a bundle of a bundle is the same.
    user.says(&["recipe", "bundle", "else/c.rhai", "-o", "again.rhai"]);
    assert_eq!(user.read("again.rhai"), bundle);
}

#[test]
fn a_bundle_is_taken_apart_into_what_it_was() {
    let user = user();
    user.says(&["lock", "own/r.rhai"]);
    assert_eq!(
        user.says(&["recipe", "bundle", "own/r.rhai"]),
        "r.bundle.rhai: 2 modules, with its lock\n"
    );
    let said = user.says(&["recipe", "unbundle", "r.bundle.rhai", "apart"]);
    assert_eq!(said, "apart/r.rhai\napart/parts/one.rhai\napart/parts/sum.rhai\napart/r.lock\n");
    for file in ["r.rhai", "parts/one.rhai", "parts/sum.rhai", "r.lock"] {
        assert_eq!(
            user.read(&format!("apart/{file}")),
            user.read(&format!("own/{file}")),
            "{file}"
        );
    }
    assert_eq!(user.says(&["run", "apart/r.rhai", "--frozen"]), "2\n");
    for args in
        [&["recipe", "unbundle", "r.bundle.rhai", "apart"][..], &["recipe", "bundle", "own/r.rhai"]]
    {
        let (said, status) = user.error(args);
        assert_eq!(status, 4);
        has(&said, &["is there already, and is not overwritten"]);
    }
    let (said, status) = user.error(&["recipe", "unbundle", "own/r.rhai", "x"]);
    assert_eq!(status, 2);
    has(&said, &["is no bundle"]);
}

/// Code of an address is part of a bundle, and needs neither a grant nor the network.
#[test]
fn a_bundle_has_the_code_of_addresses() {
    let user = User::new();
    let inner = user.web.put("/inner.rhai", "fn one() { 1 }\n");
    let module =
        user.web.put("/m.rhai", format!("import \"{inner}\" as i;\nfn two() {{ i::one() + 1 }}\n"));
    user.file("r.rhai", &format!("import \"{module}\" as m;\nprint(m::two());\n"));
    let (said, status) = user.error(&["recipe", "bundle", "r.rhai"]);
    assert_eq!(status, 3);
    has(&said, &["--allow-import=127.0.0.1", "r.rhai:1:1"]);
    user.says(&["recipe", "bundle", "r.rhai", "--allow-import=127.0.0.1"]);
    fs::remove_dir_all(user.home.path().join(".cache/dsr")).unwrap();
    user.web.take_asked();
    assert_eq!(user.says(&["run", "r.bundle.rhai"]), "2\n");
    has(
        &user.says(&["run", "r.bundle.rhai", "--explain-permissions"]),
        &["nothing that its text says"],
    );
    assert!(user.web.take_asked().is_empty());
    // What is taken apart is in the cache.
    user.says(&["recipe", "unbundle", "r.bundle.rhai", "apart"]);
    assert_eq!(user.says(&["run", "apart/r.rhai", "--offline", "--allow-import=127.0.0.1"]), "2\n");
}

#[test]
fn what_cannot_be_bundled_is_refused() {
    let user = user();
    user.file("r.rhai", "let name = \"own\";\nimport name + \"/r\" as r;\n");
    let (said, _) = user.error(&["recipe", "bundle", "r.rhai"]);
    has(&said, &["put together", "r.rhai:2:1"]);
    user.file("r.rhai", "import \"../r\" as r;\n");
    let (said, status) = user.error(&["recipe", "bundle", "r.rhai"]);
    assert_eq!(status, 3);
    has(&said, &["leaves the recipe's directory", "r.rhai:1:1"]);
    user.file("r.rhai", "import \"none\" as r;\n");
    assert_eq!(user.error(&["recipe", "bundle", "r.rhai"]).1, 4);
    std::os::unix::fs::symlink("own/parts/one.rhai", user.work().join("link.rhai")).unwrap();
    user.file("r.rhai", "import \"link\" as r;\n");
    has(&user.error(&["recipe", "bundle", "r.rhai"]).0, &["is a link to own/parts/one.rhai"]);
    // A lock of another text.
    user.says(&["lock", "own/r.rhai"]);
    user.file("own/parts/one.rhai", "fn one() { 2 }\n");
    let (said, _) = user.error(&["recipe", "bundle", "own/r.rhai"]);
    has(&said, &["E803", "parts/one.rhai is not what the lock says", "dsr lock"]);
    assert!(!user.work().join("r.bundle.rhai").exists());
}

#[test]
fn two_recipes_are_compared() {
    let user = user();
    user.file(
        "b.rhai",
        "//! Adds.\nparam(\"n\", 2, \"what\");\nparam(\"m\", \"x\", \"more\");\nprint(P::n);\n\
         dataset(\"O/d\");\nprint(P::m);\n",
    );
    let said = user.says(&["recipe", "diff", "own/r.rhai", "b.rhai"]);
    has(
        &said,
        &[
            "--- own/r.rhai\n+++ b.rhai\n@@ -1,5 +1,6 @@\n //! Adds.\n-param(\"n\", 1, \"what\");\n",
            "--- parts/sum.rhai\n+++ /dev/null\n",
            "\nWhat it asks for:\n+ net     127.0.0.1  dataset(\"O/d\")\n",
            "\nParameters:\n- n  int  1  what\n+ m  string  \"x\"  more\n+ n  int  2  what\n",
        ],
    );
    let said = user.says(&["recipe", "diff", "gpt2_loop", "dsr:gpt2_loop"]);
    assert_eq!(
        said,
        "The texts are the same.\n\nWhat it asks for: the same\n\nParameters: the same\n"
    );
    assert_eq!(user.error(&["recipe", "diff", "b.rhai", "none.rhai"]).1, 4);
}
