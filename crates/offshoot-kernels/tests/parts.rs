//! Parts of a step's tokens, each with a matrix of its own, against each token alone.

#![allow(clippy::unwrap_used)] // test code

use offshoot_kernels::{
    Activation, Activations, BlockType, Buffer, Compute, Cpu, Entries, Forming, FormingScratch,
    Forms, GatedPair, Isa, Noise, PackedMatrix, Part, Product, SharedBytes, Term, form_for,
    multiply, multiply_formed, multiply_gated, multiply_gated_parts, multiply_part, multiply_parts,
};

const COLS: usize = 96;
/// Two tile rows and a part of a third.
const ROWS: usize = 45;
/// Rows of the second product's input: a whole number of blocks.
const INNER: usize = 64;

/// Numbers of about one, other ones for another seed.
fn numbers(n: usize, mut state: u32) -> Vec<f32> {
    let number = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(number).collect()
}

fn matrix(cpu: &Cpu, block: BlockType, (rows, cols): (usize, usize), seed: u32) -> PackedMatrix {
    let mut bytes = Vec::new();
    for row in numbers(rows * cols, seed).chunks_exact(cols) {
        block.quantize(row, &mut bytes).unwrap();
    }
    let row_bytes = block.row_bytes(cols).unwrap();
    let mut out = Buffer::zeroed(PackedMatrix::packed_bytes(block, rows, cols).unwrap());
    let row = |r: usize| &bytes[r * row_bytes..(r + 1) * row_bytes];
    PackedMatrix::pack_into(cpu, block, (rows, cols), row, &mut out).unwrap();
    PackedMatrix::from_packed(block, rows, cols, SharedBytes::from(out)).unwrap()
}

fn inputs(cpu: &Cpu, x: &[f32], forms: Forms) -> Activations {
    let mut acts = Activations::new();
    acts.fill(cpu, (x.len() / COLS, COLS), forms, |row, out| {
        out.copy_from_slice(&x[row * COLS..(row + 1) * COLS]);
    });
    acts
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Parts of every length that a panel or two may be cut into, with gaps, and the tokens there are.
fn parts() -> (Vec<Part>, usize) {
    let (mut parts, mut at) = (Vec::new(), 0);
    for (i, n) in [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 13, 17, 1].into_iter().enumerate() {
        at += usize::from(i % 4 == 3);
        parts.push(Part { matrix: i % 3, start: at, end: at + n });
        at += n;
    }
    (parts, at + 2)
}

const BLOCKS: [BlockType; 6] = [
    BlockType::F32,
    BlockType::F16,
    BlockType::Bf16,
    BlockType::Q4_1,
    BlockType::Q5_0,
    BlockType::Q8_0,
];

/// One and a half times a direction.
fn shift() -> [Term<'static>; 1] {
    let noise = Noise { seed: 3, tensor: 5, ..Noise::default() };
    [Term { scale: 1.5, entries: Entries::Noise(noise), mask: None }]
}

#[test]
fn tokens_of_a_part_have_the_bits_of_a_token_alone() {
    let (parts, tokens) = parts();
    let x = numbers(tokens * COLS, 3);
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 3);
        for block in BLOCKS {
            let weights = [0, 1, 2].map(|seed| matrix(&cpu, block, (ROWS, COLS), seed));
            let forms = Forms { rest: true, ..form_for(block) };
            let acts = inputs(&cpu, &x, forms);
            let mut out = vec![f32::NAN; tokens * ROWS];
            multiply_parts(&cpu, &acts, &parts, |i| &weights[i], &mut out);
            for part in &parts {
                let weights = &weights[part.matrix];
                for token in part.start..part.end {
                    let one = inputs(&cpu, &x[token * COLS..(token + 1) * COLS], forms);
                    let mut alone = vec![0.0; ROWS];
                    let product =
                        Product { weights, bias: None, accumulate: false, out: &mut alone };
                    multiply(&cpu, &one, &mut [product]);
                    let ours = &mut out[token * ROWS..(token + 1) * ROWS];
                    assert!(bits(ours) == bits(&alone), "{isa} {block} {part:?} {token}");
                    ours.fill(f32::NAN);
                }
                let range = part.start..part.end;
                let mut alone = vec![0.0; range.len() * ROWS];
                multiply_part(&cpu, &acts, range.clone(), weights, None, &mut alone);
                let mut again = vec![0.0; tokens * ROWS];
                multiply_parts(&cpu, &acts, &[*part], |_| weights, &mut again);
                assert!(bits(&alone) == bits(&again[range.start * ROWS..range.end * ROWS]));
                let forming =
                    Forming { terms: &shift(), compute: Compute::Single, ..Forming::default() };
                let mut scratch = FormingScratch::default();
                let how = Some((forming, &mut scratch));
                multiply_part(&cpu, &acts, range.clone(), weights, how, &mut alone);
                let mut whole = Product { weights, bias: None, accumulate: false, out: &mut again };
                multiply_formed(&cpu, &acts, &mut whole, forming, &mut scratch);
                assert!(bits(&alone) == bits(&again[range.start * ROWS..range.end * ROWS]));
            }
            assert!(out.iter().all(|x| x.is_nan()), "tokens of no part are left alone");
        }
    }
}

