//! Facts of a batch that need no look at its tensors: they are counted on the host, where the rows
//! are made, so that a training step asks the device nothing.

use crate::tensor::IGNORE_INDEX;

/// The rows of one micro batch, on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchStats {
    /// Tokens that are no padding.
    pub tokens: i64,
    /// Positions that have a token to predict.
    pub targets: i64,
    /// The lowest id of `input_ids`, padding included.
    pub lowest_id: i64,
    /// The highest id of `input_ids`, padding included.
    pub highest_id: i64,
    /// Whether padding stands before a token of its row, which then must not see it.
    pub is_left_padded: bool,
    /// Whether there is padding at all.
    pub is_padded: bool,
    /// Whether labels and input ids are as many in each row, as the labels of a causal model are.
    pub is_aligned: bool,
    /// Whether the rows came with labels of their own.
    pub has_labels: bool,
    /// Labels that are no padding.
    pub labels: i64,
    /// The lowest label, and the highest.
    pub label_range: (i64, i64),
}

/// The rows of a batch on the host, one after another, each of `len` tokens and `label_len` labels.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HostRows {
    pub(super) len: usize,
    pub(super) label_len: usize,
    /// Whether each row had as many labels as tokens before it was padded.
    pub(super) is_aligned: bool,
    /// Whether the rows came with labels of their own.
    pub(super) has_labels: bool,
    pub(super) input_ids: Vec<i64>,
    pub(super) labels: Vec<i64>,
    pub(super) attention_mask: Vec<i64>,
}

impl HostRows {
    /// The token that each position should predict: the label of the next one. The last position of
    /// a row has none.
    pub(super) fn target_ids(&self) -> Vec<i64> {
        let shifted = |row: &[i64]| {
            let next = row[1..].iter().copied();
            next.chain([IGNORE_INDEX]).collect::<Vec<_>>()
        };
        self.labels.chunks_exact(self.label_len).flat_map(shifted).collect()
    }

    /// The positions that have a token to predict, among those of all rows, and the tokens.
    pub(super) fn scored(target_ids: &[i64]) -> (Vec<i64>, Vec<i64>) {
        (0..).zip(target_ids.iter().copied()).filter(|(_, id)| *id != IGNORE_INDEX).unzip()
    }

    /// Counts; `target_ids` are the rows' own.
    pub(super) fn stats(&self, target_ids: &[i64]) -> BatchStats {
        let is_real = |mask: &i64| *mask != 0;
        let shown_after_hidden =
            |row: &[i64]| row.windows(2).any(|pair| !is_real(&pair[0]) && is_real(&pair[1]));
        let labels = || self.labels.iter().copied().filter(|&id| id != IGNORE_INDEX);
        BatchStats {
            tokens: self.attention_mask.iter().filter(|mask| is_real(mask)).count() as i64,
            targets: target_ids.iter().filter(|&&id| id != IGNORE_INDEX).count() as i64,
            lowest_id: self.input_ids.iter().copied().min().unwrap_or(0),
            highest_id: self.input_ids.iter().copied().max().unwrap_or(0),
            is_left_padded: self.attention_mask.chunks_exact(self.len).any(shown_after_hidden),
            is_padded: self.attention_mask.contains(&0),
            is_aligned: self.is_aligned,
            has_labels: self.has_labels,
            labels: labels().count() as i64,
            label_range: (labels().min().unwrap_or(0), labels().max().unwrap_or(0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(len: usize, input_ids: &[i64], labels: &[i64], attention_mask: &[i64]) -> HostRows {
        let [input_ids, labels, attention_mask] =
            [input_ids, labels, attention_mask].map(<[i64]>::to_vec);
        let (label_len, is_aligned, has_labels) = (len, true, false);
        HostRows { len, label_len, is_aligned, has_labels, input_ids, labels, attention_mask }
    }

    #[test]
    fn each_position_predicts_the_next_label_of_its_row() {
        let rows = rows(3, &[1, 2, 3, 4, 5, 0], &[1, 2, 3, -100, 5, -100], &[1, 1, 1, 1, 1, 0]);
        let targets = rows.target_ids();
        assert_eq!(targets, [2, 3, -100, 5, -100, -100]);
        let stats = rows.stats(&targets);
        let expected = BatchStats {
            tokens: 5,
            targets: 3,
            lowest_id: 0,
            highest_id: 5,
            is_left_padded: false,
            is_padded: true,
            is_aligned: true,
            has_labels: false,
            labels: 4,
            label_range: (1, 5),
        };
        assert_eq!(stats, expected);
        let single = self::rows(1, &[7], &[7], &[1]);
        assert_eq!(single.target_ids(), [-100]);
    }

    #[test]
    fn only_padding_before_a_token_of_the_same_row_is_on_the_left() {
        let is_left_padded =
            |mask: &[i64]| rows(3, &[0; 6], &[0; 6], mask).stats(&[]).is_left_padded;
        assert!(!is_left_padded(&[1, 1, 0, 1, 1, 1]));
        assert!(is_left_padded(&[1, 1, 1, 0, 1, 1]));
        assert!(is_left_padded(&[1, 0, 1, 1, 0, 0]));
    }
}
