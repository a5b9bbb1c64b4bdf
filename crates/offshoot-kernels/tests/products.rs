//! Packing and products, held against the file's own weights and against the portable lanes.

#![allow(clippy::unwrap_used)] // test code

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[path = "support/avx_vnni.rs"]
mod avx_vnni;

use half::f16;
use offshoot_kernels::{
    Activation, Activations, BlockType, Buffer, Cpu, Forming, FormingScratch, Forms, GatedPair,
    Greatest, GreatestScratch, Isa, PackedMatrix, Part, Product, SharedBytes, form_for, multiply,
    multiply_formed, multiply_gated, multiply_gated_parts, multiply_greatest, multiply_parts,
};
use proptest::prelude::*;

/// SplitMix64: small, seedable, good enough for test data.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in -1 to 1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
}

/// Where the half-precision scales of a block stand.
fn half_offsets(block: BlockType) -> &'static [usize] {
    match block {
        BlockType::F32 | BlockType::F16 | BlockType::Bf16 => &[],
        BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
        BlockType::Q2K => &[80, 82],
        BlockType::Q3K => &[108],
        BlockType::Q6K => &[208],
        _ => &[0],
    }
}

/// Random rows of `block`, every quant and sub-scale possible, weights of about one.
fn random_rows(block: BlockType, rows: usize, cols: usize, random: &mut Random) -> Vec<u8> {
    let row_bytes = block.row_bytes(cols).unwrap();
    if half_offsets(block).is_empty() {
        return (0..rows * cols)
            .flat_map(|_| {
                let x = random.unit();
                match block {
                    BlockType::F32 => x.to_le_bytes().to_vec(),
                    BlockType::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
                    _ => half::bf16::from_f32(x).to_le_bytes().to_vec(),
                }
            })
            .collect();
    }
    let mut bytes: Vec<u8> = (0..rows * row_bytes).map(|_| random.next() as u8).collect();
    for b in bytes.chunks_exact_mut(block.block_bytes()) {
        for &at in half_offsets(block) {
            let d = f16::from_f32(random.unit() / 64.0);
            b[at..at + 2].copy_from_slice(&d.to_le_bytes());
        }
    }
    bytes
}

fn pack(cpu: &Cpu, block: BlockType, rows: usize, cols: usize, bytes: &[u8]) -> PackedMatrix {
    let row_bytes = block.row_bytes(cols).unwrap();
    let mut out = Buffer::zeroed(PackedMatrix::packed_bytes(block, rows, cols).unwrap());
    let row = |r: usize| &bytes[r * row_bytes..(r + 1) * row_bytes];
    PackedMatrix::pack_into(cpu, block, (rows, cols), row, &mut out).unwrap();
    PackedMatrix::from_packed(block, rows, cols, SharedBytes::from(out)).unwrap()
}

/// What weights of `block` need, and the second plane of 8-bit inputs, which only some use.
fn with_rest(block: BlockType) -> Forms {
    Forms { rest: true, ..form_for(block) }
}

fn product(cpu: &Cpu, w: &PackedMatrix, x: &[f32], tokens: usize) -> Vec<f32> {
    product_in(form_for(w.block()), cpu, w, x, tokens)
}

