//! When to stop asking a drafter, and when to ask again.
//!
//! A drafter pays if the tokens it brings are worth the time it takes. Both come in as numbers for
//! each step it was asked in, in units of a plain step: `gain` and `cost`. After [`SPAN`] steps with
//! less gain than cost it is not asked for a while; then it is tried for [`TRIAL`] steps, and each
//! failure doubles the pause.
//! ```text
//! after s steps asked:  sum gain < sum cost  ->  pause p steps, s = TRIAL, p = min(2 p, PAUSES.1)
//!                       else                 ->  s = SPAN, p = PAUSES.0
//! ```
//! Options: none. 32 steps are enough to tell a gain of a tenth from none and few enough to cost
//! little; a pause is 64 to 1024 steps, a trial 8. A new text begins with an open gate.
//!
//! Cost: a few additions a step.
//!
//! Published: SmartSpec, <https://arxiv.org/abs/2406.14066>, sizes drafts by goodput, as drafting
//! of a fixed length slows answers down where guesses are seldom right; it answers up to 3.2 times as
//! soon as no drafting (abstract; requests served together). Ours, in counted cost:
//! guesses that come true never, always or by turns never cost a text more than 1/0.98 of plain
//! decoding (`spec/sweep.rs` of the engine).
//!
//! When not to use it: for a drafter that costs nothing, where pausing it can only lose; its caller
//! notes no cost then.

/// Steps over which gain and cost are averaged before a verdict.
const SPAN: u32 = 32;
/// Steps of a trial after a pause.
const TRIAL: u32 = 8;
/// Steps of the first pause and the most of a later one.
const PAUSES: (u32, u32) = (64, 1024);

/// Whether a drafter is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// Steps still to pause.
    pause: u32,
    next_pause: u32,
    /// Steps asked since the last verdict, and how many of them lead to one.
    asked: u32,
    span: u32,
    gain: f64,
    cost: f64,
}

impl Default for Gate {
    fn default() -> Self {
        Self { pause: 0, next_pause: PAUSES.0, asked: 0, span: SPAN, gain: 0.0, cost: 0.0 }
    }
}

impl Gate {
    /// Whether the drafter is to be asked in the coming step.
    pub fn is_open(&self) -> bool {
        self.pause == 0
    }

    /// Takes in a step in which the drafter was asked, and what it brought and took.
    pub fn note(&mut self, gain: f64, cost: f64) {
        self.asked += 1;
        self.gain += gain;
        self.cost += cost;
        if self.asked < self.span {
            return;
        }
        if self.gain < self.cost {
            self.pause = self.next_pause;
            self.next_pause = (2 * self.next_pause).min(PAUSES.1);
            self.span = TRIAL;
        } else {
            self.next_pause = PAUSES.0;
            self.span = SPAN;
        }
        (self.asked, self.gain, self.cost) = (0, 0.0, 0.0);
    }

    /// Takes in a step in which it was not asked.
    pub fn pass(&mut self) {
        self.pause = self.pause.saturating_sub(1);
    }

    /// A new text: what did not pay in the last may pay in this one, and is tried soon.
    pub fn reset(&mut self) {
        self.pause = 0;
        self.next_pause = PAUSES.0;
        (self.asked, self.gain, self.cost) = (0, 0.0, 0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `steps`, those in which a drafter of this gain and cost is asked.
    fn asked(gate: &mut Gate, steps: u32, gain: f64, cost: f64) -> u32 {
        let mut asked = 0;
        for _ in 0..steps {
            if gate.is_open() {
                asked += 1;
                gate.note(gain, cost);
            } else {
                gate.pass();
            }
        }
        asked
    }

    #[test]
    fn what_pays_is_always_asked() {
        assert_eq!(asked(&mut Gate::default(), 1000, 0.2, 0.05), 1000);
    }

    #[test]
    fn what_does_not_pay_is_asked_less_and_less() {
        let mut gate = Gate::default();
        assert_eq!(asked(&mut gate, 32, 0.0, 0.05), 32);
        assert!(!gate.is_open());
        // Pauses of 64, 128, 256, 512 and 1024 with trials of 8 between them.
        assert_eq!(asked(&mut gate, 64 + 128 + 256 + 512 + 1024 + 32, 0.0, 0.05), 32);
    }

    #[test]
    fn it_comes_back_when_it_pays_again() {
        let mut gate = Gate::default();
        asked(&mut gate, 500, 0.0, 0.05);
        let later = asked(&mut gate, 2000, 0.3, 0.05);
        assert!(later > 1500, "{later}");
        asked(&mut gate, 32, 0.0, 0.05);
        gate.reset();
        assert!(gate.is_open());
    }
}
