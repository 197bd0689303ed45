//! The header of a run: what trains on what, before the first step.

use crate::{
    data::Loader,
    engine::{ChosenBatch, Engine, EngineFacts},
    error::Result,
    units::{Bytes, grouped},
};

/// The tokens of a row for which the density of block-sparse attention is told where rows differ, if the
/// model has as many.
const LONG_ROW: i64 = 8192;

/// The lines under "a new run in ...", with the density of block-sparse attention, and a warning where a
/// GPU is not used.
pub(super) fn lines(engine: &Engine, loader: &Loader, total_steps: u64) -> Result<Vec<String>> {
    let facts = engine.facts();
    let row_tokens = loader.row_tokens();
    let mut lines = table(&facts, row_tokens, (engine.global_step(), total_steps));
    let longest = engine.model().facts().max_positions.map_or(LONG_ROW, |most| most.min(LONG_ROW));
    lines.extend(engine.model().sparse_line(row_tokens.map_or(longest, |tokens| tokens as i64))?);
    lines.extend(engine.unused_gpu());
    Ok(lines)
}

/// The facts as lines; `done` and `last` are steps.
fn table(facts: &EngineFacts, row_tokens: Option<usize>, (done, last): (u64, u64)) -> Vec<String> {
    let mut device = facts.device.clone();
    if let Some(name) = &facts.device_name {
        device += &format!(" ({name})");
    }
    if let Some(threads) = facts.threads {
        device += &format!(", {}", counted(threads as u64, "thread"));
    }
    let parameters = match facts.trained_parameters == facts.parameters {
        true => format!("{} trained", grouped(facts.parameters)),
        false => {
            let part = 100.0 * facts.trained_parameters as f64 / facts.parameters as f64;
            let (trained, all) = (grouped(facts.trained_parameters), grouped(facts.parameters));
            format!("{trained} trained of {all} ({part:.2}%)")
        }
    };
    let ranks = match (facts.world_size, facts.replicas) {
        (1, _) => "1".to_owned(),
        (all, replicas) if all == replicas => all.to_string(),
        (all, replicas) => format!("{all}, which are {}", counted(replicas as u64, "replica")),
    };
    let mut batch = format!(
        "{} a step = {} x {} x {}",
        counted(facts.train_batch_size as u64, "row"),
        format_args!("micro_batch_size {}", facts.micro_batch_size),
        format_args!("accumulation {}", facts.gradient_accumulation_steps),
        counted(facts.replicas as u64, "replica"),
    );
    if let Some(tokens) = row_tokens {
        let a_step = tokens as u64 * facts.train_batch_size as u64;
        batch += &format!(", {} tokens a step", grouped(a_step));
    }
    let rows = [
        ("device", format!("{device}, libtorch {}", facts.libtorch)),
        ("precision", format!("{}, {}", facts.precision, facts.optimizer)),
        ("ranks", ranks),
        ("parameters", parameters),
        ("batch", batch),
        ("steps", format!("{} to {last}", last.min(done + 1))),
    ];
    let chosen =
        facts.auto_micro_batch.map(|chosen| ("auto", why(facts.micro_batch_size, &chosen)));
    let rows = rows.into_iter().chain(chosen);
    rows.map(|(name, value)| format!("  {name:<11} {value}")).collect()
}

/// Why the micro batch has so many rows.
fn why(rows: usize, chosen: &ChosenBatch) -> String {
    let ChosenBatch { tokens, needs, there, next, is_kept } = *chosen;
    if is_kept {
        return format!("micro_batch_size {rows} is that of the checkpoint, and fits");
    }
    let fits = format!(
        "micro_batch_size {rows} of {tokens} tokens needs {} of {}",
        Bytes(needs),
        Bytes(there)
    );
    match next {
        Some((next, bytes)) if bytes > there => {
            format!("{fits}; {next} would need {}", Bytes(bytes))
        }
        Some((next, _)) => format!("{fits}; another rank has less memory than {next} would need"),
        None => format!("{fits}; no larger one was to be tried"),
    }
}

fn counted(n: u64, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> EngineFacts {
        EngineFacts {
            device: "cuda:0".to_owned(),
            device_name: Some("NVIDIA H200".to_owned()),
            threads: None,
            libtorch: "2.13.0".to_owned(),
            precision: "bf16".to_owned(),
            optimizer: "AdamW".to_owned(),
            world_size: 2,
            replicas: 2,
            parameters: 124_439_808,
            trained_parameters: 124_439_808,
            micro_batch_size: 8,
            gradient_accumulation_steps: 4,
            train_batch_size: 64,
            auto_micro_batch: None,
        }
    }

    #[test]
    fn a_micro_batch_that_was_chosen_says_why() {
        let chosen = ChosenBatch {
            tokens: 1024,
            needs: 9 << 30,
            there: 14 << 30,
            next: Some((16, 17 << 30)),
            is_kept: false,
        };
        let line = |chosen| {
            let facts = EngineFacts { auto_micro_batch: Some(chosen), ..facts() };
            table(&facts, None, (0, 1))[6].clone()
        };
        assert_eq!(
            line(chosen),
            "  auto        micro_batch_size 8 of 1024 tokens needs 9.0 GiB of 14.0 GiB; 16 would \
             need 17.0 GiB"
        );
        assert!(
            line(ChosenBatch { next: None, ..chosen }).ends_with("no larger one was to be tried")
        );
        assert!(
            line(ChosenBatch { is_kept: true, ..chosen })
                .ends_with("is that of the checkpoint, and fits")
        );
    }

    #[test]
    fn a_header_says_what_trains_on_what() {
        let expected = [
            "  device      cuda:0 (NVIDIA H200), libtorch 2.13.0",
            "  precision   bf16, AdamW",
            "  ranks       2",
            "  parameters  124,439,808 trained",
            "  batch       64 rows a step = micro_batch_size 8 x accumulation 4 x 2 replicas, \
             65,536 tokens a step",
            "  steps       101 to 1000",
        ];
        assert_eq!(table(&facts(), Some(1024), (100, 1000)), expected);
    }

    #[test]
    fn an_adapter_on_a_pipeline_says_how_little_it_trains() {
        let facts = EngineFacts {
            device: "cpu".to_owned(),
            device_name: None,
            threads: Some(1),
            replicas: 1,
            trained_parameters: 294_912,
            train_batch_size: 32,
            ..facts()
        };
        let lines = table(&facts, None, (0, 1));
        assert_eq!(lines[0], "  device      cpu, 1 thread, libtorch 2.13.0");
        assert_eq!(lines[2], "  ranks       2, which are 1 replica");
        assert_eq!(lines[3], "  parameters  294,912 trained of 124,439,808 (0.24%)");
        let batch = "32 rows a step = micro_batch_size 8 x accumulation 4 x 1 replica";
        assert_eq!(lines[4], format!("  batch       {batch}"));
        assert_eq!(lines[5], "  steps       1 to 1");
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
