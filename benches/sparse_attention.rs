//! Block-sparse attention beside libtorch's dense causal attention, forward and backward.
//!
//!     OMP_NUM_THREADS=2 cargo bench --bench sparse_attention [rounds: 5]
//!
//! Both run in turns (A B A B) on the same queries, keys and values. The bound is what the part of the scores
//! allows that is computed. Numbers from a machine that does something else at the same time mean nothing.
#![allow(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::{error::Error, time::Instant};

use dsr::{
    config::{Sides, SparseAttention, SparseMode},
    sparse::{BlockSparse, Extent, Hidden},
    tensor::{Device, Kind, Tensor},
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const HEADS: i64 = 8;
const WIDTH: i64 = 64;

fn main() -> Result<()> {
    let rounds = std::env::args().skip(1).find_map(|word| word.parse().ok()).unwrap_or(5);
    // 1,024 tokens before a block and the first 128.
    let window = SparseAttention {
        mode: SparseMode::BsLongformer,
        block: 128,
        num_sliding_window_blocks: Some(17),
        ..SparseAttention::default()
    };
    let fixed =
        SparseAttention { block: 64, num_local_blocks: Some(16), ..SparseAttention::default() };
    println!("| layout | tokens | dense ms | sparse ms | faster | bound | of the bound |");
    println!("|---|---|---|---|---|---|---|");
    for (name, options) in [("window 1,024 + first 128", window), ("fixed 64, 16 + 1", fixed)] {
        for tokens in [4096, 8192] {
            let extent =
                Extent { sides: Sides::Unidirectional, heads: HEADS, longest: Some(tokens) };
            let sparse = BlockSparse::new(options.clone(), extent)?;
            let (dense, ours) = times(&sparse, tokens, rounds)?;
            let (faster, bound) = (dense / ours, 1.0 / sparse.density(tokens)?);
            println!(
                "| {name} | {tokens} | {dense:.0} | {ours:.0} | {faster:.2} | {bound:.2} | {:.0} % |",
                100.0 * faster / bound
            );
        }
    }
    Ok(())
}

/// The medians of dense and sparse attention in milliseconds.
fn times(sparse: &BlockSparse, tokens: i64, rounds: usize) -> Result<(f64, f64)> {
    let options = (Kind::Float, Device::Cpu);
    let random = || Tensor::randn([1, tokens, HEADS, WIDTH], options);
    let inputs = [(); 3].map(|()| random().set_requires_grad(true));
    let weight = random().transpose(1, 2);
    let [mut dense, mut ours] = [Vec::new(), Vec::new()];
    for round in 0..=rounds {
        let [q, k, v] = inputs.each_ref().map(|x| x.transpose(1, 2));
        let begin = Instant::now();
        let out = Tensor::scaled_dot_product_attention(
            &q,
            &k,
            &v,
            None::<&Tensor>,
            0.0,
            true,
            None,
            false,
        );
        (out * &weight).sum(Kind::Float).backward();
        let middle = Instant::now();
        let out = sparse.attend([&q, &k, &v], Hidden::default(), (0, None))?;
        (out * &weight).sum(Kind::Float).backward();
        // The first one warms up.
        if round > 0 {
            dense.push((middle - begin).as_secs_f64() * 1e3);
            ours.push(middle.elapsed().as_secs_f64() * 1e3);
        }
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    Ok((median(dense), median(ours)))
}
