//! Links in what came with a recipe: its lock, the audit log, the directory of an offload, a cache of the hub.

use super::*;
use crate::support::{
    program::{dsr, text},
    user::{User, has},
};

const MODEL: &str = "let m = new_model(\"gpt2\", #{ vocab_size: 8, n_positions: 8, n_embd: 4, \
                     n_layer: 1, n_head: 1 });\n";

/// The log is the user's, but its name may stand for something else in a stranger's directory.
#[test]
fn the_audit_log_is_written_through_no_link() {
    let user = User::new();
    let victim = user.home.path().join("out/victim");
    write(&victim, "mine\n");
    user.file("rows.txt", "a row\n");
    user.file("r.rhai", "print(dataset(\"rows.txt\").count());");
    symlink(&victim, user.work().join("audit.jsonl")).unwrap();
    symlink(victim.parent().unwrap(), user.work().join("logs")).unwrap();
    let absolute = user.work().join("audit.jsonl").display().to_string();
    for log in ["audit.jsonl", "./audit.jsonl", "logs/new", "logs/victim", &absolute] {
        let (said, status) = user.error(&["run", "r.rhai", &format!("--audit={log}")]);
        assert_eq!(status, 4, "{said}");
        has(&said, &["it is a link, and is not followed"]);
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "mine\n");
    assert!(!victim.with_file_name("new").exists());
    // A link elsewhere is the user's own.
    let own = user.home.path().join("own.jsonl");
    symlink(victim.with_file_name("new"), &own).unwrap();
    for log in [own.display().to_string(), "plain.jsonl".to_owned()] {
        user.says(&["run", "r.rhai", &format!("--audit={log}")]);
    }
    for log in [victim.with_file_name("new"), user.work().join("plain.jsonl")] {
        has(&fs::read_to_string(log).unwrap(), &["rows.txt"]);
    }
}

/// A lock beside a recipe came with it. The user may name any other.
#[test]
fn a_lock_beside_a_recipe_is_no_link() {
    let user = User::new();
    user.file("r.rhai", "print(1);\n");
    user.says(&["lock", "r.rhai"]);
    fs::rename(user.work().join("r.lock"), user.work().join("other.lock")).unwrap();
    symlink("other.lock", user.work().join("r.lock")).unwrap();
    let (said, _) = user.error(&["run", "r.rhai"]);
    has(&said, &["r.lock: it is a link, and is not followed"]);
    user.says(&["run", "--frozen", "--lock", "r.lock", "r.rhai"]);
    // What is written takes the link's place.
    let other = user.read("other.lock");
    user.file("r.rhai", "print(2);\n");
    user.says(&["lock", "r.rhai"]);
    assert_eq!(user.read("other.lock"), other);
    assert_eq!(user.says(&["run", "--frozen", "r.rhai"]), "2\n");
}

/// The directory of an offload is judged by where it really is.
#[test]
fn an_offload_does_not_go_through_a_link() {
    let user = User::new();
    fs::create_dir(user.home.path().join("out")).unwrap();
    symlink(user.home.path().join("out"), user.work().join("link")).unwrap();
    fs::create_dir(user.work().join("here")).unwrap();
    symlink("here", user.work().join("near")).unwrap();
    let recipe = |dir: &str| {
        format!(
            "{MODEL}init_engine(m, #{{ micro_batch_size: 1, zero: #{{ stage: 2, \
             offload_optimizer: \"nvme\", nvme_path: \"{dir}\" + \"\" }} }});\nprint(\"ready\");"
        )
    };
    user.file("r.rhai", &recipe("link"));
    let (said, status) = user.error(&["run", "r.rhai"]);
    assert_eq!(status, 3, "{said}");
    has(&said, &["E501", "nvme_path"]);
    for dir in ["here", "near"] {
        user.file("r.rhai", &recipe(dir));
        assert_eq!(user.says(&["run", "r.rhai"]), "ready\n");
    }
}

/// A cache in the working directory may be a stranger's. Its links lead to its own contents.
#[test]
fn links_in_a_cache_of_the_hub_lead_nowhere_else() {
    let user = User::new();
    user.file("make.rhai", &format!("{MODEL}m.export_hf(\"m\");"));
    user.says(&["run", "make.rhai"]);
    let out = user.home.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::rename(user.work().join("m"), out.join("m")).unwrap();
    write(&out.join("rows.txt"), "SECRET\n");
    let (commit, hub) = ("c".repeat(40), user.work().join("hf/hub"));
    let snapshot = |repo: &str, files: &[(&str, &Path)]| {
        let repo = hub.join(repo);
        write(&repo.join("refs/main"), &commit);
        let dir = repo.join("snapshots").join(&commit);
        fs::create_dir_all(&dir).unwrap();
        for (name, to) in files {
            symlink(to, dir.join(name)).unwrap();
        }
    };
    let files = ["config.json", "model.safetensors"];
    let secret = files.map(|name| (name, out.join("m").join(name)));
    snapshot("models--O--out", &secret.each_ref().map(|(name, to)| (*name, to.as_path())));
    snapshot("datasets--O--out", &[("rows.txt", &out.join("rows.txt"))]);
    // As the hub's client makes it.
    for name in files {
        let blob = hub.join("models--O--in/blobs").join(name);
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::copy(out.join("m").join(name), blob).unwrap();
    }
    let blobs = files.map(|name| (name, Path::new("../../blobs").join(name)));
    snapshot("models--O--in", &blobs.each_ref().map(|(name, to)| (*name, to.as_path())));
    let run = |recipe: &str| {
        user.file("r.rhai", recipe);
        let mut dsr = dsr(&user.work(), &["run", "r.rhai", "--sandbox=off"]);
        dsr.env("HF_HOME", "hf").env("HF_HUB_OFFLINE", "1").env_remove("HF_HUB_CACHE");
        dsr.env("HOME", user.home.path()).output().unwrap()
    };
    for recipe in [
        "load_model(\"O/out\"); print(\"loaded\");",
        "for row in dataset(\"O/out\") { print(row.text); }",
        "tokenizer(\"O/out\");",
    ] {
        let output = run(recipe);
        let said = [text(&output.stdout), text(&output.stderr)].concat();
        assert!(!output.status.success() && !said.contains("SECRET"), "{recipe}: {said}");
        has(&said, &["error"]);
    }
    let output = run("load_model(\"O/in\"); print(\"loaded\");");
    assert_eq!(text(&output.stdout), "loaded\n", "{}", text(&output.stderr));
}
