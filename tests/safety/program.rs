//! The flags of the program: grants, the list without a run, the trust file, the sandbox, the time.

use std::process::Output;

use super::*;
use crate::support::program::text;

fn dsr(place: &Place, recipe: &str, args: &[&str]) -> Output {
    place.recipe.file("recipe.rhai", &place.text(recipe));
    support::program::command()
        .args(["run", "recipe.rhai"])
        .args(args)
        .current_dir(place.recipe.directory())
        .env("HOME", place.home.path())
        .env_remove("HF_HOME")
        .env_remove("XDG_CONFIG_HOME")
        .output()
        .unwrap()
}

#[test]
fn flags_give_and_deny() {
    let place = Place::new();
    let recipe = "print(dataset(\"OUT/rows.txt\").count());";
    let out = place.out.path().display().to_string();
    let refused = dsr(&place, recipe, &[]);
    assert_eq!(refused.status.code(), Some(3), "{}", text(&refused.stderr));
    let error = text(&refused.stderr);
    let flag =
        format!("--allow-read={}/rows.txt", place.out.path().canonicalize().unwrap().display());
    assert!(
        error.starts_with("error[E501]: the recipe may not read") && error.contains(&flag),
        "{error}"
    );
    let runs = |args: &[&str]| {
        let output = dsr(&place, recipe, args);
        (output.status.code() == Some(0), text(&output.stderr))
    };
    for args in [
        vec![flag.as_str()],
        vec![&format!("--allow-read=/none,{out}")],
        vec!["--allow-read"],
        vec!["-A"],
    ] {
        let (ran, error) = runs(&args);
        assert!(ran, "{args:?}: {error}");
    }
    let deny = format!("--deny-read={out}");
    for args in [vec!["-A", &deny], vec!["-A", "--deny-read"], vec!["--allow-write"]] {
        assert!(!runs(&args).0, "{args:?}");
    }
}

/// A training must not find out at its end that its model may not be saved.
#[test]
fn what_the_text_asks_for_is_refused_before_it_runs() {
    let place = Place::new();
    let recipe = "print(\"trains\");\nlet data = dataset(\"OUT/rows.txt\");\n\
                  new_model(\"gpt2\").export_hf(\"OUT/model\");";
    let log = place.home.path().join("log");
    let audit = format!("--audit={}", log.display());
    let refused = dsr(&place, recipe, &[&audit]);
    assert_eq!(refused.status.code(), Some(3), "{}", text(&refused.stderr));
    assert_eq!(text(&refused.stdout), "");
    let error = text(&refused.stderr);
    for part in ["--allow-read=", "recipe.rhai:2:12", "--allow-write=", "recipe.rhai:3:19"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(log.matches("\"allowed\":false").count(), 2, "{log}");
    assert!(log.contains("\"place\":\"recipe.rhai:3:19\""), "{log}");
}

#[test]
fn the_list_is_printed_without_a_run() {
    let place = Place::new();
    let module = place.text("fn f(model) { model.export_hf(\"OUT/x\"); }");
    place.recipe.file("m.rhai", &module);
    let recipe = "param(\"data\", \"OUT/rows.txt\");\nimport \"m\" as m;\nprint(\"ran\");\n\
                  dataset(P::data);\nload_model(\"O/m\");\ndataset(\"/proc/self/environ\");";
    let output = dsr(&place, recipe, &["--explain-permissions"]);
    let list = text(&output.stdout);
    for line in [
        "(needs a grant)  dataset(",
        "net     huggingface.co  (needs a grant)  load_model(\"O/m\")",
        "read    /proc/self/environ  (never given)",
        "/x  (needs a grant)  export_hf(",
    ] {
        assert!(list.contains(line), "{line}: {list}");
    }
    assert!(!list.contains("ran\n"));
}

/// What a user has answered with `t` is given again to the same text, and to no other.
#[test]
fn the_trust_file_gives_what_it_says() {
    let place = Place::new();
    let recipe = "print(dataset(\"OUT/rows.txt\").count());";
    let listed = text(&dsr(&place, recipe, &["--explain-permissions"]).stdout);
    let hash = listed.split("sha256 ").nth(1).unwrap().split(')').next().unwrap();
    let file = dsr::permission::TrustFile::at(place.home.path().join(".config/dsr/trust.toml"));
    let mut grants = dsr::permission::Grants::default();
    grants.add(dsr::permission::Capability::Read, place.out.path().display().to_string());
    file.trust(hash, "recipe.rhai", &grants).unwrap();
    assert!(dsr(&place, recipe, &[]).status.success());
    assert_eq!(dsr(&place, &format!("{recipe}\n"), &[]).status.code(), Some(3));
}

#[test]
fn the_time_and_the_output_of_a_recipe_end() {
    let place = Place::new();
    let output = dsr(&place, "let x = 0;\nloop { x += 1; }", &["--max-hours=0.0002"]);
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("the time is up"), "{}", text(&output.stderr));
    assert_eq!(dsr(&place, "print(1);", &["--max-hours=0"]).status.code(), Some(2));

    let endless = "try { loop { print(`no end in sight`); } } catch { print(`caught`); }";
    let output = dsr(&place, endless, &["--max-output=1kB"]);
    let said = text(&output.stderr);
    assert!(said.contains("the recipe has printed more than"), "{said}");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 992));
}

#[test]
fn a_recipe_works_with_the_sandbox_and_without() {
    let place = Place::new();
    let recipe = "let model = new_model(\"gpt2\", #{ vocab_size: 8, n_positions: 8, n_embd: 4, \
                  n_layer: 1, n_head: 1 });\nmodel.export_hf(\"x\");\nprint(load_model(\"x\").num_params);";
    for args in [vec!["--sandbox=off"], vec!["--sandbox=landlock"], vec![]] {
        let output = dsr(&place, recipe, &args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    }
}

/// Values that are nested deeper than an ordinary stack go away without a crash. Closures nest in no
/// time; arrays are counted at each level, whose cost grows with the square of the depth.
#[test]
fn a_deep_value_ends_nothing() {
    let place = Place::new();
    let (open, close) = ("[".repeat(40), "]".repeat(40));
    let recipe = format!(
        "let a = 1;\nfor i in 0..60000 {{ let b = a; a = [|| b]; }}\n\
         let a = 1;\nfor i in 0..500 {{ a = {open}a{close}; }}\nprint(\"deep\");"
    );
    let output = dsr(&place, &recipe, &[]);
    assert_eq!(text(&output.stdout), "deep\n", "{}", text(&output.stderr));
    assert!(output.status.success());
}
