//! The order of the forward and backward passes of a pipeline's stage: 1F1B (Narayanan et al. 2019).
//!
//! A stage runs ahead by as many forward passes as there are stages behind it, then one of each in
//! turn, then the backward passes that are left. It thus holds the activations of few micro batches,
//! however many a step has, and waits (p - 1) / (m + p - 1) of the time for m micro batches in p
//! stages.

/// What a stage does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// The forward pass of the micro batch of this number.
    Forward(usize),
    /// The backward pass of the oldest micro batch that waits for it.
    Backward,
}

/// The turns of stage `stage` of `stages` in a step of so many micro batches. One stage has a
/// backward pass after each forward pass.
pub(super) fn one_f_one_b(
    stage: usize,
    stages: usize,
    micro_batches: usize,
) -> impl Iterator<Item = Turn> {
    let ahead = (stages - 1 - stage).min(micro_batches);
    let first = (0..ahead).map(Turn::Forward);
    let pairs = (ahead..micro_batches).flat_map(|i| [Turn::Forward(i), Turn::Backward]);
    first.chain(pairs).chain((0..ahead).map(|_| Turn::Backward))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays all stages: a receive waits for its send, a send for nothing. Gives the most micro batches
    /// that each stage held at once, and the time of the step where a forward pass takes 1 and a
    /// backward pass 2.
    fn play(stages: usize, micro_batches: usize) -> (Vec<usize>, usize) {
        let turns: Vec<Vec<Turn>> =
            (0..stages).map(|stage| one_f_one_b(stage, stages, micro_batches).collect()).collect();
        // When the output of a stage's forward and backward passes is there, by micro batch.
        let mut forward = vec![vec![]; stages];
        let mut backward = vec![vec![]; stages];
        let (mut at, mut clock) = (vec![0; stages], vec![0; stages]);
        let mut held = vec![0; stages];
        let mut most = vec![0; stages];
        loop {
            let mut moved = false;
            for stage in 0..stages {
                let Some(&turn) = turns[stage].get(at[stage]) else { continue };
                let (made, given, took): (_, Option<&Vec<usize>>, _) = match turn {
                    Turn::Forward(i) => {
                        assert_eq!(i, forward[stage].len(), "in order");
                        (i, stage.checked_sub(1).map(|before| &forward[before]), 1)
                    }
                    Turn::Backward => (backward[stage].len(), backward.get(stage + 1), 2),
                };
                let Some(ready) = given.map_or(Some(0), |given| given.get(made).copied()) else {
                    continue;
                };
                clock[stage] = clock[stage].max(ready) + took;
                match turn {
                    Turn::Forward(_) => {
                        forward[stage].push(clock[stage]);
                        held[stage] += 1;
                    }
                    Turn::Backward => {
                        backward[stage].push(clock[stage]);
                        held[stage] -= 1;
                    }
                }
                most[stage] = most[stage].max(held[stage]);
                at[stage] += 1;
                moved = true;
            }
            if !moved {
                break;
            }
        }
        for stage in 0..stages {
            assert_eq!(at[stage], turns[stage].len(), "stage {stage} of {stages} waits for ever");
            assert_eq!(
                (forward[stage].len(), backward[stage].len()),
                (micro_batches, micro_batches)
            );
        }
        (most, clock.into_iter().max().unwrap_or(0))
    }

    #[test]
    fn every_stage_ends_and_holds_few_micro_batches() {
        for stages in 1..=8 {
            for micro_batches in 1..=16 {
                let (most, time) = play(stages, micro_batches);
                for (stage, most) in most.into_iter().enumerate() {
                    assert_eq!(most, (stages - stage).min(micro_batches));
                }
                // The busy time, and the bubble.
                assert_eq!(time, 3 * (micro_batches + stages - 1), "{stages} {micro_batches}");
            }
        }
    }

    #[test]
    fn one_stage_has_a_backward_pass_after_each_forward_pass() {
        let turns: Vec<_> = one_f_one_b(0, 1, 2).collect();
        assert_eq!(turns, [Turn::Forward(0), Turn::Backward, Turn::Forward(1), Turn::Backward]);
    }
}
