//! Directions, the products of weights moved along them, and the updates that move them for good.

#![allow(clippy::unwrap_used)] // test code

use offshoot_kernels::{
    Activations, BlockType, Change, Compute, Cpu, Distribution, Entries, Forming, FormingScratch,
    Forms, GroupFactors, Isa, Mask, Moments, Noise, PackedMatrix, Product, Purpose, Rounding, Term,
    add_terms, add_terms_to_rows, multiply, multiply_formed, update_matrix, update_rows,
};

/// Numbers of about one, other ones for another seed.
fn numbers(n: usize, mut state: u32) -> Vec<f32> {
    let number = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(number).collect()
}

fn packed(
    cpu: &Cpu,
    block: BlockType,
    (rows, cols): (usize, usize),
    values: &[f32],
) -> PackedMatrix {
    let mut bytes = Vec::new();
    for row in values.chunks_exact(cols) {
        block.quantize(row, &mut bytes).unwrap();
    }
    let row_bytes = block.row_bytes(cols).unwrap();
    let row = |r: usize| &bytes[r * row_bytes..(r + 1) * row_bytes];
    assert_eq!(bytes.len(), rows * row_bytes);
    PackedMatrix::pack(cpu, block, (rows, cols), row).unwrap()
}

fn unpacked(matrix: &PackedMatrix) -> Vec<f32> {
    let mut all = vec![0.0; matrix.rows() * matrix.cols()];
    for (row, out) in all.chunks_exact_mut(matrix.cols()).enumerate() {
        matrix.dequantize_row(row, out);
    }
    all
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn noise(distribution: Distribution, index: u32) -> Noise {
    Noise { seed: 0x1234_5678_9abc, tensor: 77, step: 3, index, distribution, ..Noise::default() }
}

/// Factors and masks that terms of a matrix may have.
struct Room {
    left: Vec<f32>,
    right: Vec<f32>,
    mask: Vec<u64>,
}

const RANK: usize = 3;
/// What updates are rounded by.
const ROUNDING: Rounding = Rounding { seed: 0x1234_5678_9abc, tensor: 77, step: 3 };

impl Room {
    fn new((rows, cols): (usize, usize)) -> Self {
        let word = |i: usize| {
            let noise = Noise { purpose: Purpose::Mask, ..noise(Distribution::GaussQ8, 0) };
            (0..64).fold(0, |w, b| w | u64::from(noise.at((64 * i + b) as u64) > 0.3) << b)
        };
        Self {
            left: numbers(rows * RANK, 5),
            right: numbers(cols * RANK, 6),
            mask: (0..(rows * cols).div_ceil(64)).map(word).collect(),
        }
    }

    /// Every kind of term.
    fn terms(&self) -> Vec<Term<'_>> {
        let mut terms: Vec<_> = Distribution::ALL
            .into_iter()
            .enumerate()
            .map(|(i, distribution)| Term {
                scale: 0.013 * (i as f32 - 1.3),
                entries: Entries::Noise(noise(distribution, i as u32)),
                mask: None,
            })
            .collect();
        let (left, right) = (&self.left[..], &self.right[..]);
        let entries = Entries::LowRank { left, right, rank: RANK, factor: 0.577_350_26 };
        terms.push(Term { scale: 0.02, entries, mask: None });
        let mask = Some(Mask(&self.mask));
        terms.push(Term { mask, ..terms[0] });
        terms.push(Term { mask, ..terms[3] });
        terms
    }
}

/// Widths that blocks of random bits divide, and widths that split them among rows.
const SHAPES: [(usize, usize); 7] =
    [(45, 96), (33, 128), (16, 48), (19, 20), (7, 33), (50, 161), (1, 300)];

#[test]
fn runs_of_a_direction_are_its_entries_from_any_place_on() {
    for distribution in Distribution::ALL {
        let noise = noise(distribution, 9);
        let expected: Vec<u32> = (0..6000).map(|e| noise.at(e).to_bits()).collect();
        for isa in Isa::available() {
            for (first, n) in [(0, 6000), (1, 1), (3, 130), (127, 2), (2047, 3000), (4099, 0)] {
                let mut out = vec![f32::NAN; n];
                noise.fill(isa, first as u64, &mut out);
                assert_eq!(bits(&out), expected[first..first + n], "{isa} {distribution:?}");
            }
        }
        let (far, mut out) = ((1 << 33) - 5, [0.0; 4]);
        noise.fill(Isa::best(), far, &mut out);
        assert_eq!(bits(&out), [0, 1, 2, 3].map(|i| noise.at(far + i).to_bits()));
    }
}

