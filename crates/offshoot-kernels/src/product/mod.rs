//! Products of packed weights with activations: `out[token, row] = sum over col of w[row, col] * x`.
//!
//! Arithmetic, the same for every instruction set, batch and thread count. Quantised weights: for
//! each block of 32 inputs in order, an exact 32-bit integer dot product of quants and 8-bit
//! activations, then
//!
//! ```text
//! acc = fma(dot, scale * d, acc)
//! acc = fma(offset, d * sum(q), acc)             if the format has offsets
//! ```
//!
//! or, where each half of a block has its own scale,
//!
//! ```text
//! acc = fma(offset_0, d * sum(q_0), acc)         if the format has offsets
//! acc = fma(fma(dot_1, scale_1, dot_0 * scale_0), d, acc)
//! acc = fma(offset_1, d * sum(q_1), acc)         if the format has offsets
//! ```
//!
//! 8-bit weights take both planes of inputs that have two, each by itself: `first + second`.
//!
//! Float weights: for each block of 32 inputs in order, a partial sum of fused multiply-adds from
//! zero, then `acc += partial`; bfloat16 weights take pairs of inputs by the rule of the BF16 dot
//! instruction. At the end `acc + bias`, then `out + acc` where the product accumulates.
//!
//! Lanes are 16 output rows; nothing is ever reduced across lanes.

mod float;
mod formed;
mod plain;

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::activations::{LINE, PANEL, Panel};
use crate::disjoint::Disjoint;
use crate::isa::by_isa;
use crate::lanes::Lanes;
use crate::parts::Part;
use crate::tile::TILE_ROWS;
use crate::tile::format::{self, Format};
use crate::{Activations, BlockType, Cpu, Forms, Isa, PackedMatrix};

use float::{Half, Single, stored, stored_pairs};
pub use formed::{Compute, Forming, FormingScratch, GroupFactors, multiply_formed};
pub(crate) use formed::{check_formed, form, multiply_room, run_formed};
pub use plain::{FloatMatrix, FloatOutput, multiply_floats};

/// One matrix to multiply and where its product goes.
#[derive(Debug)]
pub struct Product<'a> {
    /// The weights `[rows, cols]`.
    pub weights: &'a PackedMatrix,
    /// Added to each row's product, `rows` of them.
    pub bias: Option<&'a [f32]>,
    /// Whether the product is added to what stands in `out` (a residual stream) or replaces it.
    pub accumulate: bool,
    /// `[tokens, rows]`.
    pub out: &'a mut [f32],
}

/// The form of activations that weights of `block` multiply.
pub fn form_for(block: BlockType) -> Forms {
    match block {
        BlockType::F32 | BlockType::F16 => Forms::default(),
        BlockType::Bf16 => Forms { bf16: true, ..Forms::default() },
        _ => Forms { q8: true, ..Forms::default() },
    }
}

/// What the tile kernels share.
pub(crate) struct Task<'a> {
    weights: &'a PackedMatrix,
    acts: &'a Activations,
    bias: Option<&'a [f32]>,
    accumulate: bool,
    /// The tokens to take.
    tokens: Range<usize>,
    out: Disjoint<'a, f32>,
    /// Where the product of the first of `tokens` with row 0 would stand in `out`, and how far apart
    /// tokens are there.
    origin: usize,
    stride: usize,
}

impl<'a> Task<'a> {
    /// The whole product.
    fn new(acts: &'a Activations, p: &'a mut Product<'_>, need: Forms) -> Self {
        let rows = p.weights.rows();
        assert_eq!(p.out.len(), acts.tokens() * rows, "the product's output");
        check(acts, p.weights, p.bias, need);
        Task {
            weights: p.weights,
            acts,
            bias: p.bias,
            accumulate: p.accumulate,
            tokens: 0..acts.tokens(),
            out: Disjoint::new(p.out),
            origin: 0,
            stride: rows,
        }
    }

