//! How often a drafter's guesses come true, learned from what was made of them.
//!
//! A drafter scores a guess by its own lights: a frequency, a softmax. Whether 0.4 means four in ten
//! depends on the text, the model and how far the guess looks ahead. So each drafter has a table of
//! cells, by *class* (the length of a match, the depth of a head) and by score; a cell counts guesses
//! seen and guesses that came true.
//! ```text
//! chance(class, score) = (hits + S * score) / (seen + S)      S = SCORE_WEIGHT
//! after a guess:  hits <- D * hits + 1[true],  seen <- D * seen + 1      D = DECAY
//! ```
//! The decay makes a cell forget what is older than some hundred guesses, as texts change. Only
//! guesses whose parent was right are counted: of the others nothing is known. How far off the chances
//! are is their mean squared error (Brier 1950, "Verification of forecasts").

/// Classes of a drafter's guesses.
pub const CLASSES: usize = 8;
/// Cells of a class. They divide the square root of the score evenly, so that small scores, of which
/// a tree has many, are told apart.
pub const BINS: usize = 12;
/// Guesses that the score itself stands for: as many as in Jeffreys' prior. With more, cells that
/// always come true promise too little of a long copy.
const SCORE_WEIGHT: f32 = 1.0;
/// What a cell keeps of its counts with each new guess.
const DECAY: f32 = 0.99;
/// Guesses over which the mean squared error is taken, about.
const BRIER_SPAN: f32 = 200.0;
/// Chances are kept off 0 and 1, which no count of guesses can prove; not further than this, as a
/// chain of thirty sure guesses multiplies what is missing.
pub(super) const BOUNDS: (f32, f32) = (0.002, 0.998);

#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Cell {
    hits: f32,
    seen: f32,
}

/// A place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CellId(u16);

/// What one drafter's scores are worth.
#[derive(Debug, Clone, PartialEq)]
pub struct Calibration {
    cells: [[Cell; BINS]; CLASSES],
    brier: f32,
}

/// Hits and guesses seen, by class and bin: what a table begins with.
pub type Prior = [[(f32, f32); BINS]; CLASSES];

impl Default for Calibration {
    fn default() -> Self {
        Self::new(&[[(0.0, 0.0); BINS]; CLASSES])
    }
}

impl Calibration {
    /// A table that begins with `prior`.
    pub fn new(prior: &Prior) -> Self {
        let cells = prior.map(|class| class.map(|(hits, seen)| Cell { hits, seen }));
        Self { cells, brier: 0.2 }
    }

    /// The chance that a guess of this class and score comes true, and where its truth is to be
    /// noted.
    pub fn chance(&self, class: u8, score: f32) -> (f32, CellId) {
        let class = usize::from(class).min(CLASSES - 1);
        let score = score.clamp(0.0, 1.0);
        let bin = ((score.sqrt() * BINS as f32) as usize).min(BINS - 1);
        let Cell { hits, seen } = self.cells[class][bin];
        let chance = (hits + SCORE_WEIGHT * score) / (seen + SCORE_WEIGHT);
        (chance.clamp(BOUNDS.0, BOUNDS.1), CellId((class * BINS + bin) as u16))
    }

    /// Notes whether a guess that had been given `chance` came true.
    pub fn note(&mut self, cell: CellId, chance: f32, hit: bool) {
        let hit = f32::from(u8::from(hit));
        let cell = &mut self.cells[usize::from(cell.0) / BINS][usize::from(cell.0) % BINS];
        cell.hits = DECAY * cell.hits + hit;
        cell.seen = DECAY * cell.seen + 1.0;
        self.brier += ((chance - hit).powi(2) - self.brier) / BRIER_SPAN;
    }

    /// The mean squared error of the latest chances.
    pub fn brier(&self) -> f32 {
        self.brier
    }

    /// Hits and guesses seen, for a prior.
    pub fn counts(&self) -> Prior {
        self.cells.map(|class| class.map(|cell| (cell.hits, cell.seen)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Notes `n` guesses of which a share `p` comes true.
    fn teach(calibration: &mut Calibration, class: u8, score: f32, p: f64, n: u64) {
        for i in 0..n {
            let (chance, cell) = calibration.chance(class, score);
            let hit = crate::uniform(3, u32::from(class), i) < p;
            calibration.note(cell, chance, hit);
        }
    }

    #[test]
    fn a_chance_is_learned_and_forgotten() {
        let mut calibration = Calibration::default();
        assert!((calibration.chance(2, 0.5).0 - 0.5).abs() < 1e-6, "nothing seen: the score");
        teach(&mut calibration, 2, 0.5, 0.9, 2000);
        // 100 guesses are remembered: three standard errors of 0.03.
        assert!((calibration.chance(2, 0.5).0 - 0.9).abs() < 0.09);
        assert!((calibration.chance(3, 0.5).0 - 0.5).abs() < 1e-6, "another class");
        teach(&mut calibration, 2, 0.5, 0.2, 1000);
        assert!((calibration.chance(2, 0.5).0 - 0.2).abs() < 0.12);
    }

    #[test]
    fn who_is_surer_and_right_errs_less() {
        let (mut good, mut bad) = (Calibration::default(), Calibration::default());
        teach(&mut good, 0, 0.95, 0.98, 500);
        teach(&mut bad, 0, 0.5, 0.5, 500);
        assert!(good.brier() < 0.1 && bad.brier() > 0.2);
    }

    #[test]
    fn a_prior_survives_a_round_trip() {
        let mut calibration = Calibration::default();
        teach(&mut calibration, 1, 0.3, 0.6, 50);
        let again = Calibration::new(&calibration.counts());
        assert_eq!(again.chance(1, 0.3), calibration.chance(1, 0.3));
    }
}