#[test]
fn an_update_of_tiles_or_rows_is_its_definition_for_every_weight() {
    let rule = Moments {
        rate: 0.03,
        first: 0.9,
        second: 0.99,
        first_correction: 1.7,
        second_correction: 8.0,
        epsilon: 1e-6,
    };
    for shape in SHAPES {
        let (rows, cols) = shape;
        let room = Room::new(shape);
        let terms = room.terms();
        let values = numbers(rows * cols, 1);
        let plain = Cpu::new(Isa::PORTABLE, 1);
        let halved = unpacked(&packed(&plain, BlockType::Bf16, shape, &values));
        let mut changes: Vec<_> = terms
            .iter()
            .map(|term| Change::Linear { decay: 0.0, terms: std::slice::from_ref(term) })
            .collect();
        changes.push(Change::Linear { decay: 0.125, terms: &terms });
        changes.push(Change::Linear { decay: 0.125, terms: &[] });
        for group in [1, 2] {
            changes.push(Change::Moments { decay: 0.01, rule, group, history: &terms });
        }
        for change in changes {
            let at = |i: usize| change.apply(shape, i / cols, i % cols, values[i]).to_bits();
            let expected: Vec<u32> = (0..rows * cols).map(at).collect();
            let by_chance = |i: usize| {
                let new = change.apply(shape, i / cols, i % cols, halved[i]);
                ROUNDING.round(i as u64, new).to_bits()
            };
            let rounded: Vec<u32> = (0..rows * cols).map(by_chance).collect();
            for (isa, threads) in
                Isa::available().into_iter().zip([1, 2, 7, 3]).chain([(Isa::best(), 7)])
            {
                let cpu = Cpu::new(isa, threads);
                let mut matrix = packed(&cpu, BlockType::F32, shape, &values);
                update_matrix(&cpu, &mut matrix, &change, &ROUNDING).unwrap();
                assert!(bits(&unpacked(&matrix)) == expected, "{isa} {shape:?} {change:?}");
                let mut matrix = packed(&cpu, BlockType::Bf16, shape, &values);
                update_matrix(&cpu, &mut matrix, &change, &ROUNDING).unwrap();
                assert!(bits(&unpacked(&matrix)) == rounded, "{isa} {shape:?} {change:?} bf16");
                let mut all = values.clone();
                update_rows(&cpu, shape, &mut all, &change);
                assert!(bits(&all) == expected, "{isa} {shape:?} {change:?} in rows");
            }
        }
    }
}

#[test]
fn vectors_and_gathered_rows_move_as_the_whole_does() {
    let shape = (9, 70);
    let room = Room::new(shape);
    let terms = room.terms();
    let back: Vec<_> = terms.iter().map(|term| Term { scale: -term.scale, ..*term }).collect();
    let cpu = Cpu::new(Isa::best(), 2);
    let values = numbers(shape.0 * shape.1, 2);
    let mut all = values.clone();
    update_rows(&cpu, shape, &mut all, &Change::Linear { decay: 0.0, terms: &back });
    for isa in Isa::available() {
        for row in [0, 3, 8] {
            let range = row * shape.1..(row + 1) * shape.1;
            let mut one = values[range.clone()].to_vec();
            add_terms(isa, &terms, shape, row, &mut one);
            assert_eq!(bits(&one), bits(&all[range]), "{isa} {row}");
        }
        for threads in [1, 2, 7] {
            let mut some = values[3 * shape.1..].to_vec();
            add_terms_to_rows(&Cpu::new(isa, threads), &terms, shape, 3, &mut some);
            assert_eq!(bits(&some), bits(&all[3 * shape.1..]), "{isa}, {threads} threads");
        }
    }
}

#[test]
fn rows_that_all_threads_share_move_as_one_thread_moves_them() {
    let shape = (300, 70);
    let room = Room::new(shape);
    let terms = room.terms();
    let values = numbers(shape.0 * shape.1, 2);
    let mut expected = values.clone();
    add_terms(Isa::PORTABLE, &terms, shape, 0, &mut expected);
    for isa in Isa::available() {
        for threads in [1, 3, 8] {
            let mut all = values.clone();
            add_terms_to_rows(&Cpu::new(isa, threads), &terms, shape, 0, &mut all);
            assert!(bits(&all) == bits(&expected), "{isa}, {threads} threads");
        }
    }
}

