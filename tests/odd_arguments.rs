//! Every function of the reference, and every one of Rhai's own, with arguments that nobody means: huge,
//! negative, not a number, empty, of the wrong type or shape. Each call gives a value or an error with a
//! code: none panics, none ends the program, none takes longer than 20 seconds.
//!
//! The program runs many calls a process, and says which one it is in. `DSR_ODD_CALLS` and
//! `DSR_ODD_SEED` choose others than the suite's.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use dsr::script::reference::{ReferenceEntry, entries};

const CALLS: usize = 20_000;
/// Calls of one process: a recipe has no more than so many statements that are quickly read.
const CALLS_PER_PROCESS: usize = 1000;
const MOST_SECONDS: u64 = 20;
/// The address space of a process: what is larger is refused.
const MOST_BYTES: u64 = 7_000_000_000;
/// Functions that are meant to wait, to end, to print or to stand first.
const SKIPPED: [&str; 8] = ["sleep", "exit", "print", "debug", "eval", "curry", "import", "param"];

/// What the calls choose from, by type.
const VALUES: &str = r#"
import "dsr:metrics" as metrics;
import "dsr:schedule" as schedule;
import "dsr:trainer" as trainer;
let long = ""; long.pad(5000, 'x');
let many = []; many.pad(3000, 7);
let deep = []; for i in 0..60 { deep = [deep]; }
let tok = tokenizer("dsr:gpt2");
let ds = dataset("rows.jsonl");
let made = ds.loader(#{ micro_batch_size: 2 });
let model = new_model("gpt2", #{ vocab_size: 100, n_positions: 16, n_embd: 8, n_layer: 1, n_head: 1 });
let engine = init_engine(model, #{ micro_batch_size: 2 });
let batch = (); for b in made { batch = b; break; }
let weight = randn([3, 2]).requires_grad_();
let T = #{
    Tensor: [
        zeros([]), zeros([0]), zeros([0, 3]), zeros([3, 0, 2]), ones([1]), randn([2, 3]), randn([3, 2]),
        randn([2, 3, 4]), tensor([1, 2, 3]), tensor([[1, -1], [0, 7]]), tensor([true, false]),
        tensor([9223372036854775807, -9223372036854775807]), ones([3]) / 0.0, zeros([2]) / 0.0,
        randn([4]).to("float16"), randn([2, 2]).to("bfloat16"), randn([2]).to("float64"),
        randn([4, 4]).transpose(0, 1), randn([1, 1, 1, 1, 1, 1]), weight, weight * 2.0,
        tensor([[1, 2, 3, 4]]), ones([64, 64]), tensor(3),
    ],
    int: [0, 1, -1, 2, 3, 7, -8, 100, 65536, 2147483647, -2147483648, 4294967296,
        1000000000000, 9223372036854775807, -9223372036854775807 - 1],
    float: [0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, -1e300, 1.0 / 0.0, -1.0 / 0.0, 0.0 / 0.0, 1e19],
    string: ["", "a", "\x00", "gpt2", "rows.jsonl", "dsr:gpt2", "dsr:austen", "nothing", ".", "..", "/",
        "float32", "cuda:99", "cpu", "mean", "sum", "[1", "{}", "null", "train[5:2%]", "\U0001F600\u0301", long],
    array: [[], [0], [-1], [1, 2], [2, 3], [[1, 2], [3]], ["a", ()], [1.5, "x"], [()], many, deep,
        [9223372036854775807, 9223372036854775807], [weight], [model], [|x| x]],
    map: [#{}, #{ a: 1 }, #{ text: "a b" }, #{ input_ids: [1, 2] }, #{ micro_batch_size: 1 },
        #{ "": () }, #{ a: deep }, #{ lr: 0.0 / 0.0 }],
    bool: [true, false],
    range: [0..3, 5..2, -9223372036854775807..9223372036854775807, 0..=9223372036854775806, 1..1],
    function: [|| 1, |x| x, |a, b| a, |x| throw "no", |x| [x, x], |x| #{ text: "a" }, |p, x| x, |x| ()],
    char: ['a', '\x00', '\U0010FFFF'],
    other: [(), timestamp(), blob(0), blob(8, 255)],
    Dataset: [ds, dataset("dsr:austen").take(5), ds.take(1)],
    Loader: [made, ds.loader(#{ micro_batch_size: 1, endless: true })],
    Batch: [batch],
    Model: [model],
    Engine: [engine],
    Tokenizer: [tok],
    Optimizer: [optimizer([weight], #{ type: "AdamW" }), optimizer([weight], #{ type: "SGD" })],
    Run: [start_run(engine, made, #{ total_steps: 3 })],
};
fn own(x) { x }
fn judge(e) { if type_of(e) == "Error" && e.code == "E001" { print("E001 " + e.message); } }
"#;

/// How many values of each type there are.
fn sizes() -> BTreeMap<&'static str, usize> {
    [
        ("Tensor", 24),
        ("int", 15),
        ("float", 12),
        ("string", 22),
        ("array", 15),
        ("map", 8),
        ("bool", 2),
        ("range", 5),
        ("function", 8),
        ("char", 3),
        ("other", 4),
        ("Dataset", 3),
        ("Loader", 2),
        ("Batch", 1),
        ("Model", 1),
        ("Engine", 1),
        ("Tokenizer", 1),
        ("Optimizer", 2),
        ("Run", 1),
    ]
    .into()
}

/// A function as recipes call it.
struct Callee {
    /// The text before the arguments' list, with `$` where the receiver stands.
    form: Form,
    /// The types of the parameters, the receiver's first.
    types: Vec<String>,
    /// The options that its documentation names.
    options: Vec<String>,
}

enum Form {
    Function(String),
    Method(String),
    Property(String),
    Setter(String),
    Index,
    Operator(String),
}

/// Numbers that repeat themselves (splitmix64).
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// The type of a parameter `name: type`.
fn type_of(parameter: &str) -> String {
    parameter.split_once(": ").map_or("any", |(_, kind)| kind).to_owned()
}

/// The type that a receiver is called after: `engine` is of `Engine`.
fn owner(name: &str) -> String {
    let mut letters = name.chars();
    let first = letters.next().map(|c| c.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

/// The forms that a signature of the reference has.
fn callees(entry: &ReferenceEntry) -> Vec<Callee> {
    let options = entry.doc.lines().filter_map(|line| line.trim_start().strip_prefix("* `"));
    let options: Vec<String> =
        options.filter_map(|line| Some(line.split_once('`')?.0.to_owned())).collect();
    let callee = |form, types| Callee { form, types, options: options.clone() };
    let signature = entry.signature.as_str();
    if signature.starts_with("type ") || signature.starts_with("import ") {
        return Vec::new();
    }
    if let Some((call, _)) = signature.split_once('[').filter(|(name, _)| !name.contains('(')) {
        return vec![callee(Form::Index, vec![owner(call), "any".to_owned()])];
    }
    let Some((name, rest)) = signature.split_once('(').filter(|(name, _)| !name.contains(" ->"))
    else {
        let path = signature.split(" ->").next().unwrap();
        let Some((receiver, property)) = path.split_once('.') else { return Vec::new() };
        let mut all = vec![callee(Form::Property(property.to_owned()), vec![owner(receiver)])];
        if signature.ends_with("(can be set)") {
            let types = vec![owner(receiver), "any".to_owned()];
            all.push(callee(Form::Setter(property.to_owned()), types));
        }
        return all;
    };
    let parameters = rest.split(')').next().unwrap();
    let parameters = parameters.split(", ").filter(|p| !p.is_empty()).map(type_of);
    let form = match name.split_once('.') {
        Some((_, sign @ ("!" | "-"))) => Form::Operator(sign.to_owned()),
        Some((_, method)) => Form::Method(method.to_owned()),
        None if name.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            Form::Function(name.to_owned())
        }
        None => Form::Operator(name.to_owned()),
    };
    let receiver = name.split_once('.').map(|(receiver, _)| owner(receiver));
    vec![callee(form, receiver.into_iter().chain(parameters).collect())]
}

/// Rhai's own functions.
fn of_rhai() -> Vec<Callee> {
    let json = rhai::Engine::new().gen_fn_metadata_to_json(true).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let functions = json["functions"].as_array().unwrap();
    let callee = |f: &serde_json::Value| {
        let name = f["name"].as_str()?;
        let is_plain = name.starts_with(|c: char| c.is_ascii_alphabetic());
        if !is_plain || name.contains('$') || SKIPPED.contains(&name) {
            return None;
        }
        let types = f["params"].as_array().into_iter().flatten().map(|p| {
            let kind = p["type"].as_str().unwrap_or_default().trim_start_matches("&mut ");
            let known = [
                ("i64", "int"),
                ("INT", "int"),
                ("f64", "float"),
                ("FLOAT", "float"),
                ("Array", "array"),
                ("Map", "map"),
                ("char", "char"),
                ("bool", "bool"),
                ("ImmutableString", "string"),
                ("&str", "string"),
                ("String", "string"),
                ("FnPtr", "function"),
                ("ExclusiveRange", "range"),
                ("Range<INT>", "range"),
            ];
            known.iter().find(|(rust, _)| *rust == kind).map_or("any", |(_, kind)| kind).to_owned()
        });
        let types: Vec<String> = types.collect();
        let form = Form::Method(name.to_owned());
        (!types.is_empty()).then(|| Callee { form, types, options: Vec::new() })
    };
    functions.iter().filter_map(callee).collect()
}

/// A value of the type, or now and then of any.
fn value(
    kind: &str,
    options: &[String],
    sizes: &BTreeMap<&str, usize>,
    draws: &mut Draws,
) -> String {
    if kind == "map" && !options.is_empty() && draws.below(4) > 0 {
        let mut map = String::new();
        for _ in 0..=draws.below(3) {
            let option = &options[draws.below(options.len())];
            if option.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
                && !map.contains(option)
            {
                let _ = write!(map, "{option}: {}, ", value("any", &[], sizes, draws));
            }
        }
        let sized =
            options.iter().any(|o| o == "micro_batch_size") && !map.contains("micro_batch_size");
        return format!("own(#{{ {map}{} }})", if sized { "micro_batch_size: 2" } else { "" });
    }
    let known = sizes.contains_key(kind) && draws.below(8) > 0;
    let kind = match known {
        true => kind,
        false => sizes.keys().nth(draws.below(sizes.len())).unwrap(),
    };
    format!("T.{kind}[{}]", draws.below(sizes[kind]))
}

fn call(callee: &Callee, sizes: &BTreeMap<&str, usize>, draws: &mut Draws) -> String {
    let arguments: Vec<String> =
        callee.types.iter().map(|kind| value(kind, &callee.options, sizes, draws)).collect();
    let rest = |from: usize| arguments[from.min(arguments.len())..].join(", ");
    match &callee.form {
        Form::Function(name) => format!("{name}({})", rest(0)),
        Form::Method(name) => format!("{}.{name}({})", arguments[0], rest(1)),
        Form::Property(name) => format!("{}.{name}", arguments[0]),
        Form::Setter(name) => {
            format!("{{ let x = {}; x.{name} = {}; }}", arguments[0], arguments[1])
        }
        Form::Index => format!("{}[{}]", arguments[0], arguments[1]),
        Form::Operator(name) => match &arguments[..] {
            [one] => format!("{name}{one}"),
            [a, b] if name.ends_with('=') && !["==", "!=", "<=", ">="].contains(&name.as_str()) => {
                format!("{{ let x = {a}; x {name} {b}; }}")
            }
            [a, b] => format!("{a} {name} {b}"),
            _ => "()".to_owned(),
        },
    }
}

/// The end of a process over some calls: how many were begun, and what is wrong with the last.
struct End {
    begun: usize,
    fault: Option<String>,
    /// A call that was refused before any began.
    refused: Option<usize>,
}

/// Runs these calls in one process.
fn run(calls: &[String]) -> End {
    let dir = tempfile::tempdir().unwrap();
    let rows: String = (0..40)
        .map(|i| format!("{{\"input_ids\": [{}, 1, 2, 3], \"text\": \"a b\"}}\n", i % 100))
        .collect();
    fs::write(dir.path().join("rows.jsonl"), &rows).unwrap();
    let mut recipe = VALUES.to_owned();
    for (i, call) in calls.iter().enumerate() {
        let _ = writeln!(
            recipe,
            "print(\"@{i}\"); try {{ let y = {call}; }} catch (e) {{ judge(e); }}"
        );
    }
    fs::write(dir.path().join("r.rhai"), &recipe).unwrap();
    let mut child = Command::new("prlimit")
        .arg(format!("--as={MOST_BYTES}"))
        .arg("--core=0")
        .arg(env!("CARGO_BIN_EXE_dsr"))
        .args(["run", "r.rhai", "--max-output=1GB", "--no-prompt"])
        .current_dir(dir.path())
        .env("HOME", dir.path())
        .env("DSR_DEVICE", "cpu")
        .env("OMP_NUM_THREADS", "1")
        .env("HF_HUB_OFFLINE", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    watch(&mut child)
}

/// Follows a process to its end, which comes early where a call takes too long.
fn watch(child: &mut Child) -> End {
    let (sender, lines) = mpsc::channel();
    let out = child.stdout.take().unwrap();
    thread::spawn(move || {
        // Bytes that are no text end the reading; nothing here prints such.
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let mut err = child.stderr.take().unwrap();
    let words = thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = err.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let mut begun = 0;
    let mut fault = None;
    loop {
        match lines.recv_timeout(Duration::from_secs(MOST_SECONDS)) {
            Ok(line) if line.starts_with("E001") => fault = Some(line),
            Ok(line) => {
                if let Some(number) = line.strip_prefix('@') {
                    begun = number.parse::<usize>().unwrap() + 1;
                    if fault.is_some() {
                        break;
                    }
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                fault = Some(format!("no end after {MOST_SECONDS} s"));
                break;
            }
        }
    }
    if fault.is_some() {
        let _ = child.kill();
    }
    let status = child.wait().unwrap();
    let words = words.join().unwrap();
    let tail = words.lines().find(|line| line.starts_with("error")).unwrap_or_default().to_owned();
    if fault.is_none() && !matches!(status.code(), Some(0..=7 | 130)) {
        fault = Some(format!("{status}: {tail}"));
    }
    if fault.is_none() && (tail.contains("E001") || words.contains("panicked at")) {
        fault = Some(tail.clone());
    }
    let first = VALUES.lines().count() + 1;
    let line = words.split_once("r.rhai:").and_then(|(_, at)| at.split(':').next()?.parse().ok());
    let refused = line.filter(|_| begun == 0).and_then(|line: usize| line.checked_sub(first));
    assert!(begun > 0 || refused.is_some(), "the recipe did not begin:\n{words}");
    End { begun, fault, refused }
}

/// Runs the calls, each in some process; gives the faults.
fn faults(calls: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    let mut left = calls.to_vec();
    while !left.is_empty() {
        let End { begun, fault, refused } = run(&left);
        if let Some(refused) = refused {
            // It has its error, with a code.
            left.remove(refused);
            continue;
        }
        if let Some(fault) = fault {
            let at = begun.saturating_sub(1);
            faults.push(format!("{}\n    {fault}", left[at]));
        }
        // An error that cannot be caught ends the recipe, and the next call begins another.
        left.drain(..begun);
    }
    faults
}

fn number(name: &str, usual: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn every_call_ends_in_a_value_or_an_error_with_a_code() {
    let limited = Command::new("prlimit").arg("--version").output();
    if limited.is_err() {
        println!("skipped: there is no prlimit here");
        return;
    }
    let all = entries();
    let all = all.iter().filter(|entry| !SKIPPED.contains(&entry.name.as_str()));
    let mut callees: Vec<Callee> = all.flat_map(self::callees).collect();
    assert!(callees.len() > 250, "{}", callees.len());
    callees.extend(of_rhai());
    let (sizes, mut draws) = (sizes(), Draws(number("DSR_ODD_SEED", 1) as u64));
    let count = number("DSR_ODD_CALLS", CALLS);
    // Each callee as often as the others.
    let calls: Vec<String> =
        (0..count).map(|i| call(&callees[i % callees.len()], &sizes, &mut draws)).collect();
    let chunks: Vec<&[String]> = calls.chunks(CALLS_PER_PROCESS).collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let workers = thread::available_parallelism().map_or(1, usize::from).min(8);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    found.lock().unwrap().extend(faults(chunk));
                }
            });
        }
    });
    let found = found.into_inner().unwrap();
    assert!(found.is_empty(), "{} faults:\n{}", found.len(), found.join("\n"));
}

/// The table above says how many values there are of each type.
#[test]
fn every_value_can_be_chosen() {
    let mut calls = Vec::new();
    for (kind, size) in sizes() {
        calls.push(format!("if T.{kind}.len != {size} {{ print(\"E001 {kind}\"); }}"));
    }
    assert_eq!(faults(&calls), Vec::<String>::new());
}
