//! Entries of a direction in bulk: sixteen blocks of random bits at once, lane by lane.
//!
//! Two orders are made. A *tile's* order: lane `l` is row `row + l`, one column after another, as
//! packed weights stand; a block of bits then serves the next columns of its row, and nothing is
//! moved between lanes. And *row-major* order, for vectors, rows of embeddings and matrices whose
//! width splits blocks of bits among rows.
//!
//! Cost, with AVX-512: ten rounds of some 20 instructions for 256 entries of the Gaussian in 256
//! steps, and a dozen instructions for 16 of them to look their steps up in registers.

use super::normal::{ANGLE, COS, LN_2, LOG, ROOT_HALF, SIN};
use super::{Distribution, Noise, step, table};
use crate::Philox;
use crate::lanes::Lanes;
use crate::philox::{M, ROUNDS, WEYL};
use crate::tile::TILE_ROWS;

/// Columns of a block of weights.
pub(crate) const BLOCK_COLS: usize = 32;

/// Numbers of a block of weights, `[column][row]`.
pub(crate) type Block = [[f32; TILE_ROWS]; BLOCK_COLS];

/// Where a block of weights stands in its matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockPlace {
    /// The first of its 16 rows.
    pub(crate) row: usize,
    /// The first of its columns, a multiple of 32.
    pub(crate) col: usize,
    /// How many columns it has.
    pub(crate) count: usize,
    /// Rows and columns of the matrix.
    pub(crate) shape: (usize, usize),
}

