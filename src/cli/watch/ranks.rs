//! The pane of the ranks: what each computes on, and the most memory that it took.

use ratatui::{
    Frame,
    layout::Rect,
    style::Stylize,
    text::Line,
    widgets::{Block, Paragraph},
};

use super::memory::kinds;
use crate::{
    cli::columns::table,
    engine::MemoryUse,
    run::{RankRecord, Watched},
    units::Bytes,
};

/// An axis of the mesh: its name, and a rank's place on it.
type Axis = (&'static str, fn(&RankRecord) -> usize);

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, watched: &Watched) {
    // Without the borders and the head.
    let room = usize::from(area.height).saturating_sub(3);
    let text = listed(watched.ranks(), room);
    let lines = text.lines().enumerate().map(|(i, line)| {
        let line = Line::from(line.to_owned());
        if i == 0 { line.dim() } else { line }
    });
    let pane = Paragraph::new(lines.collect::<Vec<_>>());
    frame.render_widget(pane.block(Block::bordered().title(" ranks ")), area);
}

/// The first ranks, in so many rows below the head.
fn listed(ranks: &[RankRecord], rows: usize) -> String {
    let axes: [Axis; 3] = [("PP", |rank| rank.pp), ("DP", |rank| rank.dp), ("TP", |rank| rank.tp)];
    let axes: Vec<_> =
        axes.into_iter().filter(|(_, at)| ranks.iter().any(|rank| at(rank) > 0)).collect();
    let all_kinds = kinds(MemoryUse::default());
    let used: Vec<_> = (0..all_kinds.len())
        .filter(|&kind| ranks.iter().any(|rank| rank.memory.kinds()[kind].1 > 0))
        .collect();
    let mut head = vec!["RANK".to_owned(), "HOST".to_owned(), "DEVICE".to_owned()];
    head.extend(axes.iter().map(|(name, _)| (*name).to_owned()));
    head.push("PEAK".to_owned());
    head.extend(used.iter().map(|&kind| all_kinds[kind].0.to_uppercase()));
    let row = |(i, rank): (usize, &RankRecord)| {
        let mut row = vec![i.to_string(), rank.host.clone(), rank.device.clone()];
        row.extend(axes.iter().map(|(_, at)| at(rank).to_string()));
        row.push(Bytes(rank.memory.peak()).to_string());
        row.extend(used.iter().map(|&kind| Bytes(rank.memory.kinds()[kind].1).to_string()));
        row
    };
    let fits = if ranks.len() > rows { rows.saturating_sub(1) } else { ranks.len() };
    let all: Vec<_> = ranks.iter().take(fits).enumerate().map(row).collect();
    let mut text = table(&head, &all);
    if ranks.len() > fits {
        text += &format!("and {} more\n", ranks.len() - fits);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_and_kinds_that_all_lack_are_left_out() {
        let memory = |parameters: u64, gradients: u64| MemoryUse {
            parameters: parameters << 30,
            gradients: gradients << 30,
            ..MemoryUse::default()
        };
        let rank = |pp, memory| RankRecord {
            host: "a\u{1b}".into(),
            device: "cuda:0".into(),
            device_name: None,
            pp,
            dp: 0,
            tp: 0,
            memory,
        };
        let ranks = [rank(0, memory(2, 0)), rank(1, memory(1, 1)), rank(2, memory(1, 0))];
        let expected = "\
RANK  HOST     DEVICE  PP  PEAK     PARAMETERS  GRADIENTS
0     a\\u{1b}  cuda:0  0   2.0 GiB  2.0 GiB     0 bytes
1     a\\u{1b}  cuda:0  1   2.0 GiB  1.0 GiB     1.0 GiB
";
        let last = "2     a\\u{1b}  cuda:0  2   1.0 GiB  1.0 GiB     0 bytes\n";
        assert_eq!(listed(&ranks, 3), format!("{expected}{last}"));
        assert_eq!(listed(&ranks[..2], 2), expected);
        assert!(listed(&ranks, 2).ends_with("\nand 2 more\n"));
    }
}
