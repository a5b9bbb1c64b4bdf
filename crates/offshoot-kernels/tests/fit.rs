//! Quantisation by search: its laws, and that it is never worse than plain rounding.

use offshoot_kernels::{BlockError, BlockType, Conversion, Cpu, Isa, PackedMatrix};
use proptest::prelude::*;

use BlockType::{Bf16, F16, F32, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};

const QUANTISED: [BlockType; 8] = [Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4K, Q5K, Q6K];

fn fitted(block: BlockType, weights: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0xaa; block.row_bytes(weights.len()).expect("whole blocks")];
    block.fit(weights, &mut bytes).expect("finite weights");
    bytes
}

fn read(block: BlockType, bytes: &[u8], len: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; len];
    block.dequantize(bytes, &mut out).expect("whole blocks");
    out
}

/// The weighted squared error of a block, in double precision; sub-blocks count by their own mean.
fn error(block: BlockType, weights: &[f32], got: &[f32]) -> f64 {
    let sub = if block == Q6K { 16 } else { 32 };
    let subs = weights.chunks(sub).zip(got.chunks(sub));
    subs.map(|(weights, got)| {
        let mean = weights.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / sub as f64;
        let terms = weights.iter().zip(got).map(|(&x, &w)| {
            (f64::from(x).abs() + mean.sqrt()) * (f64::from(x) - f64::from(w)).powi(2)
        });
        terms.sum::<f64>()
    })
    .sum()
}

/// What plain rounding makes of a block: ggml's own for the formats that have it, and for the K
/// formats scales that cover the range of each sub-block, rounded to their 6 or 8 bits, and nearest
/// quants.
fn plain(block: BlockType, weights: &[f32]) -> Vec<f32> {
    let high = match block {
        Q4K => 15.0,
        Q5K => 31.0,
        Q6K => return plain_q6_k(weights),
        _ => {
            let mut bytes = Vec::new();
            block.quantize(weights, &mut bytes).expect("a format with a plain rounding");
            return read(block, &bytes, weights.len());
        }
    };
    let half = |x: f32| half::f16::from_f32(x).to_f32();
    let over = |x: f32, d: f32| if d == 0.0 { 0.0 } else { (x / d).round().clamp(0.0, 63.0) };
    let cover: Vec<(f32, f32)> = weights
        .chunks(32)
        .map(|sub| {
            let min = sub.iter().fold(0f32, |a, &x| a.min(x));
            let max = sub.iter().fold(0f32, |a, &x| a.max(x));
            ((max - min) / high, -min)
        })
        .collect();
    let d = half(cover.iter().fold(0f32, |a, c| a.max(c.0)) / 63.0);
    let dmin = half(cover.iter().fold(0f32, |a, c| a.max(c.1)) / 63.0);
    let mut out = Vec::new();
    for (sub, (step, min)) in weights.chunks(32).zip(cover) {
        let (step, min) = (d * over(step, d), dmin * over(min, dmin));
        for x in sub {
            let q = if step == 0.0 { 0.0 } else { ((x + min) / step).round().clamp(0.0, high) };
            out.push(step * q - min);
        }
    }
    out
}

fn plain_q6_k(weights: &[f32]) -> Vec<f32> {
    let furthest = |of: &[f32]| of.iter().fold(0f32, |a, &x| if x.abs() > a.abs() { x } else { a });
    let steps: Vec<f32> = weights.chunks(16).map(|sub| furthest(sub) / -32.0).collect();
    let d = half::f16::from_f32(furthest(&steps) / -128.0).to_f32();
    let mut out = Vec::new();
    for (sub, step) in weights.chunks(16).zip(steps) {
        let scale = if d == 0.0 { 0.0 } else { (step / d).round().clamp(-128.0, 127.0) };
        let step = d * scale;
        for x in sub {
            let q = if step == 0.0 { 0.0 } else { (x / step).round().clamp(-32.0, 31.0) };
            out.push(step * q);
        }
    }
    out
}