fn inputs(cpu: &Cpu, cols: usize, x: &[f32], forms: Forms) -> Activations {
    let mut acts = Activations::new();
    acts.fill(cpu, (x.len() / cols, cols), forms, |row, out| {
        out.copy_from_slice(&x[row * cols..(row + 1) * cols]);
    });
    acts
}

fn formed(
    cpu: &Cpu,
    weights: &PackedMatrix,
    x: &[f32],
    bias: Option<&[f32]>,
    forming: Forming<'_>,
) -> Vec<f32> {
    let acts = inputs(cpu, weights.cols(), x, forming.compute.forms());
    let mut out = vec![0.5; acts.tokens() * weights.rows()];
    let mut product = Product { weights, bias, accumulate: bias.is_some(), out: &mut out };
    multiply_formed(cpu, &acts, &mut product, forming, &mut FormingScratch::default());
    out
}

const BLOCKS: [BlockType; 6] = [
    BlockType::F32,
    BlockType::F16,
    BlockType::Bf16,
    BlockType::Q4_1,
    BlockType::Q8_0,
    BlockType::Q4_0,
];

/// The law of virtual perturbation: the bits are those of a model whose weights were really changed.
#[test]
fn a_product_along_directions_is_that_of_weights_really_moved() {
    for shape in SHAPES {
        let (rows, cols) = shape;
        let room = Room::new(shape);
        let terms = room.terms();
        let back: Vec<_> = terms.iter().map(|term| Term { scale: -term.scale, ..*term }).collect();
        let (values, bias) = (numbers(rows * cols, 3), numbers(rows, 4));
        let x = numbers(19 * cols, 8);
        let plain = Cpu::new(Isa::PORTABLE, 1);
        for block in BLOCKS.into_iter().filter(|block| cols.is_multiple_of(block.block_len())) {
            let weights = packed(&plain, block, shape, &values);
            let stored = unpacked(&weights);
            let mut moved = packed(&plain, BlockType::F32, shape, &stored);
            let change = Change::Linear { decay: 0.0, terms: &back };
            update_matrix(&plain, &mut moved, &change, &ROUNDING).unwrap();
            let halved = packed(&plain, BlockType::Bf16, shape, &unpacked(&moved));
            for (compute, really) in [(Compute::Single, &moved), (Compute::Bfloat16, &halved)] {
                let acts = inputs(&plain, cols, &x, compute.forms());
                let mut expected = vec![0.5; 19 * rows];
                let out = &mut expected[..];
                let all = Product { weights: really, bias: Some(&bias), accumulate: true, out };
                multiply(&plain, &acts, &mut [all]);
                for (isa, threads) in
                    Isa::available().into_iter().zip([1, 2, 7, 3]).chain([(Isa::best(), 2)])
                {
                    let cpu = Cpu::new(isa, threads);
                    let forming = Forming { terms: &terms, compute, ..Forming::default() };
                    let ours = formed(&cpu, &weights, &x, Some(&bias), forming);
                    assert!(bits(&ours) == bits(&expected), "{isa} {block} {shape:?} {compute:?}");
                    let alone = formed(&cpu, &weights, &x[..cols], Some(&bias), forming);
                    assert!(bits(&alone) == bits(&expected[..rows]), "{isa} {block} {shape:?}");
                }
            }
            assert!(bits(&unpacked(&weights)) == bits(&stored), "nothing stored changes");
        }
    }
}

#[test]
fn a_product_with_factors_is_that_of_weights_really_multiplied() {
    let plain = Cpu::new(Isa::PORTABLE, 1);
    for (rows, cols) in SHAPES {
        let (values, x) = (numbers(rows * cols, 3), numbers(5 * cols, 8));
        for (block, group) in [(BlockType::Q4_0, 32), (BlockType::Q8_0, 64), (BlockType::F32, 32)] {
            if !cols.is_multiple_of(block.block_len()) {
                continue;
            }
            let weights = packed(&plain, block, (rows, cols), &values);
            let columns = cols.div_ceil(group);
            let factors: Vec<f32> =
                numbers(rows * columns, 5).iter().map(|x| 1.0 + 0.25 * x).collect();
            let really: Vec<f32> = unpacked(&weights)
                .iter()
                .enumerate()
                .map(|(i, w)| w * factors[i / cols * columns + i % cols / group])
                .collect();
            let really = packed(&plain, BlockType::F32, (rows, cols), &really);
            let expected = formed(&plain, &really, &x, None, Forming::default());
            let factors = Some(GroupFactors { values: &factors, group });
            let forming = Forming { factors, ..Forming::default() };
            for isa in Isa::available() {
                let ours = formed(&Cpu::new(isa, 2), &weights, &x, None, forming);
                assert!(bits(&ours) == bits(&expected), "{isa} {block} {rows} {cols}");
            }
        }
    }
}

