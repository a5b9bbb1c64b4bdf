//! Log-probabilities of given outputs of a product, and the greatest output, with no product in memory:
//! what a loss asks of an output head.
//!
//! ```text
//! p = x_y - (M + ln S)        M = max over i of x_i        S = sum over i of exp(x_i - M)
//! ```
//! Outputs come in chunks of 128: sixteen lanes sum `exp(x - m)` in single precision, `m` the chunk's
//! greatest, and the lanes are summed by the fixed tree. Chunks are merged in order in double
//! precision, those of a run of 1024 outputs first, then the runs:
//! ```text
//! M' = max(M, m)        S' = S exp(M - M') + s exp(m - M')
//! ```
//! So a row's result depends neither on threads nor on the rows beside it. This is the running softmax
//! of Milakov and Gimelshein 2018, <https://arxiv.org/abs/1805.02867>, with fixed cuts.
//! Memory: 64 tokens' chunks and some half a megabyte of formed weights a thread, 32 bytes for each
//! token and run.

use std::ops::Range;

use crate::disjoint::Disjoint;
use crate::isa::by_isa;
use crate::lanes::Lanes;
use crate::product::{RUN, Task, check, check_formed, form, multiply_room, run_tiles};
use crate::tile::TILE_ROWS;
use crate::{
    Activations, Buffer, Cpu, Forming, FormingScratch, Greatest, Isa, PackedMatrix, form_for, math,
    soft_cap,
};

/// Outputs that are merged in order before others are: those of one piece of a job.
const PIECE: usize = 8 * RUN;
/// Tokens whose chunks are computed before they are looked at.
const TOKENS: usize = 64;

/// Which outputs' log-probabilities are asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The outputs, those of the first token first.
    pub outputs: &'a [u32],
    /// For each token the end of its part of `outputs`, ascending.
    pub ends: &'a [usize],
}

impl Wanted<'_> {
    /// The places among `outputs` that are of `token`.
    fn of(&self, token: usize) -> Range<usize> {
        let start = if token == 0 { 0 } else { self.ends[token - 1] };
        start..self.ends[token]
    }

    fn check(&self, tokens: usize, width: usize) {
        assert_eq!(self.ends.len(), tokens, "wanted outputs of every token");
        assert!(self.ends.windows(2).all(|ends| ends[0] <= ends[1]), "ascending ends");
        assert_eq!(self.ends.last().copied().unwrap_or(0), self.outputs.len(), "all outputs");
        assert!(self.outputs.iter().all(|y| (*y as usize) < width), "outputs that there are");
    }
}

/// What is known of rows of logits.
#[derive(Debug, Clone, Default)]
pub struct RowScores {
    /// The log-probability of each wanted output; NaN where a logit of the row is.
    pub logprobs: Vec<f64>,
    /// The greatest output of each row, the lowest of equals; `Err` names one that is no number.
    pub greatest: Vec<Result<Greatest, u32>>,
}

impl RowScores {
    /// Forgets all rows.
    pub fn clear(&mut self) {
        self.logprobs.clear();
        self.greatest.clear();
    }
}

/// What is known of a row after some of its outputs.
#[derive(Debug, Clone, Copy, Default)]
struct Running {
    best: Option<Greatest>,
    /// Sum of `exp(x - best)`.
    sum: f64,
    nan: Option<u32>,
}

impl Running {
    /// Takes note of `x`, the outputs from `first` on.
    fn look(&mut self, isa: Isa, first: usize, x: &[f32]) {
        match Greatest::of(x) {
            Ok(found) => {
                let best = Greatest { index: first as u32 + found.index, ..found };
                let sum = f64::from(exp_sum(isa, x, best.value));
                self.merge(Self { best: Some(best), sum, nan: None });
            }
            Err(at) => self.nan = self.nan.or(Some(first as u32 + at)),
        }
    }

