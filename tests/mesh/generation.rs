//! Texts that a model goes on with while its layers are on several ranks.

use std::rc::Rc;

use dsr::{
    dist::ProcessGroup,
    engine::Engine,
    generation::{Ended, Prompt, Sampling, generate},
};

use super::{Shape, named, of_shape};
use crate::support::{alone, ranks::threads, tiny::config};

/// What comes behind three prompts of different lengths, two at a time.
fn texts(group: &Rc<ProcessGroup>, name: &str, shape: Shape) -> Vec<Ended> {
    let config = of_shape(shape, &config(1, 1));
    let engine = Engine::new(named(name), Rc::clone(group), config).unwrap();
    let prompt = |length: i64| {
        let tokens = (0..length).map(|t| 3 + (7 * length + 5 * t) % 50).collect();
        Prompt { tokens, seed: length as u64 }
    };
    let sampling = Sampling {
        max_new_tokens: 6,
        temperature: 0.0,
        batch_size: 2,
        logprobs: true,
        ..Sampling::default()
    };
    let prompts = [5, 9, 2].map(prompt);
    generate(engine.model(), &prompts, &sampling, &[], &mut ()).unwrap()
}

/// All ranks of a mesh have the texts of one rank; where they share no layer, with the very
/// probabilities, and else to 1e-4, for sums in another order.
#[test]
fn a_mesh_goes_on_with_texts_as_one_rank_does() {
    let _alone = alone();
    let shapes: [Shape; 7] = [
        (2, 1, 1, 0),
        (3, 1, 1, 0),
        (4, 1, 1, 0),
        (2, 2, 1, 3),
        (1, 1, 2, 0),
        (1, 2, 2, 3),
        (2, 1, 2, 0),
    ];
    for name in ["gpt2", "llama-gqa", "t5-v10", "t5-v11"] {
        let expected = threads(1, |group| texts(group, name, (1, 1, 1, 0))).remove(0);
        assert!(expected.iter().all(|text| text.tokens.len() == 6), "{name}");
        for shape in shapes {
            let ranks = shape.0 * shape.1 * shape.2;
            for found in threads(ranks, |group| texts(group, name, shape)) {
                if shape.2 == 1 {
                    assert_eq!(found, expected, "{name} {shape:?}");
                    continue;
                }
                for (found, wanted) in found.iter().zip(&expected) {
                    assert_eq!(found.tokens, wanted.tokens, "{name} {shape:?}");
                    let pairs = found.logprobs.iter().zip(&wanted.logprobs);
                    let off = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    assert!(off < 1e-4, "{name} {shape:?}: {off}");
                }
            }
        }
    }
}