    /// The outputs from `row` on, at most [`RUN`], for `tokens`; output `row + i` of the `t`-th of them
    /// goes to `out[t * RUN + i]`.
    pub(crate) fn rows(
        acts: &'a Activations,
        (weights, bias): (&'a PackedMatrix, Option<&'a [f32]>),
        tokens: Range<usize>,
        row: usize,
        out: &'a mut [f32],
    ) -> Self {
        let (out, origin) = (Disjoint::new(out), 0usize.wrapping_sub(row));
        Task { weights, acts, bias, accumulate: false, tokens, out, origin, stride: RUN }
    }

    /// The product with some of the inputs; in `out` stands that of token `first` at the beginning.
    pub(crate) fn part(
        acts: &'a Activations,
        part: Part,
        weights: &'a PackedMatrix,
        out: Disjoint<'a, f32>,
        first: usize,
    ) -> Self {
        assert!(part.end <= acts.tokens(), "a part of the inputs");
        let stride = weights.rows();
        let (origin, tokens) = ((part.start - first) * stride, part.start..part.end);
        Task { weights, acts, bias: None, accumulate: false, tokens, out, origin, stride }
    }
}

/// Checks that `weights` can be multiplied with `acts`, which must have the forms that are `need`ed.
pub(crate) fn check(acts: &Activations, weights: &PackedMatrix, bias: Option<&[f32]>, need: Forms) {
    assert_eq!(weights.cols(), acts.cols(), "the product's inner width");
    assert!(bias.is_none_or(|b| b.len() == weights.rows()), "a bias per row");
    assert!(!need.q8 || acts.forms().q8, "8-bit activations");
    assert!(!need.bf16 || acts.forms().bf16, "bfloat16 activations");
}

/// Multiplies all `products` with the same inputs, as one job of the team.
///
/// # Panics
/// If a shape does not fit, or `acts` lacks the form that [`form_for`] names.
pub fn multiply<'p, 'a: 'p>(
    cpu: &Cpu,
    acts: &Activations,
    products: impl IntoIterator<Item = &'p mut Product<'a>>,
) {
    let each = products.into_iter().map(|p| {
        let need = form_for(p.weights.block());
        Task::new(acts, p, need)
    });
    let tasks: Vec1<Task<'_>> = each.collect();
    let total: usize = tasks.iter().map(|t| t.weights.tiles()).sum();
    cpu.team().for_pieces(total, 1, |_, piece| {
        let mut start = 0;
        for task in tasks.iter() {
            let end = start + task.weights.tiles();
            let (from, to) = (piece.start.max(start), piece.end.min(end));
            if from < to {
                run_tiles(cpu.isa(), task, from - start, to - start);
            }
            start = end;
        }
    });
}

/// Outputs of a matrix that a member computes into its own room before something is made of them:
/// enough that weights are read in long runs, few enough that all stays in the cache.
pub(crate) const RUN: usize = 8 * TILE_ROWS;

/// Floats that [`panel_rows`] writes for `tokens` tokens.
pub(crate) const fn room_for(tokens: usize) -> usize {
    if tokens < PANEL { tokens * RUN } else { PANEL * RUN }
}

/// The first `n` floats of `room`, zeroed; the rest of a large room on the stack is never touched.
pub(crate) fn zeroed(room: &mut [MaybeUninit<f32>], n: usize) -> &mut [f32] {
    let room = &mut room[..n];
    for x in room.iter_mut() {
        x.write(0.0);
    }
    // SAFETY: all `n` floats were just written.
    unsafe { &mut *(std::ptr::from_mut(room) as *mut [f32]) }
}

/// The parts of `tokens` that stand in one panel each.
pub(crate) fn panels(tokens: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let panels = tokens.start / PANEL..tokens.end.div_ceil(PANEL);
    panels.map(move |panel| {
        let first = panel * PANEL;
        tokens.start.max(first)..tokens.end.min(first + PANEL)
    })
}

