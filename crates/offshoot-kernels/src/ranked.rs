//! The likeliest outputs of rows of logits, with their probabilities: what a draft head gives.

use crate::disjoint::Disjoint;
use crate::{Cpu, softmax};

/// An output and its softmax probability.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Ranked {
    /// Its index in the row.
    pub index: u32,
    /// Its probability; NaN if a logit of the row was no number.
    pub probability: f32,
}

/// Elements that are passed at once when none of them is greater than the worst one kept.
const BLOCK: usize = 64;

/// Turns each row of logits in `rows`, `width` long, into its softmax and writes the likeliest
/// outputs of each to `out`, likeliest first and the lower index first of equals: as many as
/// `out.len()` over the number of rows. A member of the team takes whole rows.
///
/// # Panics
/// If `rows` is no whole number of rows, `out` no multiple of it, or more are asked than `width`.
pub fn rank_rows(cpu: &Cpu, rows: &mut [f32], width: usize, out: &mut [Ranked]) {
    assert!(width > 0 && rows.len().is_multiple_of(width), "whole rows");
    let count = rows.len() / width;
    if count == 0 {
        return;
    }
    let best = out.len() / count;
    assert!(best * count == out.len() && best <= width, "as many outputs of each row");
    let isa = cpu.isa();
    let (rows, out) = (Disjoint::new(rows), Disjoint::new(out));
    cpu.team().for_pieces(count, 1, |_, piece| {
        for row in piece {
            // SAFETY: pieces do not overlap, so a member alone has this row and its outputs.
            let (row, out) =
                unsafe { (rows.slice(row * width, width), out.slice(row * best, best)) };
            softmax(isa, row);
            rank(row, out);
        }
    });
}

/// Writes the greatest of `row` to `out`, in order.
fn rank(row: &[f32], out: &mut [Ranked]) {
    let Some(last) = out.len().checked_sub(1) else { return };
    out.fill(Ranked { index: 0, probability: -1.0 });
    for (b, block) in row.chunks(BLOCK).enumerate() {
        let most = block.iter().fold(f32::NEG_INFINITY, |most, &p| if p > most { p } else { most });
        if most <= out[last].probability {
            continue;
        }
        for (i, &probability) in block.iter().enumerate() {
            if probability > out[last].probability {
                // Equals stay behind those that came before them.
                let at = out.partition_point(|kept| kept.probability >= probability);
                out[at..].rotate_right(1);
                out[at] = Ranked { index: (b * BLOCK + i) as u32, probability };
            }
        }
    }
    if out[last].probability < 0.0 {
        for (index, out) in out.iter_mut().enumerate() {
            *out = Ranked { index: index as u32, probability: f32::NAN };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_ranks_are_those_of_a_sorted_softmax(
            logits in prop::collection::vec((-40i8..40).prop_map(|x| f32::from(x) / 4.0), 1..300),
            best in 0usize..12,
            threads in 1usize..4,
        ) {
            let best = best.min(logits.len());
            let most = logits.iter().copied().fold(f32::MIN, f32::max);
            let total: f64 = logits.iter().map(|x| f64::from(x - most).exp()).sum();
            let mut expected: Vec<usize> = (0..logits.len()).collect();
            expected.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            let mut rows = [logits.clone(), logits.clone()].concat();
            let mut out = vec![Ranked::default(); 2 * best];
            rank_rows(&Cpu::new(Isa::best(), threads), &mut rows, logits.len(), &mut out);
            for (got, &index) in out[best..].iter().zip(&expected) {
                prop_assert_eq!(got.index as usize, index);
                // Single precision: the sum of 300 rounds in its sixth digit.
                let exact = f64::from(logits[index] - most).exp() / total;
                prop_assert!((f64::from(got.probability) - exact).abs() < 1e-5 * exact + 1e-30);
            }
            prop_assert_eq!(&out[..best], &out[best..]);
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_probabilities() {
        let logits: Vec<f32> = (0..1003).map(|i| ((i * 7919) % 997) as f32 / 60.0 - 8.0).collect();
        let ranked = |isa| {
            let (mut row, mut out) = (logits.clone(), [Ranked::default(); 10]);
            rank_rows(&Cpu::new(isa, 1), &mut row, logits.len(), &mut out);
            out
        };
        let portable = ranked(Isa::PORTABLE);
        for isa in Isa::available() {
            assert_eq!(ranked(isa), portable, "{isa}");
        }
    }

    #[test]
    fn a_row_with_a_nan_has_no_probabilities() {
        let mut row = [0.0, f32::NAN, 1.0];
        let mut out = [Ranked::default(); 2];
        rank_rows(&Cpu::new(Isa::best(), 1), &mut row, 3, &mut out);
        assert!(out.iter().all(|r| r.probability.is_nan() && r.index < 3));
    }
}
