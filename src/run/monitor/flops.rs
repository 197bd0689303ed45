//! The text of `flops_profiler`, as DeepSpeed's, for the layers as dsr runs them.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use crate::{
    config::FlopsProfilerConfig,
    engine::{Engine, ModuleProfile, PhaseTimes},
};

/// The meaning of the words, above each profile.
const NOTES: &str = "\
params: parameters; MACs: multiply-accumulates of matrix products; flops: floating-point operations,
counted from shapes; FLOPS: flops a second
fwd, bwd: forward and backward pass of a micro batch, the mean over those of the step; step: norm,
clipping and optimizer; iter: all of an optimizer step but the loading of data. The head turns its
logits into gradients at once, so that fwd and not bwd includes its backward pass
";

/// How the text of a profile begins, before the number of its step.
pub(super) const TITLE: &str = "flops profile of step ";

/// The totals of the tree of modules.
const TREE_NOTES: &str = "\
Each module: params, MACs and latency with their part of the whole, FLOPS. The time of attention
beyond the modules inside it is that of the scores and their product with the values. Times are those
of the step's last micro batch, with a wait for the device at both ends of each module.
";

/// The profile of the last step, if it was one to profile.
pub(super) fn text(engine: &Engine, options: &FlopsProfilerConfig) -> Option<String> {
    let (root, times) = (engine.flops_profile()?, engine.phase_times()?);
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write!(text, "{TITLE}{}\n\n{NOTES}\n", engine.global_step());
    for (what, value) in summary(engine, root, &times, options.recompute_fwd_factor) {
        let _ = writeln!(text, "{what:<78} {value}");
    }
    text.push_str(&aggregated(root, options));
    if options.detailed {
        let _ = write!(text, "\nmodules\n\n{TREE_NOTES}\n");
        tree(&mut text, root, root, 0);
    }
    Some(text)
}

/// The lines about the whole model. The backward pass counts as twice the forward pass, and as much
/// more as it computes again.
fn summary(
    engine: &Engine,
    root: &ModuleProfile,
    times: &PhaseTimes,
    recompute_fwd_factor: f64,
) -> Vec<(String, String)> {
    let micro_batches = engine.config().gradient_accumulation_steps;
    let mean = |sum: Duration| sum.as_secs_f64() / micro_batches as f64;
    let (fwd, bwd) = (mean(times.forward), mean(times.backward));
    let iter = (times.forward + times.backward + times.reduce + times.step).as_secs_f64();
    let (flops, factor) = (root.flops as f64, 2.0 + recompute_fwd_factor);
    let rate = |flops: f64, seconds: f64| scaled(per(flops, seconds), "FLOPS");
    let all = factor + 1.0;
    [
        ("world size:", engine.group().world_size().to_string()),
        ("micro batch size per rank:", engine.config().micro_batch_size.to_string()),
        ("gradient accumulation steps:", micro_batches.to_string()),
        ("params per rank:", params(root.params)),
        ("fwd MACs per rank:", scaled(root.macs as f64, "MACs")),
        ("fwd flops per rank:", scaled(flops, "")),
        ("fwd latency:", scaled(fwd, "s")),
        ("fwd FLOPS per rank = fwd flops per rank / fwd latency:", rate(flops, fwd)),
        ("bwd latency:", scaled(bwd, "s")),
        (
            &format!("bwd FLOPS per rank = {factor} * fwd flops per rank / bwd latency:"),
            rate(factor * flops, bwd),
        ),
        (
            &format!("fwd+bwd FLOPS per rank = {all} * fwd flops per rank / (fwd+bwd latency):"),
            rate(all * flops, fwd + bwd),
        ),
        ("reduce latency:", scaled(times.reduce.as_secs_f64(), "s")),
        ("step latency:", scaled(times.step.as_secs_f64(), "s")),
        ("iter latency:", scaled(iter, "s")),
        (
            &format!("FLOPS per rank = {all} * fwd flops per rank * micro batches / iter latency:"),
            rate(all * flops * micro_batches as f64, iter),
        ),
        ("samples/second:", rounded(per(engine.train_batch_size() as f64, iter))),
    ]
    .map(|(what, value)| (what.to_owned(), value))
    .into()
}

/// The sums over the modules of a kind.
#[derive(Default)]
struct KindSums {
    params: u64,
    macs: u64,
    latency: Option<Duration>,
}

/// On each level the kinds of modules that take most.
fn aggregated(root: &ModuleProfile, options: &FlopsProfilerConfig) -> String {
    let mut levels = Vec::new();
    add_up(&mut levels, root, 0);
    let depth = options.depth().map_or(levels.len(), |depth| levels.len().min(depth + 1));
    let n = options.top_modules;
    let mut text = format!("\ntop {n} kinds of modules on each level\n\n");
    for (depth, kinds) in levels.iter().take(depth).enumerate() {
        let of = |amount: fn(&KindSums) -> Option<f64>, show: fn(f64) -> String| {
            let amounts = kinds.iter().filter_map(|(name, kind)| Some((*name, amount(kind)?)));
            top(amounts.collect(), n, show)
        };
        let _ = write!(
            text,
            "depth {depth}:\n    params      - {}\n    MACs        - {}\n    fwd latency - {}\n",
            of(|kind| Some(kind.params as f64), |n| params(n as u64)),
            of(|kind| Some(kind.macs as f64), |n| scaled(n, "MACs")),
            of(|kind| kind.latency.map(|latency| latency.as_secs_f64()), |n| scaled(n, "s")),
        );
    }
    text
}

