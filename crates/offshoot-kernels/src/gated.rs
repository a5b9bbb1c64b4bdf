//! The gated activation of a feed-forward layer, made where its two products are computed.

use std::mem::MaybeUninit;

use crate::activations::PANEL;
use crate::product::{RUN, check, panel_rows, room_for, zeroed};
use crate::tile::TILE_ROWS;
use crate::{Activation, Activations, Cpu, Forms, PackedMatrix};

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
    assert_eq!(pair.up.0.rows(), outputs, "two matrices of one shape");
    check(acts, pair.gate.0, pair.gate.1, false);
    check(acts, pair.up.0, pair.up.1, false);
    let new = out.begin(cpu, (tokens, outputs), forms);
    cpu.team().for_pieces(outputs.div_ceil(BLOCK), 1, |_, piece| {
        let mut room = [const { MaybeUninit::<f32>::uninit() }; 2 * PANEL * RUN];
        let (gate, up) = zeroed(&mut room, 2 * room_for(tokens)).split_at_mut(room_for(tokens));
        let end = outputs.min(piece.end * BLOCK);
        for row in (piece.start * BLOCK..end).step_by(RUN) {
            let rows = row..end.min(row + RUN);
            for panel in 0..tokens.div_ceil(PANEL) {
                panel_rows(cpu.isa(), acts, pair.gate, panel, rows.clone(), gate);
                panel_rows(cpu.isa(), acts, pair.up, panel, rows.clone(), up);
                let first = panel * PANEL;
                for token in first..tokens.min(first + PANEL) {
                    let at = (token - first) * RUN..(token - first) * RUN + rows.len();
                    // SAFETY: pieces do not overlap, so a member alone has these outputs.
                    unsafe {
                        let x = new.part(token, row, rows.len());
                        pair.activation.gate(cpu.isa(), &gate[at.clone()], &up[at], x);
                        new.encode(token, row, rows.len());
                    }
                }
            }
        }
    });
}
