//! The greatest output of a product, found where the product is computed: what greedy decoding asks
//! of an output head.

use std::cmp::Ordering;
use std::mem::MaybeUninit;

use crate::activations::PANEL;
use crate::disjoint::Disjoint;
use crate::product::{RUN, check, panel_rows, panels, room_for, zeroed};
use crate::tile::TILE_ROWS;
use crate::{Activations, Cpu, PackedMatrix, argmax, form_for};

/// The greatest output of a token, the lowest index where several are equal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Greatest {
    /// Its index.
    pub index: u32,
    /// Its value.
    pub value: f32,
}

impl Greatest {
    /// The greatest of `row`; `Err` is the first place that holds no number, or 0 of an empty row.
    pub fn of(row: &[f32]) -> Result<Self, u32> {
        match argmax(row) {
            Some(index) => Ok(Self { index: index as u32, value: row[index] }),
            None => Err(row.iter().position(|x| x.is_nan()).unwrap_or(0) as u32),
        }
    }

    /// Whether `self` comes before `other`.
    fn beats(self, other: Self) -> bool {
        match self.value.partial_cmp(&other.value) {
            Some(Ordering::Greater) => true,
            Some(Ordering::Equal) => self.index < other.index,
            _ => false,
        }
    }
}

/// What a member has found for a token.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    best: Option<Greatest>,
    /// An output that is no number, the first that this member met.
    nan: Option<u32>,
}

/// Room for [`multiply_greatest`]; grows to the largest step seen.
#[derive(Debug, Default)]
pub struct GreatestScratch {
    found: Vec<Found>,
}

/// The greatest of the products of `weights` with each token of `acts`: as many as there are tokens.
/// `Err` holds the lowest of the places found where a product is no number.
///
/// No product is written to memory. The result is that of [`crate::multiply`] and
/// [`crate::argmax`], whatever the number of threads.
///
/// # Panics
/// As [`crate::multiply`].
pub fn multiply_greatest(
    cpu: &Cpu,
    acts: &Activations,
    weights: (&PackedMatrix, Option<&[f32]>),
    scratch: &mut GreatestScratch,
    out: &mut Vec<Result<Greatest, u32>>,
) {
    check(acts, weights.0, weights.1, form_for(weights.0.block()));
    let (outputs, tokens, threads) = (weights.0.rows(), acts.tokens(), cpu.team().threads());
    scratch.found.clear();
    scratch.found.resize(threads * tokens, Found::default());
    let found = Disjoint::new(&mut scratch.found);
    cpu.team().for_pieces(outputs.div_ceil(TILE_ROWS), 1, |member, piece| {
        // SAFETY: a member's findings are its own.
        let found = unsafe { found.slice(member * tokens, tokens) };
        let mut room = [const { MaybeUninit::<f32>::uninit() }; PANEL * RUN];
        let products = zeroed(&mut room, room_for(tokens));
        let end = outputs.min(piece.end * TILE_ROWS);
        for row in (piece.start * TILE_ROWS..end).step_by(RUN) {
            let rows = row..end.min(row + RUN);
            for part in panels(0..tokens) {
                let found = found[part.start..].iter_mut().take(PANEL);
                panel_rows(cpu.isa(), acts, weights, part, rows.clone(), products);
                for (found, products) in found.zip(products.chunks_exact(RUN)) {
                    found.look(row, &products[..rows.len()]);
                }
            }
        }
    });
    out.clear();
    out.extend((0..tokens).map(|token| {
        let each = scratch.found.iter().skip(token).step_by(tokens);
        let nan = each.clone().filter_map(|found| found.nan).min();
        let best = each.filter_map(|found| found.best);
        let best = best.reduce(|a, b| if b.beats(a) { b } else { a });
        nan.map_or(best.ok_or(0), Err)
    }));
}

impl Found {
    /// Takes note of outputs `products` from index `first` on.
    fn look(&mut self, first: usize, products: &[f32]) {
        match Greatest::of(products) {
            Ok(found) => {
                let new = Greatest { index: first as u32 + found.index, ..found };
                if self.best.is_none_or(|best| new.beats(best)) {
                    self.best = Some(new);
                }
            }
            Err(at) => {
                let place = first as u32 + at;
                self.nan = Some(self.nan.map_or(place, |nan| nan.min(place)));
            }
        }
    }
}
