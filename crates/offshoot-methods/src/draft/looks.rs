//! When to check a guess that does not seem to pay, because the time of its row may be wrong.
//!
//! Whether a second row pays goes by what steps of two rows took. If they took long while the machine
//! was busy none is made any more, and none says that it is quiet again. So after some steps that had
//! a hopeful guess and did not check it, one is checked:
//! ```text
//! hopeful:  1 + chance >= margin * max(sqrt(T(2)), T_shipped(2))
//! look:     after w hopeful guesses were left;   w = W / 4  if it took less than expected
//!                                                w = 2 w    else, from W to 8 W
//! ```
//! A find counts as one of the first few observations of its width ([`StepTimes::doubt`]).
//!
//! Options: none. W is 64, so that looks in vain cost less than a hundredth where two rows take up to
//! twice the time of one.

use super::step_times::StepTimes;

/// Hopeful guesses left before the first look, and before one of the last.
const WAITS: (u32, u32) = (64, 512);
/// What a second row takes where it takes little.
const CHEAP: f64 = 1.09;
/// A look that took less of what was expected is a find: time's noise is a tenth.
const FIND: f64 = 0.85;

/// Counts the hopeful guesses that were left.
#[derive(Debug, Clone, PartialEq)]
pub struct Looks {
    left: u32,
    wait: u32,
    looking: bool,
}

impl Default for Looks {
    fn default() -> Self {
        Self { left: WAITS.0, wait: WAITS.0, looking: false }
    }
}

impl Looks {
    /// Whether to check a guess that comes true with this chance and does not seem to pay, where a
    /// tree has to promise `margin` times plain decoding's speed.
    pub(crate) fn wants(&mut self, chance: f64, margin: f64, times: &StepTimes) -> bool {
        if 1.0 + chance < margin * times.ratio(2).sqrt().max(CHEAP) {
            return false;
        }
        self.left -= 1;
        self.looking = self.left == 0;
        if self.looking {
            self.left = self.wait;
        }
        self.looking
    }

    /// A new text: a step that failed was none.
    pub fn begin(&mut self) {
        self.looking = false;
    }

    /// Takes in what the step just made took, over what was expected; gives whether it was a look that
    /// found a time too long.
    pub fn note(&mut self, over_expected: f64) -> bool {
        if !std::mem::take(&mut self.looking) {
            return false;
        }
        let find = over_expected < FIND;
        self.left = match find {
            true => WAITS.0 / 4,
            false => (2 * self.wait).min(WAITS.1),
        };
        self.wait = self.left.max(WAITS.0);
        find
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `steps` with a guess of `chance`, the numbers of those that are looks and find `over`.
    fn looks(looks: &mut Looks, (steps, chance, over): (u32, f64, f64), two: f64) -> Vec<u32> {
        let times = StepTimes::new(&[(1, 1.0), (2, two)]);
        let one = |_: &u32| {
            let wants = looks.wants(chance, 1.02, &times);
            assert_eq!(looks.note(over), wants && over < 0.85);
            wants
        };
        (1..=steps).filter(one).collect()
    }

    #[test]
    fn it_looks_less_and_less_until_it_finds_something() {
        let mut all = Looks::default();
        let vain = looks(&mut all, (2000, 0.4, 1.0), 1.6);
        assert_eq!(vain, [64, 64 + 128, 64 + 128 + 256, 960, 1472, 1984]);
        assert_eq!(looks(&mut all, (2000, 0.4, 0.8), 1.6)[..3], [496, 512, 528]);
        assert_eq!(looks(&mut all, (2000, 0.4, 1.0), 1.6)[..3], [16, 144, 400]);
    }

    #[test]
    fn guesses_without_hope_are_left() {
        let mut all = Looks::default();
        assert_eq!(looks(&mut all, (9999, 0.1, 1.0), 1.6), [0u32; 0]);
        assert_eq!(
            looks(&mut all, (9999, 0.4, 1.0), 2.0),
            [0u32; 0],
            "rows that are as dear as steps"
        );
        assert_eq!(looks(&mut all, (64, 0.12, 1.0), 1.1), [64]);
    }
}
