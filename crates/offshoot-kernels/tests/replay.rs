//! Fifty updates of given numbers: the weights that they make, for all time, on every set of
//! instructions and however they are laid out. `scripts/oracles/replay.py` works the digests out.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use offshoot_kernels::{
    Change, Cpu, Distribution, Entries, FloatStore, Isa, Noise, PackedMatrix, Purpose, Rounding,
    Term, tensor_id, update_matrix, update_rows,
};
use sha2::{Digest, Sha256};

const STEPS: u32 = 50;
const SEED: u64 = 0x0102_0304_0506_0708;
const DECAY: f32 = 0.001;
/// A matrix whose rows end within tiles and within blocks of random bits, one whose columns are
/// whole blocks, and one of one row.
const TENSORS: [(&str, usize, usize); 3] = [("a", 21, 20), ("b", 16, 128), ("c", 1, 300)];

/// The first digits of the SHA-256 of all weights in the end, by how directions are drawn.
const ENDS: [(Distribution, &str); 3] = [
    (Distribution::Rademacher, "5f1f1aeb628d3230"),
    (Distribution::GaussQ8, "3c88ad917f19e2db"),
    (Distribution::GaussBoxMuller, "1acf01335a30b3b2"),
];

/// The same of weights stored in bfloat16 and rounded by chance.
const ROUNDED_ENDS: [(Distribution, &str); 3] = [
    (Distribution::Rademacher, "614cdf2510689d30"),
    (Distribution::GaussQ8, "3de651fbaf52390b"),
    (Distribution::GaussBoxMuller, "9e0f3181f5eceb8d"),
];

/// The weights before the first step: no rounding is in them.
fn begin(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 64.0).collect()
}

/// The terms of a step: two directions at given scales.
fn terms(name: &str, distribution: Distribution, step: u32) -> [Term<'static>; 2] {
    [0, 1].map(|index| {
        let (seed, tensor, purpose) = (SEED, tensor_id(name), Purpose::Direction);
        let noise = Noise { seed, tensor, step, index, purpose, distribution };
        let scale = ((step * 13 + index * 7) % 31) as f32 - 15.0;
        Term { scale: scale / 1000.0, entries: Entries::Noise(noise), mask: None }
    })
}

fn digest(all: &[Vec<f32>]) -> String {
    let bytes: Vec<u8> = all.iter().flatten().flat_map(|w| w.to_le_bytes()).collect();
    let digest = Sha256::digest(&bytes);
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn in_rows(cpu: &Cpu, distribution: Distribution) -> String {
    let end = TENSORS.map(|(name, rows, cols)| {
        let mut w = begin(rows * cols);
        for step in 0..STEPS {
            let terms = terms(name, distribution, step);
            let change = Change::Linear { decay: DECAY, terms: &terms };
            update_rows(cpu, (rows, cols), &mut w, &change);
        }
        w
    });
    digest(&end)
}

fn in_tiles(cpu: &Cpu, store: FloatStore, distribution: Distribution) -> String {
    let end = TENSORS.map(|(name, rows, cols)| {
        let begin = begin(rows * cols);
        let row = |r: usize, out: &mut [f32]| out.copy_from_slice(&begin[r * cols..][..cols]);
        let mut matrix = PackedMatrix::zeroed(store, rows, cols).unwrap();
        matrix.fill_rows(cpu, row).unwrap();
        for step in 0..STEPS {
            let terms = terms(name, distribution, step);
            let change = Change::Linear { decay: DECAY, terms: &terms };
            let rounding = Rounding { seed: SEED, tensor: tensor_id(name), step };
            update_matrix(cpu, &mut matrix, &change, &rounding).unwrap();
        }
        let mut all = vec![0.0; rows * cols];
        (0..rows).for_each(|r| matrix.dequantize_row(r, &mut all[r * cols..(r + 1) * cols]));
        all
    });
    digest(&end)
}

#[test]
fn fifty_updates_end_in_the_weights_that_they_always_ended_in() {
    for (distribution, expected) in ENDS {
        for isa in Isa::available() {
            for threads in [1, 3] {
                let cpu = Cpu::new(isa, threads);
                assert_eq!(in_rows(&cpu, distribution), expected, "{isa} {distribution:?}");
                let tiles = in_tiles(&cpu, FloatStore::F32, distribution);
                assert_eq!(tiles, expected, "{isa} {distribution:?} tiles");
            }
        }
    }
}

#[test]
fn fifty_updates_of_weights_in_bfloat16_end_in_the_weights_that_they_always_ended_in() {
    for (distribution, expected) in ROUNDED_ENDS {
        for isa in Isa::available() {
            for threads in [1, 3] {
                let tiles = in_tiles(&Cpu::new(isa, threads), FloatStore::Bf16, distribution);
                assert_eq!(tiles, expected, "{isa} {distribution:?}");
            }
        }
    }
}
