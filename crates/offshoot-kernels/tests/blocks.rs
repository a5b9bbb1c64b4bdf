//! The block formats against the values of `scripts/oracles/blocks.py`, and their laws.

use offshoot_kernels::{BlockError, BlockType};

/// One record of a reference file: a format, a count, then the rest of the file.
fn record(bytes: &[u8]) -> (BlockType, usize, &[u8]) {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    (BlockType::from_ggml_id(word(0)).unwrap(), word(4) as usize, &bytes[8..])
}

fn f32_bits(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect()
}

fn dequantized_bits(block: BlockType, bytes: &[u8], weights: usize) -> Vec<u32> {
    let mut out = vec![f32::NAN; weights];
    block.dequantize(bytes, &mut out).unwrap();
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