#[test]
fn gated_parts_have_the_bits_of_a_token_alone_in_every_form() {
    let (parts, tokens) = parts();
    let x = numbers(tokens * COLS, 5);
    // With the 8-bit form in one plane and in two, which weights of 8 bits multiply both.
    let each = BLOCKS.into_iter().flat_map(|block| [(block, false), (block, true)]);
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 3);
        for (block, rest) in each.clone() {
            let forms = Forms { q8: true, rest, bf16: block == BlockType::Bf16 };
            let weights = [0, 1, 2, 3].map(|seed| matrix(&cpu, block, (INNER, COLS), seed));
            let pair = |i: usize| GatedPair {
                gate: (&weights[i], None),
                up: (&weights[i + 1], None),
                activation: Activation::Silu,
            };
            let acts = inputs(&cpu, &x, forms);
            let (mut out, mut alone) = (Activations::new(), Activations::new());
            multiply_gated_parts(&cpu, &acts, &parts, pair, forms, &mut out);
            // What is read of it next are its forms, so they are compared by a product.
            let next = matrix(&cpu, BlockType::Q8_0, (8, INNER), 9);
            let mut products = vec![0.0; tokens * 8];
            multiply_parts(&cpu, &out, &parts, |_| &next, &mut products);
            for part in &parts {
                for token in part.start..part.end {
                    let one = inputs(&cpu, &x[token * COLS..(token + 1) * COLS], forms);
                    multiply_gated(&cpu, &one, pair(part.matrix), forms, &mut alone);
                    let ours = &out.x()[token * INNER..(token + 1) * INNER];
                    assert!(bits(ours) == bits(alone.x()), "{isa} {block} {rest} {part:?} {token}");
                    let mut product = [0.0; 8];
                    multiply_part(&cpu, &alone, 0..1, &next, None, &mut product);
                    assert!(bits(&product) == bits(&products[token * 8..(token + 1) * 8]));
                }
            }
        }
    }
}

#[test]
fn no_part_is_no_product() {
    let cpu = Cpu::new(Isa::best(), 2);
    let weights = matrix(&cpu, BlockType::F16, (ROWS, COLS), 1);
    let acts = inputs(&cpu, &numbers(COLS, 1), Forms::default());
    let mut out = [7.0; ROWS];
    multiply_parts(&cpu, &acts, &[], |_| &weights, &mut out);
    assert_eq!(out, [7.0; ROWS]);
}

#[test]
#[should_panic(expected = "parts that do not overlap")]
fn parts_that_overlap_are_refused() {
    let cpu = Cpu::new(Isa::best(), 2);
    let weights = matrix(&cpu, BlockType::F16, (ROWS, COLS), 1);
    let acts = inputs(&cpu, &numbers(4 * COLS, 1), Forms::default());
    let parts = [Part { matrix: 0, start: 0, end: 3 }, Part { matrix: 0, start: 2, end: 4 }];
    multiply_parts(&cpu, &acts, &parts, |_| &weights, &mut [0.0; 4 * ROWS]);
}