fn add_up(
    levels: &mut Vec<BTreeMap<&'static str, KindSums>>,
    module: &ModuleProfile,
    depth: usize,
) {
    if levels.len() == depth {
        levels.push(BTreeMap::new());
    }
    let kind = levels[depth].entry(module.kind).or_default();
    kind.params += module.params;
    kind.macs += module.macs;
    if let Some(latency) = module.latency {
        *kind.latency.get_or_insert_default() += latency;
    }
    module.children.iter().for_each(|child| add_up(levels, child, depth + 1));
}

/// The `n` largest amounts with their names.
fn top(mut amounts: Vec<(&str, f64)>, n: usize, show: fn(f64) -> String) -> String {
    amounts.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let shown: Vec<_> =
        amounts.iter().take(n).map(|&(name, amount)| format!("{name}: {}", show(amount))).collect();
    if shown.is_empty() { "not measured".to_owned() } else { shown.join(", ") }
}

/// A line for `module`, indented, and for those inside.
fn tree(text: &mut String, module: &ModuleProfile, root: &ModuleProfile, depth: usize) {
    let ModuleProfile { name, kind, params: count, macs, flops, latency, children } = module;
    let part = |amount: f64, whole: f64| format!("{}%", rounded(100.0 * per(amount, whole)));
    let time = match (latency, root.latency) {
        (Some(latency), Some(whole)) => {
            let (latency, whole) = (latency.as_secs_f64(), whole.as_secs_f64());
            format!(
                "{} = {} latency, {}",
                scaled(latency, "s"),
                part(latency, whole),
                scaled(per(*flops as f64, latency), "FLOPS")
            )
        }
        _ => "latency not measured".to_owned(),
    };
    let _ = writeln!(
        text,
        "{:indent$}{name} ({kind}): {} = {} params, {} = {} MACs, {time}",
        "",
        params(*count),
        part(*count as f64, root.params as f64),
        scaled(*macs as f64, "MACs"),
        part(*macs as f64, root.macs as f64),
        indent = 2 * depth
    );
    children.iter().for_each(|child| tree(text, child, root, depth + 1));
}

/// A number of parameters, in which a thousand millions are a billion.
fn params(count: u64) -> String {
    scaled(count as f64, "").replace('G', "B")
}

/// A number with the prefix that leaves it below a thousand, and its unit.
fn scaled(value: f64, unit: &str) -> String {
    let (scale, prefix) = match value.abs() {
        v if v >= 1e12 => (1e12, "T"),
        v if v >= 1e9 => (1e9, "G"),
        v if v >= 1e6 => (1e6, "M"),
        v if v >= 1e3 => (1e3, "K"),
        v if v >= 1.0 || v == 0.0 => (1.0, ""),
        v if v >= 1e-3 => (1e-3, "m"),
        _ => (1e-6, "u"),
    };
    format!("{} {prefix}{unit}", rounded(value / scale)).trim_end().to_owned()
}

/// Two decimals at most.
fn rounded(value: f64) -> String {
    ((value * 100.0).round() / 100.0).to_string()
}

/// Zero instead of an infinity where no time has passed or nothing is there.
fn per(amount: f64, whole: f64) -> f64 {
    if whole > 0.0 { amount / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_deepspeeds_prefixes() {
        let shown = [
            scaled(87.2149e9, "MACs"),
            scaled(1.5e-3, "s"),
            scaled(2e-6, "s"),
            scaled(999.0, ""),
            scaled(0.0, "FLOPS"),
            params(1_557_611_200),
        ];
        assert_eq!(shown, ["87.21 GMACs", "1.5 ms", "2 us", "999", "0 FLOPS", "1.56 B"]);
    }

    fn module(kind: &'static str, macs: u64, ms: Option<u64>) -> ModuleProfile {
        let latency = ms.map(Duration::from_millis);
        let (name, children) = (kind.to_lowercase(), Vec::new());
        ModuleProfile { name, kind, params: 2 * macs, macs, flops: 2 * macs, latency, children }
    }

    fn options(module_depth: i64, top_modules: usize) -> FlopsProfilerConfig {
        FlopsProfilerConfig {
            enabled: true,
            profile_step: 1,
            recompute_fwd_factor: 0.0,
            module_depth,
            top_modules,
            detailed: true,
            output_file: None,
        }
    }

    #[test]
    fn each_level_names_the_kinds_that_take_most() {
        let children =
            vec![module("A", 300, Some(1)), module("B", 500, Some(1)), module("A", 300, None)];
        let root = ModuleProfile { children, ..module("Model", 1100, Some(4)) };
        let text = aggregated(&root, &options(-1, 1));
        assert!(text.ends_with(
            "depth 1:\n    params      - A: 1.2 K\n    MACs        - A: 600 MACs\n    \
             fwd latency - A: 1 ms\n"
        ));
        let two = aggregated(&root, &options(7, 2));
        assert!(two.contains("    MACs        - A: 600 MACs, B: 500 MACs\n"), "{two}");
        assert!(!aggregated(&root, &options(0, 1)).contains("depth 1"));

        let mut text = String::new();
        tree(&mut text, &root, &root, 0);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "model (Model): 2.2 K = 100% params, 1.1 KMACs = 100% MACs, 4 ms = 100% latency, \
             550 KFLOPS"
        );
        assert_eq!(
            lines[3],
            "  a (A): 600 = 27.27% params, 300 MACs = 27.27% MACs, latency not measured"
        );
    }
}
