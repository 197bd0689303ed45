//! What long rows need, on meshes: MLPs in slices, and an encoder's layout with its trained bias.

use dsr::config::{ActivationCheckpointing, EngineConfig, SparseAttention, TiledMlp};

use super::{Shape, curves, named};
use crate::support::{alone, numbers::assert_relative, tiny::config};

fn is_near(name: &str, shape: Shape, found: &[(f64, f64)], expected: &[(f64, f64)]) {
    for (found, wanted) in found.iter().zip(expected) {
        assert_relative(&format!("{name} {shape:?}"), found.0, wanted.0, 1e-5);
        assert_relative(&format!("{name} {shape:?} norm"), found.1, wanted.1, 1e-4);
    }
}

/// Slices have the losses of the whole, also where ranks share the layers, with biases and without.
#[test]
fn mlps_in_slices_go_with_every_mesh() {
    let _alone = alone();
    let tiles = Some(TiledMlp { shards: Some(3) });
    let checkpointing = Some(ActivationCheckpointing { every: 1, cpu_checkpointing: false });
    for name in ["gpt2", "phi3", "t5-v11"] {
        let expected = curves(name, (1, 1, 1, 0), &|| config(1, 1));
        let sliced = || EngineConfig { tiled_mlp: tiles, ..config(1, 1) };
        let again = || EngineConfig { activation_checkpointing: checkpointing, ..sliced() };
        for shape in [(1, 1, 2, 0), (1, 2, 1, 3), (2, 1, 1, 0), (1, 2, 2, 3)] {
            is_near(name, shape, &curves(name, shape, &sliced), &expected);
        }
        is_near(name, (1, 1, 2, 0), &curves(name, (1, 1, 2, 0), &again), &expected);
    }
}

/// The bias of each distance has a gradient on each rank that has a part of the heads, and crosses the
/// boundaries of stages.
#[test]
fn an_encoders_layout_goes_with_every_mesh() {
    let _alone = alone();
    let options = SparseAttention {
        block: 3,
        num_local_blocks: Some(2),
        num_different_global_patterns: Some(2),
        different_layout_per_head: true,
        ..SparseAttention::default()
    };
    let name = "t5-v10";
    assert!(named(name).facts().is_seq2seq());
    let plain = || EngineConfig { sparse_attention: Some(options.clone()), ..config(1, 1) };
    let expected = curves(name, (1, 1, 1, 0), &plain);
    assert_ne!(expected, curves(name, (1, 1, 1, 0), &|| config(1, 1)), "it is dense");
    for shape in [(1, 1, 2, 0), (2, 1, 1, 0), (1, 2, 1, 3)] {
        is_near(name, shape, &curves(name, shape, &plain), &expected);
    }
}
