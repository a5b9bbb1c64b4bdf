//! The gated activation of a feed-forward layer, made where its two products are computed.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::activations::{NewRows, PANEL};
use crate::parts::{Part, check_parts};
use crate::product::{RUN, check, panel_rows, panels, room_for, zeroed};
use crate::tile::TILE_ROWS;
use crate::{Activation, Activations, Cpu, Forms, Isa, PackedMatrix, form_for};

/// Two matrices of one shape and what makes a gated activation of their products.
#[derive(Debug, Clone, Copy)]
pub struct GatedPair<'a> {
    /// The gate's weights and bias.
    pub gate: (&'a PackedMatrix, Option<&'a [f32]>),
    /// The weights and bias of what the gate multiplies.
    pub up: (&'a PackedMatrix, Option<&'a [f32]>),
    /// What the gate goes through.
    pub activation: Activation,
}

/// Outputs that go together: two tile rows, a block of the next product.
const BLOCK: usize = 2 * TILE_ROWS;

/// `out = activation(gate * acts) * (up * acts)` in `forms`, as one job: a member computes a run of both
/// products, gates it and brings it into its forms before it takes the next, so that neither product
/// passes through memory. The bits are those of the steps one by one.
///
/// # Panics
/// As [`crate::multiply`]; if the two matrices differ in shape; or as [`Activations::fill`].
pub fn multiply_gated(
    cpu: &Cpu,
    acts: &Activations,
    pair: GatedPair<'_>,
    forms: Forms,
    out: &mut Activations,
) {
    let (outputs, tokens) = (pair.gate.0.rows(), acts.tokens());
    pair.check(acts, outputs);
    let new = out.begin(cpu, (tokens, outputs), forms);
    cpu.team().for_pieces(outputs.div_ceil(BLOCK), 1, |_, piece| {
        let rows = piece.start * BLOCK..outputs.min(piece.end * BLOCK);
        // SAFETY: pieces do not overlap, so a member alone has these outputs.
        unsafe { pair.run(cpu.isa(), acts, 0..tokens, rows, &new) };
    });
}

/// As [`multiply_gated`], but each of `parts` goes through a pair of its own, `pair(part.matrix)`, all of
/// one shape, as one job. Tokens of no part are not written.
///
/// # Panics
/// As [`multiply_gated`], or if parts overlap or are not of the inputs.
pub fn multiply_gated_parts<'w>(
    cpu: &Cpu,
    acts: &Activations,
    parts: &[Part],
    pair: impl Fn(usize) -> GatedPair<'w> + Sync,
    forms: Forms,
    out: &mut Activations,
) {
    let Some(outputs) = parts.first().map(|part| pair(part.matrix).gate.0.rows()) else { return };
    check_parts(acts, parts);
    parts.iter().for_each(|part| pair(part.matrix).check(acts, outputs));
    let new = out.begin(cpu, (acts.tokens(), outputs), forms);
    let blocks = outputs.div_ceil(BLOCK);
    cpu.team().for_pieces(parts.len() * blocks, 1, |_, piece| {
        let mut at = piece.start;
        while at < piece.end {
            let (part, block) = (parts[at / blocks], at % blocks);
            let end = blocks.min(block + piece.end - at);
            let rows = block * BLOCK..outputs.min(end * BLOCK);
            let pair = pair(part.matrix);
            // Again, since what the caller gives may change.
            pair.check(acts, outputs);
            // SAFETY: pieces do not overlap and neither do parts, so a member alone has these outputs.
            unsafe { pair.run(cpu.isa(), acts, part.start..part.end, rows, &new) };
            at += end - block;
        }
    });
}

impl GatedPair<'_> {
    fn check(&self, acts: &Activations, outputs: usize) {
        for (weights, bias) in [self.gate, self.up] {
            assert_eq!(weights.rows(), outputs, "matrices of one shape");
            check(acts, weights, bias, form_for(weights.block()));
        }
    }

    /// Outputs `rows`, from a whole block on, of `tokens`.
    ///
    /// # Safety
    /// No one else may use these outputs meanwhile.
    unsafe fn run(
        &self,
        isa: Isa,
        acts: &Activations,
        tokens: Range<usize>,
        rows: Range<usize>,
        new: &NewRows<'_>,
    ) {
        let mut room = [const { MaybeUninit::<f32>::uninit() }; 2 * PANEL * RUN];
        let each = room_for(tokens.len());
        let (gate, up) = zeroed(&mut room, 2 * each).split_at_mut(each);
        for row in rows.clone().step_by(RUN) {
            let rows = row..rows.end.min(row + RUN);
            for part in panels(tokens.clone()) {
                panel_rows(isa, acts, self.gate, part.clone(), rows.clone(), gate);
                panel_rows(isa, acts, self.up, part.clone(), rows.clone(), up);
                for (i, token) in part.enumerate() {
                    let at = i * RUN..i * RUN + rows.len();
                    // SAFETY: the caller's promise.
                    unsafe {
                        let x = new.part(token, row, rows.len());
                        self.activation.gate(isa, &gate[at.clone()], &up[at], x);
                        new.encode(token, row, rows.len());
                    }
                }
            }
        }
    }
}
