//! What the most hopeful of several drafters' chances is worth.
//!
//! Each drafter's chances are right by themselves (`calibration.rs`). The greatest of several is not:
//! choosing it prefers what was overrated (Smith & Winkler 2006, "The optimizer's curse", section 2,
//! <https://doi.org/10.1287/mnsc.1050.0451>), and several who guess the same know more than each of
//! them. And guesses along a path do not come true independently: where the first ones were right, a
//! text is likely to be one that repeats. So chances are corrected by what came of those like them:
//! ```text
//! odds' = odds * (hits + W) / (expected + W) * (seen - expected + W) / (seen - hits + W)
//! after a guess of chance p:  seen <- D * seen + 1,  expected <- D * expected + p,
//!                             hits <- D * hits + 1[true]                  W = 2, D = 0.99
//! ```
//! by cells of how many drafters guessed it, its depth, and `p`. Odds, so that what is nearly sure
//! stays so and the order within a cell is kept.
//!
//! Options: none. It is learned anew by each session, for each class of texts.
//!
//! Cost: a handful of operations a guess.
//!
//! When not to use it: with one drafter it corrects paths only.

use super::calibration::BOUNDS;

/// Guesses that come as expected, in each cell, before any was seen.
const WEIGHT: f32 = 2.0;
/// What a cell keeps of its counts with each new guess.
const DECAY: f32 = 0.99;
/// Cells: one drafter or several, by depth, by chance.
const CELLS: usize = 2 * 4 * 4;

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Cell {
    hits: f32,
    expected: f32,
    seen: f32,
}

/// A guess's cell and the chance it came with.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Agreed {
    cell: u8,
    chance: f32,
}

/// How the greatest chances of several drafters came true.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Agreement {
    cells: [Cell; CELLS],
}

impl Agreement {
    /// The chance of a guess at `depth`, 1 for the next token, that `drafters` made and the most
    /// hopeful of them gave `chance`; and what [`Agreement::note`] wants to know of it.
    pub fn chance(&self, drafters: usize, depth: usize, chance: f32) -> (f32, Agreed) {
        let depth = [2, 3, 5].iter().filter(|&&from| depth >= from).count();
        let band = [0.2, 0.5, 0.8].iter().filter(|&&from| chance >= from).count();
        let at = (usize::from(drafters > 1) * 4 + depth) * 4 + band;
        let Cell { hits, expected, seen } = self.cells[at];
        let odds = chance / (1.0 - chance).max(f32::MIN_POSITIVE);
        let odds = odds * (hits + WEIGHT) / (expected + WEIGHT) * (seen - expected + WEIGHT)
            / (seen - hits + WEIGHT);
        let corrected = (odds / (1.0 + odds)).clamp(BOUNDS.0, BOUNDS.1);
        (corrected, Agreed { cell: at as u8, chance })
    }

    /// Notes whether a guess came true.
    pub fn note(&mut self, Agreed { cell, chance }: Agreed, hit: bool) {
        let cell = &mut self.cells[usize::from(cell)];
        cell.hits = DECAY * cell.hits + f32::from(u8::from(hit));
        cell.expected = DECAY * cell.expected + chance;
        cell.seen = DECAY * cell.seen + 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Notes `n` guesses of `chance` of which `hits` in a hundred come true.
    fn teach(agreement: &mut Agreement, drafters: usize, chance: f32, hits: u32, n: u32) {
        for i in 0..n {
            let (_, agreed) = agreement.chance(drafters, 1, chance);
            // Spread evenly, 61 being no divisor of 100.
            agreement.note(agreed, i * 61 % 100 < hits);
        }
    }

    #[test]
    fn what_was_not_seen_yet_is_believed() {
        for chance in [0.01, 0.3, 0.5, 0.99] {
            let (corrected, _) = Agreement::default().chance(2, 3, chance);
            assert!((corrected - chance).abs() < 1e-5, "{corrected} for {chance}");
        }
    }

    #[test]
    fn too_hopeful_chances_are_lowered_and_those_that_several_share_raised() {
        let mut agreement = Agreement::default();
        teach(&mut agreement, 1, 0.6, 40, 400);
        teach(&mut agreement, 2, 0.6, 90, 400);
        let (alone, _) = agreement.chance(1, 1, 0.6);
        let (shared, _) = agreement.chance(2, 1, 0.6);
        assert!((alone - 0.4).abs() < 0.08, "{alone}");
        assert!((shared - 0.9).abs() < 0.08, "{shared}");
        let (deeper, _) = agreement.chance(1, 2, 0.6);
        assert!((deeper - 0.6).abs() < 1e-5, "{deeper}: another cell");
    }

    proptest! {
        /// Whatever was seen, chances stay chances, and their order within a cell.
        #[test]
        fn corrected_chances_are_chances_and_keep_their_order(
            notes in prop::collection::vec((1usize..4, 1usize..9, 0.0f32..=1.0, any::<bool>()), 0..300),
            a in 0.5f32..0.79,
            b in 0.5f32..0.79,
        ) {
            let mut agreement = Agreement::default();
            for (drafters, depth, chance, hit) in notes {
                let (corrected, agreed) = agreement.chance(drafters, depth, chance);
                prop_assert!((BOUNDS.0..=BOUNDS.1).contains(&corrected), "{}", corrected);
                agreement.note(agreed, hit);
            }
            let (less, more) = (a.min(b), a.max(b));
            prop_assert!(agreement.chance(1, 1, less).0 <= agreement.chance(1, 1, more).0);
        }
    }
}
