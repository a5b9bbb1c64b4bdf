//! The block formats against the values of `scripts/oracles/blocks.py`, and their laws.

use offshoot_kernels::{BlockError, BlockType};
use proptest::prelude::*;

/// One record of a reference file: a format, a count, then the rest of the file.
fn record(bytes: &[u8]) -> (BlockType, usize, &[u8]) {
    let (head, rest) = bytes.split_at(8);
    let head = f32_bits(head);
    let block = BlockType::from_ggml_id(head[0]).expect("the script writes known formats only");
    (block, head[1] as usize, rest)
}

fn written() -> Vec<BlockType> {
    use BlockType::*;
    vec![F32, F16, Bf16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0]
}

fn f32_bits(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect()
}

fn dequantized_bits(block: BlockType, bytes: &[u8], weights: usize) -> Vec<u32> {
    let mut out = vec![f32::NAN; weights];
    block.dequantize(bytes, &mut out).expect("lengths match");
    out.iter().map(|w| w.to_bits()).collect()
}

#[test]
fn dequantized_weights_have_the_bits_of_the_reference() {
    let mut rest: &[u8] = include_bytes!("data/blocks.bin");
    let mut seen = Vec::new();
    while !rest.is_empty() {
        let (block, n_blocks, tail) = record(rest);
        let weights = n_blocks * block.block_len();
        let (bytes, tail) = tail.split_at(n_blocks * block.block_bytes());
        let (expected, tail) = tail.split_at(4 * weights);
        let got = dequantized_bits(block, bytes, weights);
        for (i, (got, expected)) in got.into_iter().zip(f32_bits(expected)).enumerate() {
            assert_eq!(got, expected, "{block}: weight {i} of {weights}");
        }
        seen.push(block);
        rest = tail;
    }
    seen.sort();
    assert_eq!(seen, BlockType::ALL);
}

#[test]
fn quantized_bytes_are_those_of_the_reference() {
    let mut rest: &[u8] = include_bytes!("data/quantize.bin");
    let mut seen = Vec::new();
    while !rest.is_empty() {
        let (block, n_weights, tail) = record(rest);
        let (weights, tail) = tail.split_at(4 * n_weights);
        let (expected, tail) = tail.split_at(block.row_bytes(n_weights).unwrap());
        let weights: Vec<f32> = f32_bits(weights).into_iter().map(f32::from_bits).collect();
        let mut got = b"before".to_vec();
        block.quantize(&weights, &mut got).unwrap();
        assert_eq!(got[..6], *b"before");
        let got = got[6..].chunks(block.block_bytes());
        for (i, (got, expected)) in got.zip(expected.chunks(block.block_bytes())).enumerate() {
            assert_eq!(got, expected, "{block}: block {i}");
        }
        seen.push(block);
        rest = tail;
    }
    seen.sort();
    assert_eq!(seen, written());
}

#[test]
fn formats_without_a_quantizer_say_so_and_append_nothing() {
    for block in BlockType::ALL.into_iter().filter(|block| !written().contains(block)) {
        let mut out = vec![1];
        let error = block.quantize(&vec![0.5; block.block_len()], &mut out);
        assert_eq!(error, Err(BlockError::ReadOnly { block: block.name() }));
        assert_eq!(out, [1]);
    }
}

#[test]
fn quantize_refuses_a_part_of_a_block_and_appends_nothing() {
    for block in written().into_iter().filter(|block| block.block_len() > 1) {
        let mut out = Vec::new();
        let error = BlockError::Ragged { block: block.name(), weights: 33, block_len: 32 };
        assert_eq!(block.quantize(&[0.5; 33], &mut out), Err(error));
        assert!(out.is_empty());
    }
}

#[test]
fn quantize_takes_any_f32_without_panicking() {
    let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-45, -1e-45, 0.0];
    for block in written() {
        for &w in &odd {
            let mut weights = [0.0; 32];
            weights[5] = w;
            let mut out = Vec::new();
            block.quantize(&weights, &mut out).unwrap();
            assert_eq!(Some(out.len()), block.row_bytes(32));
        }
    }
}

proptest! {
    /// The least step that covers the block, half of which a rounded weight may be off. Scale and
    /// minimum are then rounded to halves (11 bits), which moves a weight by up to 2^-11 of each.
    #[test]
    fn rounding_error_is_within_half_a_step(
        weights in prop::collection::vec(-8.0f32..8.0, 32),
        exponent in -8i32..8,
    ) {
        let weights: Vec<f32> = weights.iter().map(|w| w * 2f32.powi(exponent)).collect();
        let far = weights.iter().fold(0f32, |far, w| far.max(w.abs()));
        let min = weights.iter().fold(f32::MAX, |min, &w| min.min(w));
        let max = weights.iter().fold(f32::MIN, |max, &w| max.max(w));
        // The symmetric formats of 4 and 5 bits lack one quant on the far side's other side, so a
        // weight opposite to the furthest one may be off by a whole step.
        let bounds = [
            (BlockType::Q4_0, far / 8.0),
            (BlockType::Q5_0, far / 16.0),
            (BlockType::Q8_0, far / 254.0),
            (BlockType::Q4_1, (max - min) / 30.0),
            (BlockType::Q5_1, (max - min) / 62.0),
        ];
        for (block, bound) in bounds {
            let mut bytes = Vec::new();
            block.quantize(&weights, &mut bytes).unwrap();
            let mut got = [0.0; 32];
            block.dequantize(&bytes, &mut got).unwrap();
            let slack = (far + (max - min)) / 2048.0 + 2f32.powi(-20);
            for (got, w) in got.iter().zip(&weights) {
                prop_assert!((got - w).abs() <= bound + slack, "{}: {} for {}", block, got, w);
            }
        }
    }

    /// What a float format holds exactly comes back exactly.
    #[test]
    fn float_formats_round_trip_their_own_numbers(half in 0u16..0x7c00, sign: bool) {
        let bits = half | (u16::from(sign) << 15);
        for block in [BlockType::F16, BlockType::Bf16] {
            let mut w = [0.0];
            block.dequantize(&bits.to_le_bytes(), &mut w).unwrap();
            let mut bytes = Vec::new();
            block.quantize(&w, &mut bytes).unwrap();
            prop_assert_eq!(bytes, bits.to_le_bytes());
        }
    }
}

#[test]
fn dequantize_refuses_wrong_lengths_and_writes_nothing() {
    for block in BlockType::ALL {
        let (weights, bytes) = (2 * block.block_len(), 2 * block.block_bytes());
        let mut out = vec![7.0; weights];
        for got in [0, bytes - 1, bytes + 1, 2 * bytes] {
            let error = BlockError::Length { block: block.name(), expected: bytes, got, weights };
            assert_eq!(block.dequantize(&vec![1; got], &mut out), Err(error));
        }
        assert!(out.iter().all(|&w| w == 7.0), "{block}");
        assert_eq!(block.dequantize(&[], &mut []), Ok(()));
    }
}

#[test]
fn dequantize_refuses_a_part_of_a_block() {
    for block in BlockType::ALL.into_iter().filter(|block| block.block_len() > 1) {
        let (weights, block_len) = (block.block_len() + 1, block.block_len());
        let error = BlockError::Ragged { block: block.name(), weights, block_len };
        let bytes = vec![0; 2 * block.block_bytes()];
        assert_eq!(block.dequantize(&bytes, &mut vec![0.0; weights]), Err(error));
    }
}