/// Weights as trained matrices have them: mostly small, a few far out.
fn heavy_tailed(len: usize) -> impl Strategy<Value = Vec<f32>> {
    let one = (-1.0f32..1.0, 0.0f32..1.0).prop_map(|(x, tail)| x / (1.02 - tail));
    (prop::collection::vec(one, len), -12i32..6)
        .prop_map(|(weights, e)| weights.iter().map(|w| w * 2f32.powi(e)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_search_is_never_worse_than_plain_rounding(weights in heavy_tailed(256)) {
        for block in QUANTISED {
            for weights in weights.chunks(block.block_len()) {
                let searched = read(block, &fitted(block, weights), weights.len());
                let searched = error(block, weights, &searched);
                let plain = error(block, weights, &plain(block, weights));
                // Both are compared in single precision when one is chosen.
                let bound = plain * (1.0 + 1e-4) + 1e-30;
                prop_assert!(searched <= bound, "{block}: {searched}, plainly {plain}");
            }
        }
    }

    /// What a block of a format holds, its greatest quants among them, comes back to the bit.
    #[test]
    fn a_block_of_the_format_survives(
        q in prop::collection::vec(0u8..16, 32),
        (d, m) in (0x1000u16..0x4000, 0x1000u16..0x4000),
        ends in (0usize..32, 1usize..32),
        down: bool,
    ) {
        let mut q = q;
        (q[ends.0], q[(ends.0 + ends.1) % 32]) = (0, 15);
        let nibbles: Vec<u8> = (0..16).map(|j| q[j] | q[j + 16] << 4).collect();
        let m = if down { m | 0x8000 } else { m };
        let four = [&d.to_le_bytes()[..], &m.to_le_bytes(), &nibbles].concat();
        let weights = read(Q4_1, &four, 32);
        prop_assert_eq!(read(Q4_1, &fitted(Q4_1, &weights), 32), weights);
        let plain = [&d.to_le_bytes()[..], &nibbles].concat();
        let weights = read(Q4_0, &plain, 32);
        prop_assert_eq!(read(Q4_0, &fitted(Q4_0, &weights), 32), weights);
        let mut eight = d.to_le_bytes().to_vec();
        eight.extend(q.iter().map(|q| (i16::from(*q) * 16 - 113) as u8));
        eight[2] = 127;
        let weights = read(Q8_0, &eight, 32);
        prop_assert_eq!(read(Q8_0, &fitted(Q8_0, &weights), 32), weights);
    }

    #[test]
    fn rounding_in_place_is_writing_and_reading(weights in heavy_tailed(256)) {
        for block in QUANTISED.into_iter().chain([F32, F16, Bf16]) {
            let expected = read(block, &fitted(block, &weights), weights.len());
            let mut got = weights.clone();
            block.round(&mut got)?;
            prop_assert_eq!(got, expected, "{}", block);
        }
    }
}

#[test]
fn zero_blocks_and_constant_blocks_have_no_step() {
    for block in QUANTISED {
        let zeros = vec![0.0; block.block_len()];
        let got = read(block, &fitted(block, &zeros), zeros.len());
        assert!(got.iter().all(|w| *w == 0.0), "{block}: {got:?}");
        for constant in [0.75, -0.75, 1e-30, -1e-30, 1e-42, 65504.0, -65504.0] {
            let weights = vec![constant; block.block_len()];
            let got = read(block, &fitted(block, &weights), weights.len());
            let off = got.iter().map(|w| (w - constant).abs()).fold(0.0, f32::max);
            assert!(off <= constant.abs() * 2f32.powi(-6) + 2f32.powi(-20), "{block}: {got:?}");
        }
    }
}

#[test]
fn what_no_format_holds_is_refused_with_its_place() {
    for block in QUANTISED.into_iter().chain([F32, F16, Bf16]) {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 65505.0, f32::MAX] {
            let mut weights = vec![0.5; 512];
            weights[300] = wrong;
            let mut out = vec![7; block.row_bytes(512).expect("whole blocks")];
            // bfloat16 reaches as far, but rounds the last of it up to infinity.
            let wide = wrong.is_finite() && (block == F32 || block == Bf16 && wrong < f32::MAX);
            let got = block.fit(&weights, &mut out);
            if wide {
                assert_eq!(got, Ok(()), "{block}");
                continue;
            }
            let weight = wrong.to_string();
            let expected = BlockError::Weight { block: block.name(), index: 300, weight };
            assert_eq!(got, Err(expected));
            assert!(out.iter().all(|byte| *byte == 7), "{block}: nothing was written");
            assert!(block.round(&mut weights).is_err());
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    for block in QUANTISED {
        let weights = vec![0.5; 2 * block.block_len()];
        let short = block.fit(&weights, &mut vec![0; 2 * block.block_bytes() - 1]);
        assert!(matches!(short, Err(BlockError::Length { .. })), "{block}: {short:?}");
        let ragged = block.fit(&weights[1..], &mut vec![0; 2 * block.block_bytes()]);
        assert!(matches!(ragged, Err(BlockError::Ragged { .. })), "{block}: {ragged:?}");
        assert_eq!(block.fit(&[], &mut []), Ok(()));
    }
    for block in BlockType::ALL.into_iter().filter(|block| !block.is_written()) {
        let len = block.block_len();
        let got = block.fit(&vec![0.5; len], &mut vec![0; block.block_bytes()]);
        assert_eq!(got, Err(BlockError::ReadOnly { block: block.name() }));
        assert!(Conversion::new(F32, block, len).is_err());
        assert!(Conversion::new(block, block, len).is_ok(), "what is there may be kept");
    }
}

/// Numbers between -4 and 4 that look like chance.
fn weights(len: usize) -> Vec<f32> {
    let mut state = 1u32;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
            4.0 * x * x * x
        })
        .collect()
}

/// Numbers of a normal distribution, nearly: sums of twelve uniform ones.
fn gaussian(len: usize) -> Vec<f32> {
    let mut state = 7u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    (0..len).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

/// llama.cpp's Q4_1 is the plain rounding, to the byte (`blocks.rs`). Its blocks lose more than ours by
/// the plain squared error too, which a search by the weighted one need not lower.
#[test]
fn random_matrices_lose_less_at_4_bits_than_by_plain_rounding() {
    let squares = |weights: &[f32], got: &[f32]| {
        let errors = weights.iter().zip(got).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2));
        errors.sum::<f64>()
    };
    for spread in [0.02f32, 1.0] {
        let weights: Vec<f32> = gaussian(64 * 1024).iter().map(|x| spread * x).collect();
        let searched = read(Q4_1, &fitted(Q4_1, &weights), weights.len());
        let plain = plain(Q4_1, &weights);
        let [ours, theirs] = [&searched, &plain].map(|got| squares(&weights, got));
        println!("Q4_1: {ours:e} of {theirs:e}");
        assert!(ours < 0.97 * theirs, "{ours} of {theirs}");
        assert!(error(Q4_1, &weights, &searched) < 0.97 * error(Q4_1, &weights, &plain));
    }
}