    /// Takes in what is known of the outputs that follow.
    fn merge(&mut self, next: Self) {
        self.nan = self.nan.or(next.nan);
        let Some(new) = next.best else { return };
        let Some(old) = self.best else {
            (self.best, self.sum) = (next.best, next.sum);
            return;
        };
        // The lowest of equals: the others come later.
        let best = if new.value > old.value { new } else { old };
        let share = |sum: f64, of: Greatest| {
            let distance = f64::from(of.value) - f64::from(best.value);
            if distance == 0.0 { sum } else { sum * math::exp_f64(distance.max(-600.0)) }
        };
        self.sum = share(self.sum, old) + share(next.sum, new);
        self.best = Some(best);
    }

    /// `M + ln S`.
    fn log_sum(&self) -> f64 {
        match (self.best, self.nan) {
            (Some(best), None) => f64::from(best.value) + math::ln(self.sum),
            _ => f64::NAN,
        }
    }
}

by_isa! {
    /// The sum of `exp(x - shift)` over a chunk, whose greatest element is `shift`.
    fn exp_sum(x: &[f32], shift: f32) -> f32 = exp_sum_lanes
}

#[inline(always)]
unsafe fn exp_sum_lanes<L: Lanes>(x: &[f32], shift: f32) -> f32 {
    let whole = x.len() / 16 * 16;
    // SAFETY: 16 floats each; the caller runs where the instructions of `L` exist.
    unsafe {
        let (mut sums, shift) = (L::splat(0.0), L::splat(shift));
        for x in x.chunks_exact(16) {
            sums = L::add(sums, math::exp::<L>(L::sub(L::load(x.as_ptr()), shift)));
        }
        if whole < x.len() {
            let mut last = [0f32; 16];
            last[..x.len() - whole].copy_from_slice(&x[whole..]);
            let e = math::exp::<L>(L::sub(L::load(last.as_ptr()), shift));
            sums = L::add(sums, L::first(x.len() - whole, e, L::splat(0.0)));
        }
        L::sum(sums)
    }
}

/// Room for [`multiply_log_softmax`]; grows to the largest step seen.
#[derive(Debug, Default)]
pub struct LogSoftmaxScratch {
    forming: FormingScratch,
    products: Buffer<f32>,
    running: Vec<Running>,
    wanted: Vec<f32>,
}

/// An output head.
#[derive(Debug, Clone, Copy)]
struct Head<'a> {
    weights: &'a PackedMatrix,
    bias: Option<&'a [f32]>,
    forming: Option<Forming<'a>>,
    cap: Option<f32>,
}