#[test]
fn a_product_of_no_terms_takes_the_inputs_as_floats() {
    let (rows, cols) = (40, 256);
    let cpu = Cpu::new(Isa::best(), 2);
    let (values, x) = (numbers(rows * cols, 3), numbers(5 * cols, 8));
    for block in [BlockType::Q5_1, BlockType::Q8_0, BlockType::F32, BlockType::Bf16] {
        let weights = packed(&cpu, block, (rows, cols), &values);
        let stored = unpacked(&weights);
        let ours = formed(&cpu, &weights, &x, None, Forming::default());
        for (i, y) in ours.iter().enumerate() {
            let w = &stored[i % rows * cols..][..cols];
            let x = &x[i / rows * cols..][..cols];
            let exact: f64 = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            // 256 products of at most 1, each sum rounded to 2^-24 of a sum of a few.
            assert!((f64::from(*y) - exact).abs() < 2e-5, "{block}: {y} {exact}");
        }
    }
}

#[test]
fn weights_that_are_no_numbers_reach_every_output_also_in_bfloat16() {
    let cpu = Cpu::new(Isa::best(), 1);
    let mut values = numbers(16 * 64, 3);
    for row in 0..16 {
        values[row * 64 + row] = f32::from_bits(0x7fff_ffff);
    }
    let weights = packed(&cpu, BlockType::F32, (16, 64), &values);
    for compute in [Compute::Single, Compute::Bfloat16] {
        let out = formed(
            &cpu,
            &weights,
            &numbers(64, 8),
            None,
            Forming { terms: &[], compute, ..Forming::default() },
        );
        assert!(out.iter().all(|y| y.is_nan()), "{compute:?} {out:?}");
    }
}

#[test]
fn weights_in_memory_that_others_share_or_in_another_format_do_not_change() {
    let cpu = Cpu::new(Isa::best(), 1);
    let values = numbers(32 * 64, 3);
    let change = Change::Linear { decay: 0.5, terms: &[] };
    let mut halves = packed(&cpu, BlockType::F16, (32, 64), &values);
    assert!(update_matrix(&cpu, &mut halves, &change, &ROUNDING).is_err());
    let mut shared = packed(&cpu, BlockType::F32, (32, 64), &values);
    let other = shared.clone();
    assert!(update_matrix(&cpu, &mut shared, &change, &ROUNDING).is_err());
    assert_eq!(bits(&unpacked(&other)), bits(&values));
    drop(other);
    update_matrix(&cpu, &mut shared, &change, &ROUNDING).unwrap();
    shared.fill_rows(&cpu, |row, out| out.fill(row as f32)).unwrap();
    assert!(unpacked(&shared).iter().enumerate().all(|(i, w)| *w == (i / 64) as f32));
}

#[test]
fn what_is_no_finite_number_stays_so_where_weights_are_rounded_by_chance() {
    let change = Change::Linear { decay: 0.0, terms: &[] };
    for isa in Isa::available() {
        let cpu = Cpu::new(isa, 1);
        let mut matrix = packed(&cpu, BlockType::Bf16, (33, 66), &[0.0; 33 * 66]);
        let rows = [f32::NEG_INFINITY, f32::INFINITY, f32::NAN];
        matrix.fill_rows(&cpu, |row, out| out.fill(rows[row % 3])).unwrap();
        update_matrix(&cpu, &mut matrix, &change, &ROUNDING).unwrap();
        for (i, w) in unpacked(&matrix).iter().enumerate() {
            let expected = rows[i / 66 % 3];
            assert!(*w == expected || w.is_nan() && expected.is_nan(), "{isa} {i}: {w}");
        }
    }
}
