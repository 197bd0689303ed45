//! Recipes and imports at an address: run by their hash, kept in the cache, refused without a grant.

use std::fs;

use crate::support::user::{User, has};

const LOCAL: &str = "--allow-import=127.0.0.1";

#[test]
fn a_recipe_at_an_address_runs_by_its_hash() {
    let user = User::new();
    let recipe =
        "//! Says hello.\nparam(\"name\", \"you\", \"whom\");\nprint(`hello ${P::name}`);\n";
    let address = user.web.put("/r.rhai", recipe);
    assert_eq!(user.says(&["run", &address, "-p", "name=me"]), "hello me\n");
    assert_eq!(user.web.take_asked(), ["/r.rhai"]);
    // From here on it is in the cache.
    for offline in [&[][..], &["--offline"]] {
        assert_eq!(user.says(&[&["run", &address][..], offline].concat()), "hello you\n");
        has(
            &user.says(&[&["run", &address, "--help"][..], offline].concat()),
            &["Says hello.", "whom"],
        );
        has(&user.says(&[&["check", &address][..], offline].concat()), &["no mistake found"]);
        has(&user.says(&[&["recipe", "check", &address][..], offline].concat()), &["no mistake"]);
        assert_eq!(user.says(&[&["recipe", "show", &address][..], offline].concat()), recipe);
    }
    assert_eq!(user.says(&["recipe", "cp", &address, "mine.rhai"]), "mine.rhai\n");
    assert_eq!(user.read("mine.rhai"), recipe);
    assert!(user.web.take_asked().is_empty());
}

#[test]
fn without_a_hash_the_line_to_paste_is_told() {
    let user = User::new();
    let pinned = user.web.put("/r.rhai", "print(1);");
    let address = user.web.address("/r.rhai");
    for command in [&["run"][..], &["check"], &["recipe", "show"]] {
        let (said, status) = user.error(&[command, &[&address]].concat());
        assert_eq!(status, 2, "{said}");
        has(&said, &["error[E104]", "has no hash", &pinned]);
    }
    let (said, status) = user.error(&["run", &address, "--offline"]);
    assert_eq!(status, 4);
    has(&said, &["error[E604]", "offline"]);
    let (said, status) = user.error(&["run", &address, "--deny-import"]);
    assert_eq!(status, 3);
    has(&said, &["error[E501]", "--deny-import says so"]);
}

#[test]
fn another_text_than_that_of_the_hash_is_never_read() {
    let user = User::new();
    let good = user.web.put("/r.rhai", "print(1);");
    let (was, now) = (dsr::hash::sha256("print(1);"), dsr::hash::sha256("let ("));
    user.web.put("/r.rhai", "let (");
    let (said, status) = user.error(&["run", &good]);
    assert_eq!(status, 4);
    has(&said, &["error[E803]", "another hash", &was, &now]);
    // A damaged cache is no cache.
    user.web.put("/r.rhai", "print(1);");
    assert_eq!(user.says(&["run", &good]), "1\n");
    let cached = user.home.path().join(format!(".cache/dsr/recipes/{was}.rhai"));
    fs::write(&cached, "print(2);").unwrap();
    let (said, _) = user.error(&["run", &good, "--offline"]);
    has(&said, &["error[E604]", "is not in the cache"]);
    assert_eq!(user.says(&["run", &good]), "1\n");
    assert_eq!(fs::read_to_string(&cached).unwrap(), "print(1);");
}

#[test]
fn what_is_no_recipe_is_refused() {
    let user = User::new();
    let none = dsr::hash::sha256("");
    let big = user.web.put("/big.rhai", vec![b' '; (4 << 20) + 1]);
    let binary = user.web.put("/binary.rhai", [0xff, 0xfe]);
    let table = [
        (format!("{}#sha256={none}", user.web.address("/none.rhai")), "E604", "there is nothing"),
        (big, "E604", "larger than 4.0 MiB"),
        (binary, "E604", "no text in UTF-8"),
        (format!("{}#sha256=12", user.web.address("/r.rhai")), "E103", "is not a hash of SHA-256"),
        (format!("{}#md5={none}", user.web.address("/r.rhai")), "E103", "is not a hash"),
        (format!("http://example.org/r.rhai#sha256={none}"), "E604", "not encrypted"),
        (format!("https://me:secret@example.org/r#sha256={none}"), "E103", "not an address"),
    ];
    for (address, code, why) in table {
        let (said, _) = user.error(&["run", &address]);
        has(&said, &[code, why]);
    }
}