/// Computes the outputs `rows`, at most [`RUN`] from a whole tile row on, for `tokens`, which stand in
/// one panel; output `rows.start + i` of the `t`-th of them goes to `out[t * RUN + i]`.
pub(crate) fn panel_rows(
    isa: Isa,
    acts: &Activations,
    (weights, bias): (&PackedMatrix, Option<&[f32]>),
    tokens: Range<usize>,
    rows: Range<usize>,
    out: &mut [f32],
) {
    let task = Task::rows(acts, (weights, bias), tokens, rows.start, out);
    run_tiles(isa, &task, rows.start / TILE_ROWS, rows.end.div_ceil(TILE_ROWS));
}

/// Up to four items in place: a step multiplies no more matrices with one input.
struct Vec1<T>([Option<T>; 4]);

impl<T> FromIterator<T> for Vec1<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut items = items.into_iter();
        let all = Self(std::array::from_fn(|_| items.next()));
        assert!(items.next().is_none(), "at most four products at once");
        all
    }
}

impl<T> Vec1<T> {
    fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }
}

/// Runs tile rows `from..to` of a task. Callers never let two members run the same tile.
pub(crate) fn run_tiles(isa: Isa, task: &Task<'_>, from: usize, to: usize) {
    let run = match task.weights.block() {
        BlockType::F32 => run_f32,
        BlockType::F16 => run_f16,
        BlockType::Bf16 => run_bf16,
        BlockType::Q4_0 => run_q4_0,
        BlockType::Q4_1 => run_q4_1,
        BlockType::Q5_0 => run_q5_0,
        BlockType::Q5_1 => run_q5_1,
        BlockType::Q8_0 => run_q8_0,
        BlockType::Q2K => run_q2_k,
        BlockType::Q3K => run_q3_k,
        BlockType::Q4K => run_q4_k,
        BlockType::Q5K => run_q5_k,
        BlockType::Q6K => run_q6_k,
        BlockType::Iq4Nl => run_iq4_nl,
        BlockType::Iq4Xs => run_iq4_xs,
    };
    run(isa, task, from, to);
}