#[test]
fn rows_and_tiles_are_the_same_bits_on_any_number_of_threads() {
    const ROWS: usize = 37;
    const COLS: usize = 512;
    let stored = fitted(F16, &weights(ROWS * COLS));
    let row = |r: usize| &stored[r * COLS * 2..(r + 1) * COLS * 2];
    for block in QUANTISED.into_iter().chain([F32, Bf16]) {
        let conversion = Conversion::new(F16, block, COLS).expect("a format that is written");
        let expected: Vec<u8> =
            (0..ROWS).flat_map(|r| fitted(block, &read(F16, row(r), COLS))).collect();
        let packed_bytes = PackedMatrix::packed_bytes(block, ROWS, COLS).expect("a shape");
        let mut tiles = vec![0; packed_bytes];
        let bytes = conversion.row_bytes();
        let kept = |r: usize| &expected[r * bytes..(r + 1) * bytes];
        let one = Cpu::new(Isa::best(), 1);
        PackedMatrix::pack_into(&one, block, (ROWS, COLS), kept, &mut tiles).expect("whole rows");
        for threads in [1, 2, 3, 8] {
            let cpu = Cpu::new(Isa::best(), threads);
            let mut got = vec![1; expected.len()];
            conversion.rows(&cpu, 0..ROWS, row, &mut got).expect("finite weights");
            assert!(got == expected, "{block} on {threads} threads");
            let mut got = vec![1; packed_bytes];
            PackedMatrix::pack_converted(&cpu, &conversion, ROWS, row, &mut got).expect("finite");
            assert!(got == tiles, "tiles of {block} on {threads} threads");
        }
    }
}

#[test]
fn of_several_wrong_rows_the_first_is_named_on_any_number_of_threads() {
    let mut all = weights(40 * 32);
    (all[39 * 32], all[17 * 32 + 3]) = (f32::NAN, f32::INFINITY);
    let stored = {
        let mut bytes = Vec::new();
        F32.quantize(&all, &mut bytes).expect("any float");
        bytes
    };
    let conversion = Conversion::new(F32, Q8_0, 32).expect("whole blocks");
    for threads in [1, 2, 3, 8] {
        let cpu = Cpu::new(Isa::best(), threads);
        let row = |r: usize| &stored[r * 128..(r + 1) * 128];
        let (at, error) = conversion.rows(&cpu, 0..40, row, &mut [0; 40 * 34]).unwrap_err();
        assert_eq!((at, error.to_string().contains("weight 3 is inf")), (17, true), "{error}");
        let mut tiles = vec![0; PackedMatrix::packed_bytes(Q8_0, 40, 32).expect("a shape")];
        let error = PackedMatrix::pack_converted(&cpu, &conversion, 40, row, &mut tiles);
        assert!(error.unwrap_err().to_string().starts_with("row 17: Q8_0: weight 3 is inf"));
    }
}
