//! Products of some of a step's tokens: each part of them with a matrix of its own.

use std::ops::Range;

use crate::disjoint::Disjoint;
use crate::product::{Task, check, check_formed, run_formed, run_tiles};
use crate::tile::TILE_ROWS;
use crate::{Activations, Cpu, Forming, FormingScratch, PackedMatrix, form_for};

/// Multiplies `weights` with `tokens` of the inputs alone, as one job, formed as in
/// [`crate::multiply_formed`] if it is said how; `out` is `[tokens, rows]`.
///
/// # Panics
/// As [`crate::multiply`] or [`crate::multiply_formed`], or if there are no such tokens.
pub fn multiply_part(
    cpu: &Cpu,
    acts: &Activations,
    tokens: Range<usize>,
    weights: &PackedMatrix,
    forming: Option<(Forming<'_>, &mut FormingScratch)>,
    out: &mut [f32],
) {
    let part = Part { matrix: 0, start: tokens.start, end: tokens.end };
    let task = Task::part(acts, part, weights, Disjoint::new(out), tokens.start);
    match forming {
        Some((forming, scratch)) => {
            check_formed(acts, weights, None, forming);
            run_formed(cpu, &task, forming, scratch);
        }
        None => {
            check(acts, weights, None, form_for(weights.block()));
            cpu.team().for_pieces(weights.tiles(), 1, |_, piece| {
                run_tiles(cpu.isa(), &task, piece.start, piece.end);
            });
        }
    }
}

/// Consecutive tokens of the inputs that one of several matrices is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Which matrix.
    pub matrix: usize,
    /// The first token.
    pub start: usize,
    /// The token behind the last.
    pub end: usize,
}

/// Checks that `parts` are of the inputs and do not overlap.
pub(crate) fn check_parts(acts: &Activations, parts: &[Part]) {
    let mut at = 0;
    for part in parts {
        assert!(at <= part.start && part.start < part.end, "parts that do not overlap");
        at = part.end;
    }
    assert!(at <= acts.tokens(), "parts of the inputs");
}

/// Multiplies each of `parts` with a matrix of its own, `weights(part.matrix)`, as one job; all have
/// one shape. `out` is `[tokens, rows]`; tokens of no part stay as they are.
///
/// # Panics
/// As [`crate::multiply`], or if parts overlap or are not of the inputs.
pub fn multiply_parts<'w>(
    cpu: &Cpu,
    acts: &Activations,
    parts: &[Part],
    weights: impl Fn(usize) -> &'w PackedMatrix + Sync,
    out: &mut [f32],
) {
    let Some(rows) = parts.first().map(|part| weights(part.matrix).rows()) else { return };
    check_parts(acts, parts);
    assert_eq!(out.len(), acts.tokens() * rows, "the product's output");
    for part in parts {
        assert_eq!(weights(part.matrix).rows(), rows, "matrices of one shape");
        let weights = weights(part.matrix);
        check(acts, weights, None, form_for(weights.block()));
    }
    let (out, tiles) = (Disjoint::new(out), rows.div_ceil(TILE_ROWS));
    cpu.team().for_pieces(parts.len() * tiles, 1, |_, piece| {
        let mut at = piece.start;
        while at < piece.end {
            let (part, tile) = (parts[at / tiles], at % tiles);
            let end = tiles.min(tile + piece.end - at);
            let weights = weights(part.matrix);
            // Again, since what the caller gives may change.
            assert_eq!(weights.rows(), rows, "matrices of one shape");
            check(acts, weights, None, form_for(weights.block()));
            let task = Task::part(acts, part, weights, out, 0);
            run_tiles(cpu.isa(), &task, tile, end);
            at += end - tile;
        }
    });
}