by_isa! { fn run_q4_0(t: &Task<'_>, from: usize, to: usize) = quantized [format::Q4_0] }
by_isa! { fn run_q4_1(t: &Task<'_>, from: usize, to: usize) = quantized [format::Q4_1] }
by_isa! { fn run_q5_0(t: &Task<'_>, from: usize, to: usize) = quantized [format::Q5_0] }
by_isa! { fn run_q5_1(t: &Task<'_>, from: usize, to: usize) = quantized [format::Q5_1] }
by_isa! { fn run_q8_0(t: &Task<'_>, from: usize, to: usize) = quantized [format::Q8_0] }
by_isa! { fn run_q2_k(t: &Task<'_>, from: usize, to: usize) = quantized [format::Q2K] }
by_isa! { fn run_q3_k(t: &Task<'_>, from: usize, to: usize) = quantized [format::Q3K] }
by_isa! { fn run_q4_k(t: &Task<'_>, from: usize, to: usize) = quantized [format::Q4K] }
by_isa! { fn run_q5_k(t: &Task<'_>, from: usize, to: usize) = quantized [format::Q5K] }
by_isa! { fn run_q6_k(t: &Task<'_>, from: usize, to: usize) = quantized [format::Q6K] }
by_isa! { fn run_iq4_nl(t: &Task<'_>, from: usize, to: usize) = quantized [format::Iq4Nl] }
by_isa! { fn run_iq4_xs(t: &Task<'_>, from: usize, to: usize) = quantized [format::Iq4Xs] }
by_isa! { fn run_f32(t: &Task<'_>, from: usize, to: usize) = stored [Single] }
by_isa! { fn run_f16(t: &Task<'_>, from: usize, to: usize) = stored [Half] }
by_isa! { bf16 fn run_bf16(t: &Task<'_>, from: usize, to: usize) = stored_pairs }

/// Bytes of tile rows that take turns on a panel of tokens, so that a long prompt's inputs come from
/// far only once for all of them.
const TURN_BYTES: usize = 1 << 18;

/// Tile rows of a quantised matrix.
#[inline(always)]
unsafe fn quantized<L: Lanes, F: Format>(t: &Task<'_>, from: usize, to: usize) {
    let turn = (TURN_BYTES / t.weights.tile(from).len()).clamp(1, to - from);
    for from in (from..to).step_by(turn) {
        for panel in t.tokens.start / PANEL..t.tokens.end.div_ceil(PANEL) {
            for tile in from..to.min(from + turn) {
                // SAFETY: the caller runs where the instructions of `L` exist.
                unsafe { tile_panel::<L, F>(t, tile, panel) };
            }
        }
    }
}

/// One tile row and the task's tokens of one panel.
#[inline(always)]
unsafe fn tile_panel<L: Lanes, F: Format>(t: &Task<'_>, tile: usize, panel: usize) {
    let nblk = t.acts.cols() / 32;
    let first = panel * PANEL;
    let panel_of = t.acts.panel(panel);
    let Panel { lines, width, count, .. } = panel_of;
    let w = t.weights.tile(tile).as_ptr();
    let mut token = t.tokens.start.saturating_sub(first);
    let end = count.min(t.tokens.end - first);
    let two = F::BITS == 8 && panel_of.rest > 0;
    if two && token == 0 && end == width && 2 * width <= L::TOKENS {
        let at = Place { tile, token: first, count: end };
        // SAFETY: as below; the lines of both planes follow one another.
        unsafe {
            match end {
                1 => store::<L, 1>(t, at, both_planes::<L, F, 1, 2>(w, nblk, panel_of)),
                2 => store::<L, 2>(t, at, both_planes::<L, F, 2, 4>(w, nblk, panel_of)),
                _ if L::TOKENS < PANEL => {}
                3 => store::<L, 3>(t, at, both_planes::<L, F, 3, 6>(w, nblk, panel_of)),
                _ => store::<L, 4>(t, at, both_planes::<L, F, 4, 8>(w, nblk, panel_of)),
            }
        }
        return;
    }
    // Panels after the first find the next tile row close already.
    let mut near = panel > t.tokens.start / PANEL;
    while token < end {
        let (run, n) = run_of(L::TOKENS, end - token, width - token);
        let at = Place { tile, token: first + token, count: n };
        let x = lines.as_ptr().wrapping_add(token * LINE);
        let p = panel_of;
        // SAFETY: a tile row holds `nblk` blocks of `F`, a panel `nblk * width` lines of each plane of
        // which `run` from `token` on are read, and the caller runs where the instructions of `L`
        // exist.
        unsafe {
            match run {
                1 => store::<L, 1>(t, at, by_planes::<L, F, 1, true>(w, nblk, x, p)),
                _ if L::TOKENS == 1 => {}
                2 => store::<L, 2>(t, at, by_planes::<L, F, 2, true>(w, nblk, x, p)),
                3 => store::<L, 3>(t, at, by_planes::<L, F, 3, true>(w, nblk, x, p)),
                4 if near && L::TOKENS < PANEL => {
                    store::<L, 4>(t, at, by_planes::<L, F, 4, false>(w, nblk, x, p));
                }
                4 => store::<L, 4>(t, at, by_planes::<L, F, 4, true>(w, nblk, x, p)),
                _ if L::TOKENS < PANEL => {}
                6 => store::<L, 6>(t, at, by_planes::<L, F, 6, true>(w, nblk, x, p)),
                _ if near => {
                    store::<L, 8>(t, at, by_planes::<L, F, 8, false>(w, nblk, x, p));
                }
                _ => store::<L, 8>(t, at, by_planes::<L, F, 8, true>(w, nblk, x, p)),
            }
        }
        (token, near) = (token + n, true);
    }
}

/// The products of one tile row with all `T` tokens of a panel, whose two planes are gone through at
/// once: `LINES` is twice `T`.
#[inline(always)]
unsafe fn both_planes<L: Lanes, F: Format, const T: usize, const LINES: usize>(
    w: *const u8,
    nblk: usize,
    panel: Panel<'_>,
) -> [L::F; T] {
    let x = panel.lines.as_ptr();
    // SAFETY: see the caller.
    unsafe {
        let all = panel_product::<L, F, LINES, true>(w, nblk, x, panel.stride);
        let mut sums = [all[0]; T];
        for i in 0..T {
            sums[i] = L::add(all[i], all[i + T]);
        }
        sums
    }
}

/// The products of one tile row with the `T` tokens of a panel whose lines begin at `x`; of 8-bit
/// weights those of the second plane, where there is one, are added.
#[inline(always)]
unsafe fn by_planes<L: Lanes, F: Format, const T: usize, const AHEAD: bool>(
    w: *const u8,
    nblk: usize,
    x: *const u8,
    panel: Panel<'_>,
) -> [L::F; T] {
    // SAFETY: see the caller.
    unsafe {
        let first = panel_product::<L, F, T, AHEAD>(w, nblk, x, panel.stride);
        if F::BITS < 8 || panel.rest == 0 {
            return first;
        }
        let x = x.wrapping_add(panel.rest);
        let second = panel_product::<L, F, T, false>(w, nblk, x, panel.stride);
        let mut sums = first;
        for i in 0..T {
            sums[i] = L::add(first[i], second[i]);
        }
        sums
    }
}

/// How many tokens to compute at once, and how many of them count, where `left` are to be taken, the
/// panel has `room` for so many from there on, and the instructions take `most`.
const fn run_of(most: usize, left: usize, room: usize) -> (usize, usize) {
    match left {
        _ if most < PANEL => {
            let n = if left < most { left } else { most };
            (n, n)
        }
        7.. if room >= 8 => (8, if left < 8 { left } else { 8 }),
        5.. if room >= 6 => (6, if left < 6 { left } else { 6 }),
        4.. => (4, 4),
        _ => (left, left),
    }
}

/// The products of one tile row with `T` tokens of a panel, whose lines for a block stand `stride`
/// bytes apart from the next block's.
///
/// If `AHEAD`, the tile row that follows in memory is asked for, block for block: memory then works
/// while the dot units do, across the borders of pages that the processor's own prefetching stops
/// at.
#[inline(always)]
unsafe fn panel_product<L: Lanes, F: Format, const T: usize, const AHEAD: bool>(
    tile: *const u8,
    nblk: usize,
    lines: *const u8,
    stride: usize,
) -> [L::F; T] {
    // SAFETY: see the caller; every offset below stays inside the tile row and the panel.
    unsafe {
        let quant_bytes = 64 * F::BITS;
        let bits = if F::CODEBOOK { 8 } else { F::BITS };
        let halves = if F::OFFSET { 64 } else { 32 };
        let subs = 256 / F::SUB;
        let super_bytes = if F::OFFSET { 64 + 32 * subs } else { 32 + 16 * subs };
        let mut acc = [L::splat(0.0); T];
        let mut quants = tile;
        let mut scales = tile.add(nblk * quant_bytes);
        let mut x = lines;
        let mut d = L::splat(0.0);
        let mut dmin = L::splat(0.0);
        let mut factors = scales;
        let block_bytes = quant_bytes + if F::SUPER { super_bytes / 8 } else { halves };
        let mut next = tile.wrapping_add(nblk * block_bytes);
        for b in 0..nblk {
            // Not into the first cache: with the inputs of eight tokens two tile rows seldom fit there.
            if AHEAD {
                for line in 0..block_bytes.div_ceil(64) {
                    L::prefetch_second(next.wrapping_add(64 * line));
                }
                next = next.wrapping_add(block_bytes);
            }
            let w = unpack::<L, F>(quants);
            quants = quants.add(quant_bytes);
            if F::SUPER && b % 8 == 0 {
                d = L::load_f16(scales.cast());
                if F::OFFSET {
                    dmin = L::load_f16(scales.add(32).cast());
                }
                factors = scales.add(halves);
                scales = scales.add(super_bytes);
            }
            // Of the block or its halves.
            let (mut scale, mut offset) = ([d; 2], [dmin; 2]);
            for sub in 0..32 / F::SUB {
                if F::SUPER {
                    let factor =
                        if F::SIGNED { L::load_i8(factors.cast()) } else { L::load_u8(factors) };
                    scale[sub] = L::mul(d, factor);
                    if F::OFFSET {
                        offset[sub] = L::mul(dmin, L::load_u8(factors.add(16 * subs)));
                    }
                    factors = factors.add(16);
                } else {
                    scale[sub] = L::load_f16(scales.cast());
                    if F::OFFSET {
                        offset[sub] = L::load_f16(scales.add(32).cast());
                    }
                    scales = scales.add(halves);
                }
            }
            for (token, acc) in acc.iter_mut().enumerate() {
                let line = x.add(token * LINE);
                let floats = line.cast::<f32>();
                let ints = line.cast::<i32>();
                let x_scale = L::splat(floats.add(8).read_unaligned());
                // Of the first half, where there are two.
                let mut sum = L::splat(0.0);
                for sub in 0..32 / F::SUB {
                    let (sum_at, zero_at) =
                        if F::SUB == 32 { (9, 10) } else { (11 + sub, 13 + sub) };
                    // One or two chains of dot instructions: integer sums are exact in any order.
                    let mut dot0 = L::dot_from(match F::ZERO_SHIFT {
                        Some(shift) => zero_term::<L>(ints.add(zero_at).read_unaligned(), shift),
                        None => L::splat_i(0),
                    });
                    let mut dot1 = L::dot_from(L::splat_i(0));
                    if F::SUB == 32 {
                        for g in 0..4 {
                            dot0 = L::dot(dot0, bits, w[g], line.add(4 * g).cast());
                            dot1 = L::dot(dot1, bits, w[g + 4], line.add(16 + 4 * g).cast());
                        }
                    } else {
                        for g in 0..2 {
                            let at = 16 * sub + 4 * g;
                            dot0 = L::dot(dot0, bits, w[4 * sub + g], line.add(at).cast());
                            let dot = if L::ONE_CHAIN { &mut dot0 } else { &mut dot1 };
                            *dot = L::dot(*dot, bits, w[4 * sub + g + 2], line.add(at + 8).cast());
                        }
                    }
                    let dot = L::to_f32(L::dot_sum(bits, dot0, dot1));
                    if F::SUB == 32 {
                        *acc = L::fma(dot, L::mul(scale[sub], x_scale), *acc);
                    } else if sub == 0 {
                        sum = L::mul(dot, scale[sub]);
                    } else {
                        *acc = L::fma(L::fma(dot, scale[sub], sum), x_scale, *acc);
                    }
                    if F::OFFSET {
                        let sum = L::splat(floats.add(sum_at).read_unaligned());
                        *acc = if F::SUPER {
                            L::fnma(offset[sub], sum, *acc)
                        } else {
                            L::fma(offset[sub], sum, *acc)
                        };
                    }
                }
            }
            x = x.add(stride);
        }
        acc
    }
}

/// `negative_sum * 2^shift` in all lanes: what the zero point adds to a block's dot product.
#[inline(always)]
unsafe fn zero_term<L: Lanes>(negative_sum: i32, shift: u32) -> L::I {
    // SAFETY: the caller runs where the instructions of `L` exist.
    unsafe {
        let x = L::splat_i(negative_sum);
        match shift {
            2 => L::shl_i::<2>(x),
            3 => L::shl_i::<3>(x),
            4 => L::shl_i::<4>(x),
            5 => L::shl_i::<5>(x),
            _ => L::shl_i::<7>(x),
        }
    }
}

/// The eight groups of a block as unsigned bytes.
#[inline(always)]
unsafe fn unpack<L: Lanes, F: Format>(p: *const u8) -> [L::B; 8] {
    // SAFETY: a block of `F` has 64 bytes a bit.
    unsafe {
        if F::BITS == 8 {
            return [
                L::bytes_load(p),
                L::bytes_load(p.add(64)),
                L::bytes_load(p.add(128)),
                L::bytes_load(p.add(192)),
                L::bytes_load(p.add(256)),
                L::bytes_load(p.add(320)),
                L::bytes_load(p.add(384)),
                L::bytes_load(p.add(448)),
            ];
        }
        let l = [
            L::bytes_load(p),
            L::bytes_load(p.add(64)),
            L::bytes_load(p.add(128)),
            L::bytes_load(p.add(192)),
        ];
        let mut w = [
            L::low_nibbles(l[0]),
            L::low_nibbles(l[1]),
            L::low_nibbles(l[2]),
            L::low_nibbles(l[3]),
            L::high_nibbles(l[0]),
            L::high_nibbles(l[1]),
            L::high_nibbles(l[2]),
            L::high_nibbles(l[3]),
        ];
        if F::BITS == 5 {
            let plane = L::bytes_load(p.add(256));
            w[0] = L::or_plane::<4, 0>(w[0], plane, 16);
            w[1] = L::or_plane::<3, 0>(w[1], plane, 16);
            w[2] = L::or_plane::<2, 0>(w[2], plane, 16);
            w[3] = L::or_plane::<1, 0>(w[3], plane, 16);
            w[4] = L::or_plane::<0, 0>(w[4], plane, 16);
            w[5] = L::or_plane::<0, 1>(w[5], plane, 16);
            w[6] = L::or_plane::<0, 2>(w[6], plane, 16);
            w[7] = L::or_plane::<0, 3>(w[7], plane, 16);
        }
        if F::BITS == 6 {
            for half in 0..2 {
                let plane = L::bytes_load(p.add(256 + 64 * half));
                let g = 4 * half;
                w[g] = L::or_plane::<4, 0>(w[g], plane, 48);
                w[g + 1] = L::or_plane::<2, 0>(w[g + 1], plane, 48);
                w[g + 2] = L::or_plane::<0, 0>(w[g + 2], plane, 48);
                w[g + 3] = L::or_plane::<0, 2>(w[g + 3], plane, 48);
            }
        }
        if F::CODEBOOK {
            for w in &mut w {
                *w = L::lookup(&CODEBOOK_UNSIGNED, *w);
            }
        }
        w
    }
}

/// The codebook of the IQ4 formats, moved up by 128.
const CODEBOOK_UNSIGNED: [u8; 16] = {
    let mut table = [0u8; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = (crate::blocks::iq4_nl::CODEBOOK[i] as i16 + 128) as u8;
        i += 1;
    }
    table
};

/// Where a tile's results go.
#[derive(Clone, Copy)]
struct Place {
    tile: usize,
    token: usize,
    count: usize,
}

/// Adds bias and residual and writes the results of one tile row for `count` tokens.
#[inline(always)]
unsafe fn store<L: Lanes, const T: usize>(t: &Task<'_>, at: Place, acc: [L::F; T]) {
    let rows = t.weights.rows();
    let row = at.tile * TILE_ROWS;
    let height = TILE_ROWS.min(rows - row);
    for (i, acc) in acc.into_iter().enumerate().take(at.count) {
        let start = ((at.token + i - t.tokens.start) * t.stride + row).wrapping_add(t.origin);
        // SAFETY: this member alone runs this tile, so these outputs are its own.
        let out = unsafe { t.out.slice(start, height) };
        let mut y = acc;
        if height == TILE_ROWS {
            // SAFETY: `out` and the bias hold 16 floats here.
            unsafe {
                if let Some(bias) = t.bias {
                    y = L::add(y, L::load(bias[row..row + TILE_ROWS].as_ptr()));
                }
                if t.accumulate {
                    y = L::add(L::load(out.as_ptr()), y);
                }
                L::store(out.as_mut_ptr(), y);
            }
            continue;
        }
        let mut lanes = [0f32; TILE_ROWS];
        // SAFETY: `lanes` holds 16 floats.
        unsafe { L::store(lanes.as_mut_ptr(), y) };
        for (lane, out) in out.iter_mut().enumerate() {
            let y = lanes[lane] + t.bias.map_or(0.0, |b| b[row + lane]);
            *out = if t.accumulate { *out + y } else { y };
        }
    }
}