/// A grant, the list, the audit log, and what a module at an address may import itself.
#[test]
fn an_import_from_an_address_needs_a_grant() {
    let user = User::new();
    let inner = user.web.put("/inner.rhai", "import \"dsr:schedule\" as s;\nfn one() { 1 }\n");
    let module = format!("import \"{inner}\" as inner;\nfn two() {{ inner::one() + 1 }}\n");
    let module = user.web.put("/m.rhai", module);
    user.file("r.rhai", &format!("let x = 1;\nimport \"{module}\" as m;\nprint(m::two());\n"));

    let (said, status) = user.error(&["run", "r.rhai"]);
    assert_eq!(status, 3);
    has(&said, &["error[E501]: the recipe may not import from 127.0.0.1", LOCAL, "r.rhai:2:8"]);
    let (said, status) = user.error(&["check", "r.rhai"]);
    assert_eq!(status, 3);
    has(&said, &["E501", LOCAL, "is not in the cache", "r.rhai:2:1"]);
    let listed = user.says(&["run", "r.rhai", "--explain-permissions"]);
    has(&listed, &["import  127.0.0.1  (needs a grant)  import \"http", "not read, as"]);
    assert!(user.web.take_asked().is_empty());

    for refused in
        [&[LOCAL, "--deny-import=127.0.0.1"][..], &["-A"], &["--allow-import=example.org"]]
    {
        let (said, status) = user.error(&[&["run", "r.rhai"], refused].concat());
        assert_eq!(status, 3, "{refused:?}: {said}");
    }
    assert!(user.web.take_asked().is_empty());

    assert_eq!(user.says(&["run", "r.rhai", LOCAL, "--audit=log"]), "2\n");
    assert_eq!(user.web.take_asked(), ["/m.rhai", "/inner.rhai"]);
    let line: serde_json::Value =
        serde_json::from_str(user.read("log").lines().next().unwrap()).unwrap();
    assert_eq!((&line["capability"], &line["what"]), (&"import".into(), &"127.0.0.1".into()));
    assert!(line["place"].as_str().unwrap().ends_with("r.rhai:2:8"), "{line}");

    // What is in the cache may be read by anybody, and run with the grant alone.
    has(&user.says(&["check", "r.rhai"]), &["no mistake found"]);
    assert_eq!(user.says(&["run", "r.rhai", LOCAL, "--offline"]), "2\n");
    assert_eq!(user.error(&["run", "r.rhai", "--offline"]).1, 3);
    let listed = user.says(&["run", "r.rhai", "--explain-permissions"]);
    assert!(!listed.contains("not read"), "{listed}");
}

#[test]
fn an_import_without_a_hash_is_refused_with_the_line_to_paste() {
    let user = User::new();
    let pinned = user.web.put("/m.rhai", "fn f() { 1 }");
    let address = user.web.address("/m.rhai");
    user.file("r.rhai", &format!("import \"{address}\" as m;\n"));
    let (said, status) = user.error(&["run", "r.rhai"]);
    assert_eq!(status, 3);
    has(&said, &["E501", LOCAL, "#sha256=HEX", "r.rhai:1:8"]);
    for command in ["run", "check"] {
        let (said, status) = user.error(&[command, "r.rhai", LOCAL]);
        assert_eq!(status, 2);
        has(&said, &["error[E104]", &pinned, "r.rhai:1:"]);
    }
}

/// Mistakes in what is imported are found in it, and calls of it are checked.
#[test]
fn check_reads_what_is_at_an_address() {
    let user = User::new();
    let module = user.web.put("/m.rhai", "fn f(x) { x }\nfn g() { lod_model(\"x\") }\n");
    user.file("r.rhai", &format!("import \"{module}\" as m;\nprint(m::ff(1));\n"));
    let (said, status) = user.error(&["check", "r.rhai", LOCAL]);
    assert_eq!(status, 2);
    has(&said, &["unknown function `lod_model`", "/m.rhai", "did you mean `m::f`?"]);
}

#[test]
fn what_is_at_an_address_imports_no_files() {
    let user = User::new();
    user.file("own.rhai", "fn f() { 1 }");
    let module = user.web.put("/m.rhai", "import \"own\" as own;\nfn f() { own::f() }\n");
    user.file("r.rhai", &format!("import \"{module}\" as m;\nprint(m::f());\n"));
    let (said, status) = user.error(&["run", "r.rhai", LOCAL]);
    assert_eq!(status, 3);
    has(&said, &["E501", "cannot import the file \"own\"", "/m.rhai"]);
    let recipe = user.web.put("/r.rhai", "import \"own\" as own;\nprint(own::f());\n");
    let (said, status) = user.error(&["run", &recipe]);
    assert_eq!(status, 3);
    has(&said, &["cannot import the file \"own\""]);
}

/// What is trusted stays trusted when the imports have come into the cache.
#[test]
fn the_trust_file_gives_imports() {
    let user = User::new();
    let module = user.web.put("/m.rhai", "fn f() { 1 }\n");
    user.file("r.rhai", &format!("import \"{module}\" as m;\nprint(m::f());\n"));
    let listed = user.says(&["run", "r.rhai", "--explain-permissions"]);
    let hash = listed.split("sha256 ").nth(1).unwrap().split(')').next().unwrap();
    let trust = format!("[recipe.{hash}]\nname = \"r\"\ntime = 1\nimport = [\"127.0.0.1\"]\n");
    fs::create_dir_all(user.home.path().join(".config/dsr")).unwrap();
    let file = user.home.path().join(".config/dsr/trust.toml");
    fs::write(&file, &trust).unwrap();
    for _ in 0..2 {
        assert_eq!(user.says(&["run", "r.rhai"]), "1\n");
    }
    fs::write(&file, trust.replace("import", "imports")).unwrap();
    let (said, status) = user.error(&["run", "r.rhai"]);
    assert_eq!(status, 4);
    has(&said, &["E802", "trust.toml:4", "unknown field `imports`", "did you mean `import`?"]);
}