fn product_in(forms: Forms, cpu: &Cpu, w: &PackedMatrix, x: &[f32], tokens: usize) -> Vec<f32> {
    let mut acts = Activations::new();
    let cols = w.cols();
    acts.fill(cpu, (tokens, cols), forms, |row, out| {
        out.copy_from_slice(&x[row * cols..(row + 1) * cols]);
    });
    let mut out = vec![f32::NAN; tokens * w.rows()];
    let one = Product { weights: w, bias: None, accumulate: false, out: &mut out };
    multiply(cpu, &acts, &mut [one]);
    out
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn width_for(block: BlockType, blocks: usize) -> usize {
    if block.block_len() == 1 { 32 * blocks + 5 } else { block.block_len() * blocks }
}

#[test]
fn tiles_hold_the_files_own_weights() {
    let cpu = Cpu::new(Isa::best(), 2);
    for block in BlockType::ALL {
        let (rows, cols) = (37, width_for(block, 2));
        let bytes = random_rows(block, rows, cols, &mut Random(7));
        let packed = pack(&cpu, block, rows, cols, &bytes);
        let (mut tile, mut file) = (vec![0.0; cols], vec![0.0; cols]);
        for (row, bytes) in bytes.chunks_exact(block.row_bytes(cols).unwrap()).enumerate() {
            packed.dequantize_row(row, &mut tile);
            block.dequantize(bytes, &mut file).unwrap();
            assert_eq!(bits(&tile), bits(&file), "{block}");
        }
    }
}

#[test]
fn tiles_are_hardly_larger_than_the_file() {
    for block in BlockType::ALL {
        let (rows, cols) = (1024, 4096);
        let packed = PackedMatrix::packed_bytes(block, rows, cols).unwrap() as f64;
        let file = (rows * block.row_bytes(cols).unwrap()) as f64;
        let limit = match block {
            BlockType::Q2K => 2.0,
            BlockType::Q3K => 1.4,
            _ => 1.05,
        };
        assert!(packed / file <= limit, "{block}: {}", packed / file);
    }
}

/// Random weights `[rows, cols]` and inputs `[tokens, cols]`.
fn weights_and_inputs(
    cpu: &Cpu,
    block: BlockType,
    [rows, cols, tokens]: [usize; 3],
) -> (PackedMatrix, Vec<f32>) {
    let mut random = Random(11);
    let bytes = random_rows(block, rows, cols, &mut random);
    let x = (0..tokens * cols).map(|_| random.unit()).collect();
    (pack(cpu, block, rows, cols, &bytes), x)
}

#[test]
fn products_are_near_the_exact_ones() {
    let cpu = Cpu::new(Isa::best(), 2);
    for block in BlockType::ALL {
        let (rows, cols, tokens) = (24, width_for(block, 3), 3);
        let (w, x) = weights_and_inputs(&cpu, block, [rows, cols, tokens]);
        let y = product(&cpu, &w, &x, tokens);
        let mut row_w = vec![0.0; cols];
        for row in 0..rows {
            w.dequantize_row(row, &mut row_w);
            for token in 0..tokens {
                let x = &x[token * cols..(token + 1) * cols];
                let exact: f64 =
                    row_w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                let size: f64 = row_w.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
                // Rounding to 8 bits errs by at most 1/254 of the greatest input, to bfloat16 by
                // 1/256 of each; errors of many inputs add as a random walk.
                let error = (f64::from(y[token * rows + row]) - exact).abs();
                assert!(error <= 0.015 * size + 1e-5, "{block}: {error} of {size}");
            }
        }
    }
}

#[test]
fn a_second_plane_of_inputs_makes_8_bit_weights_exact_and_changes_no_others() {
    let cpu = Cpu::new(Isa::best(), 2);
    for block in BlockType::ALL {
        let (rows, cols, tokens) = (24, width_for(block, 3), 3);
        let (w, x) = weights_and_inputs(&cpu, block, [rows, cols, tokens]);
        let (one, two) =
            (product(&cpu, &w, &x, tokens), product_in(with_rest(block), &cpu, &w, &x, tokens));
        if block != BlockType::Q8_0 {
            assert_eq!(bits(&one), bits(&two), "{block}");
            continue;
        }
        let mut row_w = vec![0.0; cols];
        let error = |y: &[f32], row: usize, token: usize, w: &[f32]| {
            let x = &x[token * cols..(token + 1) * cols];
            let exact: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            (f64::from(y[token * rows + row]) - exact).abs()
        };
        let mut sums = [0.0; 2];
        for row in 0..rows {
            w.dequantize_row(row, &mut row_w);
            for token in 0..tokens {
                sums[0] += error(&one, row, token, &row_w);
                sums[1] += error(&two, row, token, &row_w);
            }
        }
        // Steps are 254 times smaller; sums in single precision are not.
        assert!(sums[1] < sums[0] / 100.0, "{sums:?}");
    }
}

#[test]
fn float_products_are_exact_to_rounding() {
    let cpu = Cpu::new(Isa::best(), 1);
    for block in [BlockType::F32, BlockType::F16] {
        let (rows, cols) = (19, 203);
        let mut random = Random(5);
        let bytes = random_rows(block, rows, cols, &mut random);
        let x: Vec<f32> = (0..cols).map(|_| random.unit()).collect();
        let w = pack(&cpu, block, rows, cols, &bytes);
        let y = product(&cpu, &w, &x, 1);
        let mut row_w = vec![0.0; cols];
        for (row, y) in y.iter().enumerate() {
            w.dequantize_row(row, &mut row_w);
            let exact: f64 = row_w.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            assert!((f64::from(*y) - exact).abs() < 1e-5);
        }
    }
}

#[test]
fn bias_and_residual_are_added_once() {
    let cpu = Cpu::new(Isa::best(), 2);
    let (rows, cols, tokens) = (21, 64, 2);
    let mut random = Random(3);
    let bytes = random_rows(BlockType::Q8_0, rows, cols, &mut random);
    let x: Vec<f32> = (0..tokens * cols).map(|_| random.unit()).collect();
    let bias: Vec<f32> = (0..rows).map(|_| random.unit()).collect();
    let w = pack(&cpu, BlockType::Q8_0, rows, cols, &bytes);
    let plain = product(&cpu, &w, &x, tokens);
    let mut acts = Activations::new();
    acts.fill(&cpu, (tokens, cols), form_for(w.block()), |row, out| {
        out.copy_from_slice(&x[row * cols..(row + 1) * cols]);
    });
    let mut out: Vec<f32> = (0..tokens * rows).map(|_| random.unit()).collect();
    let before = out.clone();
    let one = Product { weights: &w, bias: Some(&bias), accumulate: true, out: &mut out };
    multiply(&cpu, &acts, &mut [one]);
    for (i, y) in out.iter().enumerate() {
        assert_eq!(*y, before[i] + (plain[i] + bias[i % rows]));
    }
}

/// As many cases, or as few as PROPTEST_CASES asks for where an emulator is slow.
fn cases(n: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig { cases: config.cases.min(n), ..config }
}

/// The instruction sets that the tests can run, with that of laptops that have AVX-VNNI and no AVX-512.
fn sets() -> Vec<Isa> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    let by_hand = avx_vnni::isa();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    let by_hand: Option<Isa> = None;
    let mut sets = Isa::available();
    sets.extend(by_hand.filter(|isa| Isa::named(isa.name()).is_none()));
    sets
}

