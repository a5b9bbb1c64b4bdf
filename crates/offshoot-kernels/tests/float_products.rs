//! Products with float matrices in memory, held to those of packed matrices.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use offshoot_kernels::{
    Activations, BlockType, Cpu, FloatMatrix, FloatOutput, Forms, Isa, PackedMatrix, Product,
    multiply, multiply_floats,
};

fn number(seed: usize) -> f32 {
    ((seed * 2_654_435_761) % 1999) as f32 / 999.0 - 1.0
}

/// Runs what it is given on so many threads.
fn on(threads: usize) -> impl Fn(&(dyn Fn() + Sync)) {
    move |work| {
        std::thread::scope(|scope| {
            (0..threads).for_each(|_| {
                scope.spawn(work);
            });
        });
    }
}

/// The product of a packed matrix of the same weights.
fn packed(x: &[f32], w: &[f32], (rows, cols): (usize, usize)) -> Vec<f32> {
    let cpu = Cpu::new(Isa::PORTABLE, 1);
    let bytes: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
    let row = |r: usize| &bytes[4 * r * cols..4 * (r + 1) * cols];
    let weights = PackedMatrix::pack(&cpu, BlockType::F32, (rows, cols), row).unwrap();
    let mut acts = Activations::new();
    let tokens = x.len() / cols;
    acts.fill(&cpu, (tokens, cols), Forms::default(), |token, out| {
        out.copy_from_slice(&x[token * cols..(token + 1) * cols]);
    });
    let mut out = vec![0.0; tokens * rows];
    let mut product = Product { weights: &weights, bias: None, accumulate: false, out: &mut out };
    multiply(&cpu, &acts, [&mut product]);
    out
}

#[test]
fn products_are_those_of_packed_matrices_to_the_bit() {
    let shapes = [(1, 1, 1), (8, 33, 70), (40, 64, 9), (150, 31, 3), (16, 576, 130), (3, 5, 257)];
    for (rows, cols, tokens) in shapes {
        let x: Vec<f32> = (0..tokens * cols).map(number).collect();
        let w: Vec<f32> = (0..rows * cols).map(|i| number(i + 7)).collect();
        let turned: Vec<f32> = (0..rows * cols).map(|i| w[i % rows * cols + i / rows]).collect();
        let expected = packed(&x, &w, (rows, cols));
        for isa in Isa::available() {
            for threads in [0, 1, 3] {
                for (numbers, turned) in [(&w, false), (&turned, true)] {
                    let weights = FloatMatrix { numbers, rows, cols, turned };
                    let stride = rows + 2;
                    let mut out = vec![0.5; tokens * stride];
                    for accumulate in [false, true] {
                        let numbers = &mut out[1..];
                        let to = FloatOutput { numbers, stride, accumulate };
                        multiply_floats(isa, &x, weights, to, &on(threads));
                    }
                    for (token, out) in out.chunks_exact(stride).enumerate() {
                        let expected = &expected[token * rows..(token + 1) * rows];
                        assert!(out[0] == 0.5 && out[rows + 1] == 0.5, "beside the product");
                        for (out, y) in out[1..=rows].iter().zip(expected) {
                            assert_eq!(out.to_bits(), (y + y).to_bits(), "{isa} {rows} {cols}");
                        }
                    }
                }
            }
        }
    }
}
