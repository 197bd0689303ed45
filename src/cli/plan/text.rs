//! A plan as text.

use std::fmt::Write;

use super::{
    memory::MemoryNumbers,
    mesh::{MeshNumbers, MeshWay},
    numbers::{CardNumbers, PlanNumbers, TimeNumbers, WayNumbers},
    target::TargetKind,
};
use crate::{
    columns::{Cell, fitted},
    units::{Bytes, Count, grouped},
};

/// The whole plan.
pub(super) fn of(plan: &PlanNumbers) -> String {
    let mut text = format!(
        "{} parameters, world_size {}, on {}\n\
         micro_batch_size {}{} x {} tokens ({}), gradient_accumulation_steps {}\n\n",
        Count(plan.parameters as f64),
        plan.world_size,
        plan.device,
        plan.micro_batch_size,
        if plan.micro_batch_is_auto { " (auto)" } else { "" },
        plan.tokens_per_row,
        plan.tokens_from,
        plan.gradient_accumulation_steps,
    );
    if let Some(line) = &plan.sparse_line {
        text += &format!("{line}\n\n");
    }
    if let Some(mesh) = &plan.mesh {
        return text + by_stage(mesh).as_str();
    }
    if let Some(recipe) = &plan.recipe {
        text += &as_it_is(plan, recipe);
    }
    text + "\n" + alternatives(plan).as_str() + "\n" + cards(plan).as_str()
}

/// The recipe as it is.
fn as_it_is(plan: &PlanNumbers, recipe: &WayNumbers) -> String {
    let mut text =
        format!("This recipe, {}, for each rank at the peak of its memory:\n", recipe.precision);
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<16} {value:>10}");
    };
    let memory = &recipe.memory;
    for (kind, bytes) in memory.kinds() {
        line(kind, Bytes(bytes).to_string());
    }
    if memory.host > 0 {
        line("in host memory", Bytes(memory.host).to_string());
    }
    if memory.disk > 0 {
        line("on disk", Bytes(memory.disk).to_string());
    }
    if let Some((usable, most)) = plan.usable_memory.zip(recipe.largest_micro_batch_size) {
        let most = rows(most);
        let _ = writeln!(text, "  largest micro_batch_size within {}: {most}", Bytes(usable));
    }
    let TimeNumbers { step_seconds, tokens_per_second } = recipe.time;
    if let Some((seconds, speed)) = step_seconds.zip(tokens_per_second) {
        let assumed = match plan.speed {
            TargetKind::Here => format!(
                "{:.0} % of the speed of its products here, which was measured",
                100.0 * plan.assumed.measured_share
            ),
            _ => format!("{:.0} % of the card's peak", 100.0 * plan.assumed.utilization),
        };
        let _ = writeln!(
            text,
            "  a step takes {}, {} tokens/s, at {assumed}",
            time(seconds),
            per_second(speed)
        );
    }
    text
}

/// The table of the alternatives, in GiB.
fn alternatives(plan: &PlanNumbers) -> String {
    let ways = ["precision", "stage", "offload", "checkpointing", "parameters"];
    let mut table_rows = vec![heads(&ways, &["micro batch", "step", "tokens/s"])];
    for way in &plan.alternatives {
        let yes = |is: bool, word: &str| if is { word.to_owned() } else { "-".to_owned() };
        let [step, speed] = times(&way.time);
        let way_cells = [
            way.precision.to_owned(),
            way.zero_stage.to_string(),
            yes(way.is_offloaded(), way.offload_optimizer),
            yes(way.activation_checkpointing, "on"),
        ];
        let largest = way.largest_micro_batch_size.map_or_else(unknown, rows);
        table_rows.push(row(way_cells, &way.memory, [largest, step, speed]));
    }
    let mut text = "The alternatives, in GiB for each rank; `micro batch` is the largest \
                    micro_batch_size that fits.\n"
        .to_owned();
    if plan.world_size == 1 {
        text += "ZeRO's stages divide among ranks: --world-size N shows them.\n";
    }
    text + table(&table_rows).as_str()
}

/// The table of the cards.
fn cards(plan: &PlanNumbers) -> String {
    let heads = [
        "card",
        "memory",
        "precision",
        "TFLOP/s",
        "GB/s",
        "fits",
        "micro batch",
        "step",
        "tokens/s",
    ];
    let mut table_rows = vec![heads.map(ToOwned::to_owned)];
    for card in &plan.cards {
        let CardNumbers { name, memory, precision, peak_flops, bandwidth, fits, .. } = card;
        let [step, speed] = times(&card.time);
        table_rows.push([
            (*name).to_owned(),
            gib(*memory),
            (*precision).to_owned(),
            peak_flops.map_or_else(unknown, |flops| format!("{:.0}", flops / 1e12)),
            format!("{:.0}", bandwidth / 1e9),
            if *fits { "yes" } else { "no" }.to_owned(),
            rows(card.largest_micro_batch_size),
            step,
            speed,
        ]);
    }
    format!(
        "This recipe on cards, at {:.0} % of their published peak and {:.0} % of their bandwidth{}.\n{}",
        100.0 * plan.assumed.utilization,
        100.0 * plan.assumed.bandwidth_share,
        if plan.world_size > 1 { ", without communication" } else { "" },
        table(&table_rows)
    )
}