proptest! {
    #![proptest_config(cases(24))]

    /// The promise that drafting and batching rest on: the same bits on every instruction set, for
    /// every batch that a row may be part of, and for any number of threads.
    #[test]
    fn bits_depend_on_nothing_but_the_row(
        seed in any::<u64>(),
        block in prop::sample::select(BlockType::ALL.to_vec()),
        rows in 1usize..70,
        blocks in 1usize..4,
        tokens in 1usize..20,
        threads in 1usize..4,
    ) {
        let cols = width_for(block, blocks);
        let mut random = Random(seed);
        let bytes = random_rows(block, rows, cols, &mut random);
        let scale = 10f32.powi((random.next() % 7) as i32 - 3);
        let x: Vec<f32> = (0..tokens * cols).map(|_| random.unit() * scale).collect();
        let oracle = Cpu::new(Isa::PORTABLE, 1);
        let w = pack(&oracle, block, rows, cols, &bytes);
        for forms in [form_for(block), with_rest(block)] {
            let expected = bits(&product_in(forms, &oracle, &w, &x, tokens));
            for isa in sets() {
                let cpu = Cpu::new(isa, threads);
                let all = bits(&product_in(forms, &cpu, &w, &x, tokens));
                prop_assert_eq!(&all, &expected, "{} {} {:?}", block, isa, forms);
                let token = (seed % tokens as u64) as usize;
                let x = &x[token * cols..(token + 1) * cols];
                let alone = product_in(forms, &cpu, &w, x, 1);
                prop_assert_eq!(&bits(&alone)[..], &expected[token * rows..(token + 1) * rows]);
            }
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn instructions_of_avx_vnni_are_met() {
    let before = avx_vnni::done_by_hand();
    let cpu = Cpu::new(avx_vnni::isa().expect("a processor with AVX2"), 1);
    let (w, x) = weights_and_inputs(&cpu, BlockType::Q4_1, [70, 64, 3]);
    product(&cpu, &w, &x, 3);
    if let (Some(before), Some(after)) = (before, avx_vnni::done_by_hand()) {
        assert!(after >= before + 70 * 64 / 32 * 3, "{before} and {after} were done by hand");
    }
}

/// Every format, every number of rows that a tree or a prompt may have, every row.
#[test]
fn each_row_has_the_bits_that_it_has_alone_whatever_the_number_of_rows() {
    const ROWS: usize = 40;
    // Where an emulator is slow, those at which the work is cut differently.
    let counts: Vec<usize> = match cfg!(target_arch = "x86_64") {
        true => (1..=33).chain([64, 256]).collect(),
        false => vec![1, 2, 5, 8, 9, 33],
    };
    for block in BlockType::ALL {
        let cols = width_for(block, 1);
        let mut random = Random(7);
        let bytes = random_rows(block, ROWS, cols, &mut random);
        let most = counts.iter().copied().max().unwrap();
        let x: Vec<f32> = (0..most * cols).map(|_| random.unit()).collect();
        for forms in [form_for(block), with_rest(block)] {
            for isa in Isa::available() {
                let cpu = Cpu::new(isa, 2);
                let w = pack(&cpu, block, ROWS, cols, &bytes);
                let alone: Vec<Vec<u32>> = x
                    .chunks_exact(cols)
                    .map(|x| bits(&product_in(forms, &cpu, &w, x, 1)))
                    .collect();
                for &tokens in &counts {
                    let all = bits(&product_in(forms, &cpu, &w, &x[..tokens * cols], tokens));
                    for (token, (found, expected)) in all.chunks(ROWS).zip(&alone).enumerate() {
                        assert!(found == expected, "{block} {isa} {forms:?}: {token} of {tokens}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_greatest_quants_and_inputs_do_not_overflow() {
    let (rows, tokens) = (16, 5);
    for block in BlockType::ALL.into_iter().filter(|block| block.block_len() > 1) {
        let cols = width_for(block, 2);
        let random = random_rows(block, rows, cols, &mut Random(1));
        for fill in [0x00, 0x7F, 0x80, 0xF0, 0x0F, 0xFF] {
            let mut bytes = vec![fill; random.len()];
            for (b, scales) in bytes
                .chunks_exact_mut(block.block_bytes())
                .zip(random.chunks_exact(block.block_bytes()))
            {
                for &at in half_offsets(block) {
                    b[at..at + 2].copy_from_slice(&scales[at..at + 2]);
                }
            }
            let oracle = Cpu::new(Isa::PORTABLE, 1);
            let w = pack(&oracle, block, rows, cols, &bytes);
            // Inputs are quantised to 127, to -127, or to both by turns, or to 126 with half a step left.
            for signs in [[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]] {
                // All but the first of 32 leave over half a step, or nearly, as far as there is one.
                let size = |i: usize| if i.is_multiple_of(32) { 1.0 } else { 126.4999 / 127.0 };
                let x: Vec<f32> = (0..tokens * cols).map(|i| size(i) * signs[i % 2]).collect();
                let forms = with_rest(block);
                let expected = bits(&product_in(forms, &oracle, &w, &x, tokens));
                for isa in sets() {
                    let found = bits(&product_in(forms, &Cpu::new(isa, 1), &w, &x, tokens));
                    assert_eq!(found, expected, "{block} of {fill:#x} by {isa}");
                }
            }
        }
    }
}

#[test]
fn shapes_that_cannot_be_packed_are_errors() {
    assert!(PackedMatrix::packed_bytes(BlockType::Q4_0, 4, 33).is_err());
    assert!(PackedMatrix::packed_bytes(BlockType::Q4K, 4, 32).is_err());
    assert!(PackedMatrix::packed_bytes(BlockType::F32, 0, 4).is_err());
    assert!(PackedMatrix::packed_bytes(BlockType::F32, usize::MAX, 1 << 40).is_err());
    let bytes = SharedBytes::from(Buffer::zeroed(100));
    assert!(PackedMatrix::from_packed(BlockType::Q8_0, 16, 32, bytes).is_err());
}

/// Every form that any weights of `cols` inputs need, with the second plane or not.
fn all_forms(cols: usize, rest: bool) -> Forms {
    Forms { q8: cols.is_multiple_of(32), bf16: true, rest }
}

fn inputs(cpu: &Cpu, (tokens, cols): (usize, usize), x: &[f32], rest: bool) -> Activations {
    let mut acts = Activations::new();
    let forms = all_forms(cols, rest);
    acts.fill(cpu, (tokens, cols), forms, |row, out| {
        out.copy_from_slice(&x[row * cols..(row + 1) * cols]);
    });
    acts
}

proptest! {
    #![proptest_config(cases(40))]

    /// A gated pair gives the bits of its steps one by one, also of two formats, and the quantised
    /// form that the next product reads.
    #[test]
    fn a_gated_pair_equals_its_steps(
        seed in any::<u64>(),
        blocks in (0usize..BlockType::ALL.len(), 0usize..BlockType::ALL.len()),
        tokens in 1usize..20,
        outputs in prop::sample::select(vec![7usize, 32, 96, 130, 320]),
        activation in prop::sample::select(vec![Activation::Silu, Activation::GeluTanh]),
        threads in 1usize..4,
    ) {
        let mut random = Random(seed);
        let (cols, cpu) = (256, Cpu::new(Isa::best(), threads));
        let blocks = [BlockType::ALL[blocks.0], BlockType::ALL[blocks.1]];
        let [gate, up] = blocks.map(|block| {
            pack(&cpu, block, outputs, cols, &random_rows(block, outputs, cols, &mut random))
        });
        let bias: Vec<f32> = (0..outputs).map(|_| random.unit()).collect();
        let x: Vec<f32> = (0..tokens * cols).map(|_| random.unit()).collect();
        let rest = seed % 2 == 1;
        let acts = inputs(&cpu, (tokens, cols), &x, rest);
        let mut steps = [vec![0.0; tokens * outputs], vec![0.0; tokens * outputs]];
        let [a, b] = &mut steps;
        multiply(&cpu, &acts, &mut [
            Product { weights: &gate, bias: Some(&bias), accumulate: false, out: a },
            Product { weights: &up, bias: None, accumulate: false, out: b },
        ]);
        let mut expected = vec![0.0; tokens * outputs];
        activation.gate(cpu.isa(), &steps[0], &steps[1], &mut expected);
        let forms = all_forms(outputs, rest);
        let pair = GatedPair { gate: (&gate, Some(&bias)), up: (&up, None), activation };
        let mut gated = Activations::new();
        multiply_gated(&cpu, &acts, pair, forms, &mut gated);
        prop_assert_eq!(bits(gated.x()), bits(&expected));
        // The forms are equal if products with them are.
        let block = if forms.q8 { BlockType::Q8_0 } else { BlockType::Bf16 };
        let w = pack(&cpu, block, 40, outputs, &random_rows(block, 40, outputs, &mut random));
        let mut out = vec![0.0; tokens * 40];
        let one = Product { weights: &w, bias: None, accumulate: false, out: &mut out };
        multiply(&cpu, &gated, &mut [one]);
        prop_assert_eq!(bits(&out), bits(&product_in(forms, &cpu, &w, &expected, tokens)));
    }

    /// The greatest product is found where it is, the lowest index of equals, on every instruction
    /// set; a product that is no number is reported.
    #[test]
    fn the_greatest_product_is_that_of_all_products(
        seed in any::<u64>(),
        block in 0usize..BlockType::ALL.len(),
        tokens in 1usize..20,
        half in 1usize..170,
        threads in 1usize..4,
        nan in 0usize..40,
    ) {
        let (block, cols, mut random) = (BlockType::ALL[block], 256, Random(seed));
        // Every row stands twice, so that there are always equals.
        let rows = random_rows(block, half, cols, &mut random);
        let bytes = [rows.as_slice(), rows.as_slice()].concat();
        let x: Vec<f32> = (0..tokens * cols).map(|_| random.unit()).collect();
        for isa in sets() {
            let cpu = Cpu::new(isa, threads);
            let w = pack(&cpu, block, 2 * half, cols, &bytes);
            let acts = inputs(&cpu, (tokens, cols), &x, seed % 2 == 1);
            let mut bias = vec![0.0; 2 * half];
            if let Some(bias) = bias.get_mut(nan) {
                *bias = f32::NAN;
            }
            for bias in [None, Some(bias.as_slice())] {
                let mut all = vec![0.0; tokens * 2 * half];
                let one = Product { weights: &w, bias, accumulate: false, out: &mut all };
                multiply(&cpu, &acts, &mut [one]);
                let expected: Vec<_> = all
                    .chunks_exact(2 * half)
                    .map(Greatest::of)
                    .collect();
                let mut found = Vec::new();
                let scratch = &mut GreatestScratch::default();
                multiply_greatest(&cpu, &acts, (&w, bias), scratch, &mut found);
                prop_assert_eq!(&found, &expected, "{} {}", isa, block);
            }
        }
    }
}

fn whole<'a>(weights: &'a PackedMatrix, out: &'a mut [f32]) -> Product<'a> {
    Product { weights, bias: None, accumulate: false, out }
}

/// All kinds of products of every format on every instruction set, without chance: where an emulator is
/// slow, the random cases are few.
#[test]
fn every_format_has_the_bits_of_portable_lanes_in_every_product() {
    let (rows, tokens) = (64, 9);
    let parts = [(0, 1), (1, 4), (4, 9)].map(|(start, end)| Part { matrix: 0, start, end });
    for block in BlockType::ALL {
        let (cols, mut random) = (width_for(block, 2), Random(13));
        let bytes = random_rows(block, rows, cols, &mut random);
        let x: Vec<f32> = (0..tokens * cols).map(|_| random.unit()).collect();
        for rest in [false, true] {
            let run = |isa: Isa| {
                let cpu = Cpu::new(isa, 2);
                let w = pack(&cpu, block, rows, cols, &bytes);
                let acts = inputs(&cpu, (tokens, cols), &x, rest);
                let [mut plain, mut split, mut formed] = [(); 3].map(|()| vec![0.0; tokens * rows]);
                multiply(&cpu, &acts, &mut [whole(&w, &mut plain)]);
                multiply_parts(&cpu, &acts, &parts, |_| &w, &mut split);
                assert!(bits(&split) == bits(&plain), "{block} {isa}");
                let forming = Forming::default();
                let scratch = &mut FormingScratch::default();
                multiply_formed(&cpu, &acts, &mut whole(&w, &mut formed), forming, scratch);
                let activation = Activation::Silu;
                let pair = || GatedPair { gate: (&w, None), up: (&w, None), activation };
                let (mut gated, mut gated_parts) = (Activations::new(), Activations::new());
                let forms = all_forms(rows, rest);
                multiply_gated(&cpu, &acts, pair(), forms, &mut gated);
                multiply_gated_parts(&cpu, &acts, &parts, |_| pair(), forms, &mut gated_parts);
                assert!(bits(gated_parts.x()) == bits(gated.x()), "{block} {isa}");
                let (mut greatest, scratch) = (Vec::new(), &mut GreatestScratch::default());
                multiply_greatest(&cpu, &acts, (&w, None), scratch, &mut greatest);
                (bits(&plain), bits(&formed), bits(gated.x()), greatest)
            };
            let expected = run(Isa::PORTABLE);
            for isa in sets() {
                assert!(run(isa) == expected, "{block} {isa}, second plane: {rest}");
            }
        }
    }
}

#[test]
fn an_input_that_is_no_number_reaches_every_output() {
    for isa in sets() {
        let cpu = Cpu::new(isa, 1);
        for block in BlockType::ALL {
            let (cols, mut random) = (256, Random(5));
            let w = pack(&cpu, block, 16, cols, &random_rows(block, 16, cols, &mut random));
            for at in 0..64 {
                let mut x: Vec<f32> = (0..cols).map(|_| random.unit()).collect();
                x[at] = f32::NAN;
                for forms in [form_for(block), with_rest(block)] {
                    let out = product_in(forms, &cpu, &w, &x, 1);
                    assert!(out.iter().all(|y| y.is_nan()), "{isa} {block} input {at}");
                }
            }
            assert!(product(&cpu, &w, &vec![f32::NAN; cols], 1).iter().all(|y| y.is_nan()));
        }
    }
}
