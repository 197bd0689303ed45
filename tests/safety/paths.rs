//! Paths that a recipe was not given.

use super::*;

const MODEL: &str = "let model = new_model(\"gpt2\", #{ vocab_size: 8, n_positions: 8, n_embd: 4, \
                     n_layer: 1, n_head: 1 });\n";

#[test]
fn what_is_outside_cannot_be_read() {
    let place = Place::new();
    let specs = [
        "dataset(\"OUT/rows.txt\")",
        "dataset(\"OUT/none.txt\")",
        "dataset(\"OUT\")",
        "dataset(\"../rows.txt\")",
        "dataset(\"sub/../../rows.txt\")",
        "dataset(\"sub/none/../../../rows.txt\")",
        "dataset(\"/etc/passwd\")",
        "dataset(\"/proc/self/environ\")",
        "dataset(\"/proc/1/environ\")",
        "dataset(\"/proc/self/root/etc/hostname\")",
        "dataset(\"/proc/self/cwd/rows.txt\")",
        "dataset(\"/sys/kernel\")",
        "dataset(\"/dev/zero\")",
        "dataset(\"HOME/.ssh/id.txt\")",
        "dataset(\"HOME/.aws/credentials.txt\")",
        "dataset(\"link/rows.txt\")",
        "dataset(\"link\")",
        "dataset(\"link.txt\")",
        "dataset(\"nowhere\")",
        "dataset(\"loop\")",
        "dataset(\"data\")",
        "dataset(\"data/*.txt\")",
        "dataset(\"OUT/*.txt\")",
        "dataset(\"../*/rows.txt\")",
        "dataset(\"*/../../rows.txt\")",
        "dataset(\"link/*.txt\")",
        "dataset(\"**/rows.txt\")",
        "dataset(\".hidden/rows.txt\")",
        "load_model(\"OUT/m\")",
        "load_model(\"/\")",
        "load_model(\"../m\")",
        "load_model(\"link/m\")",
        "tokenizer(\"OUT/tokenizer.json\")",
        "tokenizer(\"/proc/self/maps\")",
        "tokenizer(\"HOME/.netrc\")",
        "tokenizer(\"vocab.json\", \"OUT/merges.txt\")",
        "new_model(\"OUT/m/config.json\")",
        "new_model(\"/proc/self/status\")",
        "from_deepspeed(\"OUT/ds_config.json\")",
        "from_deepspeed(\"/proc/self/environ\")",
    ];
    let table: Vec<_> = specs.iter().map(|&spec| (spec, Code::Permission)).collect();
    assert_codes(&place, &table);
    for fine in
        ["dataset(\"rows.txt\");", "dataset(\"fine.txt\");", "dataset(\"sub/../rows.txt\");"]
    {
        place.run(fine, |_| ()).unwrap_or_else(|f| panic!("{fine}: {:?}", f.faults));
    }
}

#[test]
fn what_is_outside_cannot_be_written() {
    let place = Place::new();
    let ends = [
        "model.export_hf(\"OUT/x\");",
        "model.export_hf(\"/\");",
        "model.export_hf(\"../x\");",
        "model.export_hf(\"link/x\");",
        "model.export_hf(\"nowhere\");",
        "model.export_hf(\".git/hooks\");",
        "model.export_hf(\"HOME/.ssh/x\");",
        "model.export_hf(\"HOME/.config/dsr\");",
        "model.export_hf(\"/proc/self/x\");",
        "init_engine(model, #{ micro_batch_size: 1 }).save_checkpoint(\"OUT/x\");",
        "init_engine(model, #{ micro_batch_size: 1 }).save_checkpoint(\"link/x\");",
        "init_engine(model, #{ micro_batch_size: 1 }).save_checkpoint(\"../x\");",
        "init_engine(model, #{ micro_batch_size: 1 }).load_checkpoint(\"OUT/x\");",
        "init_engine(model, #{ micro_batch_size: 1, csv_monitor: #{ enabled: true, output_path: \"OUT\" } });",
        "init_engine(model, #{ micro_batch_size: 1, csv_monitor: #{ enabled: true, job_name: \"../x\" } });",
        "init_engine(model, #{ micro_batch_size: 1, tensorboard: #{ enabled: true, output_path: \"link\" } });",
        "init_engine(model, #{ micro_batch_size: 1, flops_profiler: #{ enabled: true, output_file: \"OUT/rows.txt\" } });",
        "init_engine(model, #{ micro_batch_size: 1, zero: #{ stage: 1, offload_optimizer: \"nvme\", nvme_path: \"OUT\" } });",
    ];
    let recipes: Vec<String> = ends.iter().map(|end| format!("{MODEL}{end}")).collect();
    let table: Vec<_> = recipes.iter().map(|r| (r.as_str(), Code::Permission)).collect();
    assert_codes(&place, &table);
    assert_eq!(fs::read_to_string(place.out.path().join("rows.txt")).unwrap(), "1\n");
    assert!(!place.out.path().join("x").exists() && !place.out.path().join("none").exists());
}