/// The stages of a mesh, in GiB, and the other meshes.
fn by_stage(mesh: &MeshNumbers) -> String {
    let stages = ["stage", "layers", "parameters", "work", "model"];
    let mut table_rows = vec![heads(&stages, &["to tp", "to dp", "to pp"])];
    for (number, stage) in mesh.stages.iter().enumerate() {
        let stage_cells = [
            number.to_string(),
            format!("{} to {}", stage.layers.0, stage.layers.1),
            Count(stage.parameters as f64).to_string(),
            format!("{:.1} %", 100.0 * stage.work),
        ];
        let sent = [stage.sent.tp, stage.sent.dp, stage.sent.pp].map(gib);
        table_rows.push(row(stage_cells, &stage.memory, sent));
    }
    let (slowest, share) = mesh.slowest();
    let waits = match mesh.pp {
        1 => String::new(),
        stages => format!(
            "\nStage {slowest} is the slowest, with {:.2} times the work of an even cut. Stages \
             wait for {:.1} % of the time.\n",
            share * stages as f64,
            100.0 * mesh.bubble,
        ),
    };
    format!(
        "A mesh of pp {} x dp {} x tp {}{}.\n\
         The stages, in GiB for each rank at the peak of its memory; work is the share of the \
         products, `to` what a rank sends in a step: to those that share its layers, to replicas, \
         to other stages.\n{}{waits}\n{}",
        mesh.pp,
        mesh.dp,
        mesh.tp,
        if mesh.sequence_parallel { ", which divides tokens too" } else { "" },
        table(&table_rows),
        other_meshes(mesh),
    )
}

/// The meshes of as many ranks, in GiB.
fn other_meshes(mesh: &MeshNumbers) -> String {
    let heads = [
        "pp x dp x tp",
        "accumulate",
        "all",
        "host",
        "fits",
        "to tp",
        "to dp",
        "to pp",
        "slowest",
        "waits",
    ];
    let mut table_rows = vec![heads.map(ToOwned::to_owned)];
    for way in &mesh.alternatives {
        let MeshWay { pp, dp, tp, .. } = way;
        let mark = if mesh.is(way) { " *" } else { "" };
        let fits = way.fits.map_or_else(unknown, |fits| if fits { "yes" } else { "no" }.to_owned());
        table_rows.push([
            format!("{pp} x {dp} x {tp}{mark}"),
            way.gradient_accumulation_steps.to_string(),
            gib(way.memory.all),
            gib(way.memory.host),
            fits,
            gib(way.sent.tp),
            gib(way.sent.dp),
            gib(way.sent.pp),
            format!("{:.2}", way.slowest),
            format!("{:.1} %", 100.0 * way.bubble),
        ]);
    }
    format!(
        "The meshes that these ranks can have with the same rows a step, in GiB for the rank that \
         needs most and for the one that sends most; `slowest` is the work of the slowest stage \
         beside an even cut, * this recipe.\n{}",
        table(&table_rows)
    )
}

/// Heads of columns around those of the memory, whose first kind is the last of `first`.
fn heads(first: &[&str], last: &[&str]) -> Vec<String> {
    let kinds = ["master", "gradients", "optimizer", "activations", "buffers", "all", "host"];
    [first, &kinds, last].concat().into_iter().map(str::to_owned).collect()
}

/// Cells around those of the memory, by kind.
fn row(first: [String; 4], memory: &MemoryNumbers, last: [String; 3]) -> Vec<String> {
    let kinds = memory.kinds().map(|(_, bytes)| gib(bytes));
    first.into_iter().chain(kinds).chain([gib(memory.host)]).chain(last).collect()
}

fn gib(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / f64::from(1 << 30))
}

fn rows(largest: u64) -> String {
    if largest == 0 { "none".to_owned() } else { largest.to_string() }
}

fn unknown() -> String {
    "?".to_owned()
}

fn times(of: &TimeNumbers) -> [String; 2] {
    [
        of.step_seconds.map_or_else(unknown, time),
        of.tokens_per_second.map_or_else(unknown, per_second),
    ]
}

/// A time with two digits or three, as an estimate has.
fn time(seconds: f64) -> String {
    match seconds {
        0.0..0.01 => format!("{:.1} ms", seconds * 1e3),
        0.01..1.0 => format!("{:.0} ms", seconds * 1e3),
        1.0..10.0 => format!("{seconds:.1} s"),
        _ => format!("{seconds:.0} s"),
    }
}

/// A speed with two digits, as an estimate has.
fn per_second(tokens: f64) -> String {
    let digits = tokens.max(1.0).log10().floor() as i32 - 1;
    let unit = 10f64.powi(digits.max(0));
    grouped(((tokens / unit).round() * unit) as u64)
}

/// A table with words on the left and the rest on the right.
fn table<R: AsRef<[String]>>(rows: &[R]) -> String {
    let line = |row: &Vec<Cell>| {
        let cells = row.iter().enumerate().map(|(i, cell)| match i {
            0 => cell.to_the_left(),
            _ => cell.to_the_right(),
        });
        cells.collect::<Vec<_>>().join("  ") + "\n"
    };
    fitted(rows).iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimates_have_as_many_digits_as_they_mean() {
        assert_eq!([0.0042, 0.123, 4.26, 34.6].map(time), ["4.2 ms", "123 ms", "4.3 s", "35 s"]);
        assert_eq!([3.6, 182.4, 98_765.0].map(per_second), ["4", "180", "99,000"]);
    }
}
