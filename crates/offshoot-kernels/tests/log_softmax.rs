//! Log-probabilities from an output head without its logits, against those of its logits.

#![allow(clippy::unwrap_used)] // test code

use offshoot_kernels::{
    Activations, BlockType, Compute, Cpu, Entries, Forming, FormingScratch, Forms, Greatest, Isa,
    LogSoftmaxScratch, Noise, PackedMatrix, Product, RowScores, Term, Wanted, form_for,
    log_softmax_rows, multiply, multiply_formed, multiply_log_softmax, soft_cap,
};

const COLS: usize = 64;
/// Two pieces and some chunks, the last chunk and tile ragged.
const WIDTH: usize = 2 * 1024 + 300;
const TOKENS: usize = 70;

fn numbers(n: usize, mut state: u32) -> Vec<f32> {
    let number = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(number).collect()
}

fn head(cpu: &Cpu, block: BlockType) -> PackedMatrix {
    let mut bytes = Vec::new();
    for row in numbers(WIDTH * COLS, 1).chunks_exact(COLS) {
        block.quantize(row, &mut bytes).unwrap();
    }
    let row_bytes = block.row_bytes(COLS).unwrap();
    PackedMatrix::pack(cpu, block, (WIDTH, COLS), |r| &bytes[r * row_bytes..(r + 1) * row_bytes])
        .unwrap()
}

fn inputs(cpu: &Cpu, x: &[f32], forms: Forms) -> Activations {
    let mut acts = Activations::new();
    acts.fill(cpu, (x.len() / COLS, COLS), forms, |row, out| {
        out.copy_from_slice(&x[row * COLS..(row + 1) * COLS]);
    });
    acts
}

/// The wanted outputs of each token: none of the first, then one, two, three, none, ...
fn wanted(tokens: usize) -> (Vec<u32>, Vec<usize>) {
    let (mut outputs, mut ends) = (Vec::new(), Vec::new());
    for token in 0..tokens {
        outputs.extend((0..token % 4).map(|i| ((token * 997 + i * 1501) % WIDTH) as u32));
        ends.push(outputs.len());
    }
    (outputs, ends)
}

fn bits(scores: &RowScores) -> Vec<u64> {
    scores.logprobs.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn scores_without_logits_are_those_of_the_logits_on_any_instructions_and_threads() {
    let noise = Noise { seed: 9, tensor: 4, ..Noise::default() };
    let terms = [Term { scale: 0.1, entries: Entries::Noise(noise), mask: None }];
    let (x, bias) = (numbers(TOKENS * COLS, 2), numbers(WIDTH, 3));
    let x: Vec<f32> = x.into_iter().map(|x| 2.0 * x).collect();
    let (outputs, ends) = wanted(TOKENS);
    let wanted = Wanted { outputs: &outputs, ends: &ends };
    let formings = [
        None,
        Some(Forming::default()),
        Some(Forming { terms: &terms, compute: Compute::Single, ..Forming::default() }),
        Some(Forming { terms: &terms, compute: Compute::Bfloat16, ..Forming::default() }),
    ];
    let plain = Cpu::new(Isa::best(), 1);
    for block in [BlockType::F32, BlockType::Bf16, BlockType::Q8_0] {
        let weights = head(&plain, block);
        for (forming, cap) in formings.into_iter().zip([None, Some(5.0), None, Some(9.0)]) {
            let forms = forming.map_or(form_for(block), |forming| forming.compute.forms());
            let acts = inputs(&plain, &x, forms);
            let mut logits = vec![0.0; TOKENS * WIDTH];
            let (weights, bias) = (&weights, Some(&bias[..]));
            let mut product = Product { weights, bias, accumulate: false, out: &mut logits };
            let scratch = &mut FormingScratch::default();
            match forming {
                Some(forming) => multiply_formed(&plain, &acts, &mut product, forming, scratch),
                None => multiply(&plain, &acts, &mut [product]),
            }
            if let Some(cap) = cap {
                soft_cap(plain.isa(), &mut logits, cap);
            }
            let mut dense = RowScores::default();
            log_softmax_rows(plain.isa(), &logits, WIDTH, wanted, &mut dense);
            for (token, row) in logits.chunks_exact(WIDTH).enumerate() {
                // An exponential is right to 2.5e-7 of itself.
                let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                for at in token.checked_sub(1).map_or(0, |t| ends[t])..ends[token] {
                    let exact = f64::from(row[outputs[at] as usize]) - sum.ln();
                    assert!(
                        (dense.logprobs[at] - exact).abs() < 5e-7,
                        "{block} {exact} {}",
                        dense.logprobs[at]
                    );
                }
                assert_eq!(dense.greatest[token], Greatest::of(row));
            }
            for (isa, threads) in
                Isa::available().into_iter().zip([1, 2, 7, 3]).chain([(Isa::best(), 7)])
            {
                let cpu = Cpu::new(isa, threads);
                let (mut scratch, mut ours) = Default::default();
                let how = (forming, cap);
                for _ in 0..2 {
                    RowScores::clear(&mut ours);
                    let head = (weights, bias);
                    multiply_log_softmax(&cpu, &acts, head, how, wanted, &mut scratch, &mut ours);
                    assert!(bits(&ours) == bits(&dense), "{isa} {block} {forming:?}");
                    assert_eq!(ours.greatest, dense.greatest);
                }
            }
        }
    }
}

#[test]
fn a_logit_that_is_no_number_is_named_and_spoils_its_row_alone() {
    let cpu = Cpu::new(Isa::best(), 2);
    let weights = head(&cpu, BlockType::F32);
    let mut x = numbers(3 * COLS, 2);
    x[COLS + 5] = f32::NAN;
    let acts = inputs(&cpu, &x, Forms::default());
    let wanted = Wanted { outputs: &[7, 8, 9], ends: &[1, 2, 3] };
    let (mut scratch, mut out) = (LogSoftmaxScratch::default(), RowScores::default());
    let head = (&weights, None);
    multiply_log_softmax(&cpu, &acts, head, (None, None), wanted, &mut scratch, &mut out);
    assert_eq!(out.logprobs.iter().map(|x| x.is_nan()).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(out.greatest[1], Err(0));
    assert!(out.greatest[0].is_ok() && out.greatest[2].is_ok());
}

#[test]
#[should_panic(expected = "outputs that there are")]
fn an_output_that_is_not_there_is_refused() {
    let wanted = Wanted { outputs: &[3], ends: &[1] };
    log_softmax_rows(Isa::best(), &[0.0; 3], 3, wanted, &mut RowScores::default());
}