#[test]
fn imports_stay_in_the_recipes_directory() {
    let place = Place::new();
    let file = |name: &str, text: &str| {
        place.recipe.file(name, text);
    };
    file("round.rhai", "import \"round\" as r;");
    file("evals.rhai", "eval(\"1\");");
    file("reads.rhai", "dataset(\"/etc/passwd\");");
    file("sub/up.rhai", "import \"../reads\" as r;");
    symlink(place.out.path().join("evil.rhai"), place.recipe.directory().join("linked.rhai"))
        .unwrap();
    assert_codes(
        &place,
        &[
            ("import \"../evil\" as e;", Code::Permission),
            ("import \"OUT/evil\" as e;", Code::Permission),
            ("import \"sub/../../evil\" as e;", Code::Permission),
            ("import \"link/evil\" as e;", Code::Permission),
            ("import \"linked\" as e;", Code::Permission),
            ("import \"https://example.org/evil\" as e;", Code::Permission),
            ("import \"/proc/self/environ\" as e;", Code::Permission),
            ("import \"sub/up\" as e;", Code::Permission),
            ("import \"reads\" as e;", Code::Permission),
            ("import \"round\" as e;", Code::Recipe),
            ("import \"evals\" as e;", Code::Syntax),
            ("import \"none\" as e;", Code::Io),
            ("import \"dsr:none\" as e;", Code::UnknownFunction),
        ],
    );
}

#[test]
fn a_refusal_can_be_caught_but_not_passed() {
    let place = Place::new();
    let recipe = "try { dataset(\"OUT/rows.txt\"); } catch (e) { print(e.code); }\n\
                  dataset(\"OUT/rows.txt\");";
    let failure = place.run(recipe, |_| ()).unwrap_err();
    let fault = &failure.faults[0];
    assert_eq!(fault.error.code(), Code::Permission);
    assert_eq!(fault.place.as_ref().map(|p| (p.line, p.column)), Some((2, 1)));
    let flag = format!(
        "--allow-read={}",
        place.out.path().canonicalize().unwrap().join("rows.txt").display()
    );
    assert!(fault.error.hints()[0].ends_with(&flag), "{:?}", fault.error);
}

#[test]
fn a_grant_gives_and_the_audit_log_tells() {
    let place = Place::new();
    let out = place.out.path().display().to_string();
    let log = place.home.path().join("audit.jsonl");
    let given = place.run("dataset(\"OUT/rows.txt\");\ndataset(\"rows.txt\");", |host| {
        host.workspace.rights.grants.read = Scope::These(vec![out.clone()]);
        host.workspace.rights.audit = Some(log.clone());
    });
    given.unwrap_or_else(|f| panic!("{:?}", f.faults));
    let refused = place.run("\ndataset(\"OUT/rows.txt\");", |host| {
        host.workspace.rights.audit = Some(log.clone())
    });
    assert!(refused.is_err());
    let lines: Vec<serde_json::Value> = fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let allowed: Vec<_> = lines.iter().map(|line| line["allowed"].as_bool().unwrap()).collect();
    assert_eq!(allowed, [true, true, false]);
    assert_eq!(lines[0]["capability"], "read");
    assert_eq!(lines[0]["what"], format!("{out}/rows.txt"));
    assert!(lines[2]["place"].as_str().unwrap().ends_with("recipe.rhai:2:1"), "{}", lines[2]);
}

/// A path that the user named on the command line is given; one of a parameter file is not.
#[test]
fn to_name_a_path_is_to_give_it() {
    use dsr::recipe::params::{GivenParameter, GivenValue};
    let place = Place::new();
    let recipe = "param(\"data\", \"rows.txt\");\ndataset(P::data);";
    let path: PathBuf = place.out.path().join("rows.txt");
    let with = |value| {
        let given = GivenParameter { name: "data".to_owned(), value };
        place.run(recipe, |host| host.workspace.rights.params = vec![given])
    };
    assert!(with(GivenValue::Text(path.display().to_string())).is_ok());
    assert!(with(GivenValue::Text(format!("{}/*.txt", place.out.path().display()))).is_ok());
    let of_file = with(GivenValue::Json(path.display().to_string().into()));
    assert_eq!(of_file.unwrap_err().code(), Code::Permission);
}