/// Appends to `out` the scores of the products of `weights` with each token of `acts`; with the cap of
/// [`soft_cap`] if there is a `cap`, and of weights that are formed first if it is said how. The logits
/// are to the bit those of [`crate::multiply`] or [`crate::multiply_formed`].
///
/// # Panics
/// As those, or if `wanted` does not fit.
pub fn multiply_log_softmax(
    cpu: &Cpu,
    acts: &Activations,
    (weights, bias): (&PackedMatrix, Option<&[f32]>),
    (forming, cap): (Option<Forming<'_>>, Option<f32>),
    wanted: Wanted<'_>,
    scratch: &mut LogSoftmaxScratch,
    out: &mut RowScores,
) {
    match forming {
        Some(forming) => check_formed(acts, weights, bias, forming),
        None => check(acts, weights, bias, form_for(weights.block())),
    }
    let (tokens, width, threads) = (acts.tokens(), weights.rows(), cpu.team().threads());
    wanted.check(tokens, width);
    let head = Head { weights, bias, forming, cap };
    let pieces = width.div_ceil(PIECE);
    scratch.running.clear();
    scratch.running.resize(pieces * tokens, Running::default());
    scratch.wanted.clear();
    scratch.wanted.resize(wanted.outputs.len(), f32::NAN);
    scratch.products.grow(threads * TOKENS * RUN);
    let compute = forming.unwrap_or_default().compute;
    let rooms = scratch.forming.begin(cpu, compute, weights.cols(), RUN / TILE_ROWS);
    let running = Disjoint::new(&mut scratch.running);
    let products = Disjoint::new(&mut scratch.products);
    let logits = Disjoint::new(&mut scratch.wanted);
    cpu.team().for_pieces(pieces, 1, |member, some| {
        for piece in some {
            // SAFETY: a member's rooms are its own, and so are a piece's findings.
            let (room, products, running) = unsafe {
                let products = products.slice(member * TOKENS * RUN, TOKENS * RUN);
                (rooms.of(member), products, running.slice(piece * tokens, tokens))
            };
            for row in (piece * PIECE..width.min((piece + 1) * PIECE)).step_by(RUN) {
                let rows = row..width.min(row + RUN);
                let found = |token: usize, x: &[f32]| {
                    running[token].look(cpu.isa(), row, x);
                    for at in wanted.of(token) {
                        let y = wanted.outputs[at] as usize;
                        if let Some(x) = y.checked_sub(row).and_then(|i| x.get(i)) {
                            // SAFETY: an output stands in one chunk, so one member has its place.
                            unsafe { logits.slice(at, 1)[0] = *x };
                        }
                    }
                };
                head.chunk(cpu.isa(), acts, rows, (room, products), found);
            }
        }
    });
    for token in 0..tokens {
        let mut all = Running::default();
        scratch.running.iter().skip(token).step_by(tokens).for_each(|piece| all.merge(*piece));
        finish(&all, &scratch.wanted[wanted.of(token)], out);
    }
}

/// Appends what is known of a row whose wanted logits are `logits`.
fn finish(all: &Running, logits: &[f32], out: &mut RowScores) {
    let log_sum = all.log_sum();
    out.logprobs.extend(logits.iter().map(|x| f64::from(*x) - log_sum));
    out.greatest.push(all.nan.map_or(all.best.ok_or(0), Err));
}

impl Head<'_> {
    /// Computes outputs `rows` of all tokens and shows them, token by token.
    fn chunk(
        &self,
        isa: Isa,
        acts: &Activations,
        rows: Range<usize>,
        (room, products): (&mut [f32], &mut [f32]),
        mut found: impl FnMut(usize, &[f32]),
    ) {
        let tiles = rows.start / TILE_ROWS..rows.end.div_ceil(TILE_ROWS);
        let formed = self.forming.filter(|forming| forming.changes(self.weights.block()));
        if let Some(forming) = formed {
            form(isa, self.weights, forming, room, tiles.clone());
        }
        for first in (0..acts.tokens()).step_by(TOKENS) {
            let tokens = first..acts.tokens().min(first + TOKENS);
            let head = (self.weights, self.bias);
            let task = Task::rows(acts, head, tokens.clone(), rows.start, products);
            match formed {
                Some(forming) => multiply_room(isa, &task, forming.compute, room, tiles.clone()),
                None => run_tiles(isa, &task, tiles.start, tiles.end),
            }
            for (token, x) in tokens.zip(products.chunks_exact_mut(RUN)) {
                let x = &mut x[..rows.len()];
                if let Some(cap) = self.cap {
                    soft_cap(isa, x, cap);
                }
                found(token, x);
            }
        }
    }
}

/// As [`multiply_log_softmax`], of rows of logits that are there, `[tokens, width]`: the same results
/// to the bit.
///
/// # Panics
/// If `wanted` or the logits do not fit.
pub fn log_softmax_rows(
    isa: Isa,
    logits: &[f32],
    width: usize,
    wanted: Wanted<'_>,
    out: &mut RowScores,
) {
    assert!(width > 0 && logits.len().is_multiple_of(width), "rows of logits");
    wanted.check(logits.len() / width, width);
    let mut found = Vec::new();
    for (token, x) in logits.chunks_exact(width).enumerate() {
        let mut all = Running::default();
        for (piece, x) in x.chunks(PIECE).enumerate() {
            let mut running = Running::default();
            for (i, x) in x.chunks(RUN).enumerate() {
                running.look(isa, piece * PIECE + i * RUN, x);
            }
            all.merge(running);
        }
        found.clear();
        found.extend(wanted.outputs[wanted.of(token)].iter().map(|y| x[*y as usize]));
        finish(&all, &found, out);
    }
}