/// The four words of sixteen blocks.
#[inline(always)]
pub(super) unsafe fn philox<L: Lanes>(noise: &Noise, block: L::I) -> [L::I; 4] {
    let mut key = Philox::key(noise.seed);
    let [_, tensor, step, purpose] = noise.counter(0);
    // SAFETY: the caller runs where the instructions of `L` exist.
    unsafe {
        let splat = |x: u32| L::splat_i(x as i32);
        let mut c = [block, splat(tensor), splat(step), splat(purpose)];
        for _ in 0..ROUNDS {
            let (high0, low0) = L::wide_mul(c[0], M[0]);
            let (high1, low1) = L::wide_mul(c[2], M[1]);
            let first = L::xor_i(L::xor_i(high1, c[1]), splat(key[0]));
            let third = L::xor_i(L::xor_i(high0, c[3]), splat(key[1]));
            c = [first, low1, third, low0];
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        c
    }
}

/// `first + lane * stride` for each lane, wrapping.
#[inline(always)]
pub(super) unsafe fn ramp<L: Lanes>(first: u64, stride: usize) -> L::I {
    let at: [i32; 16] =
        std::array::from_fn(|lane| first.wrapping_add(lane as u64 * stride as u64) as i32);
    // SAFETY: the array holds 16 integers; the caller runs where the instructions of `L` exist.
    unsafe { L::load_i(at.as_ptr()) }
}

/// Writes the entries of a block of weights.
#[inline(always)]
pub(crate) unsafe fn fill_block<L: Lanes>(noise: &Noise, place: BlockPlace, z: &mut Block) {
    let cols = place.shape.1;
    let first = place.row as u64 * cols as u64 + place.col as u64;
    // SAFETY: the caller runs where the instructions of `L` exist; a row of `z` holds 16 floats.
    unsafe {
        match noise.distribution {
            Distribution::Rademacher if cols.is_multiple_of(32) => {
                let word = word_of::<L>(noise, ramp::<L>(first / 32, cols / 32));
                for (i, z) in z.iter_mut().enumerate() {
                    L::store(z.as_mut_ptr(), sign_of::<L>(L::shr_i(word, i as u32)));
                }
            }
            Distribution::GaussQ8 if cols.is_multiple_of(16) => {
                for (half, z) in z.chunks_exact_mut(16).enumerate().take(place.count.div_ceil(16)) {
                    let words = philox::<L>(noise, ramp::<L>(first / 16 + half as u64, cols / 16));
                    for (i, z) in z.iter_mut().enumerate() {
                        let byte = L::shr_i(words[i / 4], 8 * (i % 4) as u32);
                        let byte = L::and_i(byte, L::splat_i(255));
                        L::store(z.as_mut_ptr(), L::step_of(&table::STEPS, byte));
                    }
                }
            }
            Distribution::GaussBoxMuller if cols.is_multiple_of(4) => {
                for (part, z) in z.chunks_exact_mut(4).enumerate().take(place.count.div_ceil(4)) {
                    let words = philox::<L>(noise, ramp::<L>(first / 4 + part as u64, cols / 4));
                    for (z, entries) in z.iter_mut().zip(normals::<L>(words)) {
                        L::store(z.as_mut_ptr(), entries);
                    }
                }
            }
            _ => fill_ragged::<L>(noise, place, z),
        }
    }
}

/// The same where rows do not begin with a block of bits: row by row, then turned.
#[inline(always)]
unsafe fn fill_ragged<L: Lanes>(noise: &Noise, place: BlockPlace, z: &mut Block) {
    let (rows, cols) = place.shape;
    let mut run = [0f32; BLOCK_COLS];
    let run = &mut run[..place.count];
    for lane in 0..TILE_ROWS.min(rows - place.row) {
        let first = (place.row + lane) as u64 * cols as u64 + place.col as u64;
        // SAFETY: the caller runs where the instructions of `L` exist.
        unsafe { fill_lanes::<L>(noise, first, run) };
        for (z, x) in z.iter_mut().zip(&*run) {
            z[lane] = *x;
        }
    }
}

/// Word `at` of all words that follow one another, for each lane.
#[inline(always)]
unsafe fn word_of<L: Lanes>(noise: &Noise, at: L::I) -> L::I {
    // SAFETY: the caller runs where the instructions of `L` exist.
    unsafe {
        let words = philox::<L>(noise, L::shr_i(at, 2));
        // All bits set where the bit of `at` is.
        let mask = |bit: i32| {
            let set = L::and_i(at, L::splat_i(bit));
            let low = L::shr_i(set, bit as u32 - 1);
            L::add_i(L::xor_i(low, L::splat_i(-1)), L::splat_i(1))
        };
        let (odd, upper) = (mask(1), mask(2));
        let low = choose::<L>(odd, words[1], words[0]);
        choose::<L>(upper, choose::<L>(odd, words[3], words[2]), low)
    }
}

/// The bits of `a` where `mask` is set, else those of `b`.
#[inline(always)]
unsafe fn choose<L: Lanes>(mask: L::I, a: L::I, b: L::I) -> L::I {
    // SAFETY: the caller runs where the instructions of `L` exist.
    unsafe { L::xor_i(b, L::and_i(mask, L::xor_i(a, b))) }
}

/// 1 where the lowest bit is 0, else -1.
#[inline(always)]
unsafe fn sign_of<L: Lanes>(bits: L::I) -> L::F {
    // SAFETY: the caller runs where the instructions of `L` exist.
    unsafe { L::from_bits(L::xor_i(L::shl_i::<31>(bits), L::splat_i(0x3f80_0000))) }
}

/// The four entries of each block by Box and Muller: [`super::normal::pair`], operation by operation.
#[inline(always)]
unsafe fn normals<L: Lanes>(words: [L::I; 4]) -> [L::F; 4] {
    // SAFETY: the caller runs where the instructions of `L` exist.
    unsafe {
        let ([a, b], [c, d]) = (pair::<L>(words[0], words[1]), pair::<L>(words[2], words[3]));
        [a, b, c, d]
    }
}

#[inline(always)]
unsafe fn pair<L: Lanes>(a: L::I, b: L::I) -> [L::F; 2] {
    // SAFETY: the caller runs where the instructions of `L` exist.
    unsafe {
        let radius = L::sqrt(L::mul(L::splat(-2.0), log_uniform::<L>(a)));
        let (cos, sin) = turn::<L>(b);
        [L::mul(radius, cos), L::mul(radius, sin)]
    }
}

#[inline(always)]
unsafe fn log_uniform<L: Lanes>(a: L::I) -> L::F {
    // SAFETY: the caller runs where the instructions of `L` exist.
    unsafe {
        let low = L::add(L::to_f32(L::and_i(a, L::splat_i(0xffff))), L::splat(0.5));
        let high = L::mul(L::to_f32(L::shr_i(a, 16)), L::splat(65_536.0));
        let u = L::mul(L::add(high, low), L::splat(1.0 / 4_294_967_296.0));
        let root_half = ROOT_HALF as i32;
        let offset = L::add_i(L::to_bits(u), L::splat_i(root_half.wrapping_neg()));
        let mantissa = L::add_i(L::and_i(offset, L::splat_i(0x007f_ffff)), L::splat_i(root_half));
        let mantissa = L::from_bits(mantissa);
        // Moved up so that it is not below zero, and back.
        let exponent = L::shr_i(L::add_i(offset, L::splat_i(127 << 23)), 23);
        let exponent = L::to_f32(L::add_i(exponent, L::splat_i(-127)));
        let one = L::splat(1.0);
        let s = L::div(L::sub(mantissa, one), L::add(mantissa, one));
        let log = L::mul(s, series::<L, 5>(&LOG, L::mul(s, s)));
        L::add(log, L::mul(exponent, L::splat(LN_2)))
    }
}

#[inline(always)]
unsafe fn turn<L: Lanes>(b: L::I) -> (L::F, L::F) {
    // SAFETY: the caller runs where the instructions of `L` exist.
    unsafe {
        let negative = |x: L::I| L::add_i(L::xor_i(x, L::splat_i(-1)), L::splat_i(1));
        let quarter = L::shr_i(L::add_i(b, L::splat_i(1 << 29)), 30);
        let rest = L::add_i(b, negative(L::shl_i::<30>(quarter)));
        let x = L::mul(L::add(L::to_f32(rest), L::splat(0.5)), L::splat(ANGLE));
        let squared = L::mul(x, x);
        let cos = L::to_bits(series::<L, 6>(&COS, squared));
        let sin = L::to_bits(L::mul(x, series::<L, 5>(&SIN, squared)));
        let odd = negative(L::and_i(quarter, L::splat_i(1)));
        let sign = |x: L::I| L::shl_i::<30>(L::and_i(x, L::splat_i(2)));
        let c = L::xor_i(choose::<L>(odd, sin, cos), sign(L::add_i(quarter, L::splat_i(1))));
        let s = L::xor_i(choose::<L>(odd, cos, sin), sign(quarter));
        (L::from_bits(c), L::from_bits(s))
    }
}

#[inline(always)]
unsafe fn series<L: Lanes, const N: usize>(coefficients: &[f32; N], x: L::F) -> L::F {
    // SAFETY: the caller runs where the instructions of `L` exist.
    unsafe {
        let mut sum = L::splat(coefficients[0]);
        for c in &coefficients[1..] {
            sum = L::add(L::mul(sum, x), L::splat(*c));
        }
        sum
    }
}

/// Writes the entries of elements `first..first + out.len()`, in order.
#[inline(always)]
pub(crate) unsafe fn fill_lanes<L: Lanes>(noise: &Noise, first: u64, out: &mut [f32]) {
    let n = noise.distribution.elements();
    let (mut at, end) = (first, first + out.len() as u64);
    while at < end {
        let block = at / n;
        let blocks = (end - block * n).div_ceil(n).min(16);
        let stop = end.min((block + blocks) * n);
        let part = &mut out[(at - first) as usize..(stop - first) as usize];
        // SAFETY: the caller runs where the instructions of `L` exist.
        unsafe {
            let words = philox::<L>(noise, ramp::<L>(block, 1));
            match noise.distribution {
                Distribution::Rademacher => signs_in_order::<L>(words, at - block * n, part),
                Distribution::GaussQ8 => steps_in_order::<L>(words, at - block * n, part),
                Distribution::GaussBoxMuller => normals_in_order::<L>(words, at - block * n, part),
            }
        }
        at = stop;
    }
}

/// The words of sixteen blocks one after another.
#[inline(always)]
unsafe fn in_order<L: Lanes>(words: [L::I; 4]) -> [i32; 64] {
    let (mut lanes, mut ordered) = ([0i32; 16], [0i32; 64]);
    for (word, x) in words.into_iter().enumerate() {
        // SAFETY: the array holds 16 integers; the caller runs where the instructions exist.
        unsafe { L::store_i(lanes.as_mut_ptr(), x) };
        for (block, lane) in lanes.iter().enumerate() {
            ordered[4 * block + word] = *lane;
        }
    }
    ordered
}

#[inline(always)]
unsafe fn signs_in_order<L: Lanes>(words: [L::I; 4], skip: u64, out: &mut [f32]) {
    // SAFETY: the caller runs where the instructions of `L` exist.
    let words = unsafe { in_order::<L>(words) };
    for (i, out) in out.iter_mut().enumerate() {
        let bit = i + skip as usize;
        *out = f32::from_bits((words[bit / 32] as u32 >> (bit % 32)) << 31 ^ 0x3f80_0000);
    }
}

#[inline(always)]
unsafe fn steps_in_order<L: Lanes>(words: [L::I; 4], skip: u64, out: &mut [f32]) {
    // SAFETY: the caller runs where the instructions of `L` exist; 16 bytes and floats each.
    unsafe {
        let words = in_order::<L>(words);
        let mut bytes = [0u8; 256];
        for (bytes, word) in bytes.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let bytes = &bytes[skip as usize..][..out.len()];
        let whole = out.len() / 16 * 16;
        for (out, bytes) in out.chunks_exact_mut(16).zip(bytes.chunks_exact(16)) {
            let places = L::to_i32(L::load_u8(bytes.as_ptr()));
            L::store(out.as_mut_ptr(), L::step_of(&table::STEPS, places));
        }
        for (out, byte) in out[whole..].iter_mut().zip(&bytes[whole..]) {
            *out = step(u32::from(*byte));
        }
    }
}

#[inline(always)]
unsafe fn normals_in_order<L: Lanes>(words: [L::I; 4], skip: u64, out: &mut [f32]) {
    let mut entries = [[0f32; 16]; 4];
    // SAFETY: the caller runs where the instructions of `L` exist; each array holds 16 floats.
    unsafe {
        for (entries, z) in entries.iter_mut().zip(normals::<L>(words)) {
            L::store(entries.as_mut_ptr(), z);
        }
    }
    for (i, out) in out.iter_mut().enumerate() {
        let at = i + skip as usize;
        *out = entries[at % 4][at / 4];
    }
}
