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
//! One that has to read the text before it can guess, a model, would pay for that again at each trial.
//! It is closed as soon as it has lost [`LOSS`] plain steps, for the rest of the text and for 1, 2, 4 and
//! up to 16 more; what it reads at the beginning is spent whatever is decided, and not held against it.
//!
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
/// Plain steps that a drafter which reads may lose in a text.
const LOSS: f64 = 3.0;
/// The most texts that it is left out of then.
const MOST_SKIPPED: u32 = 16;

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
    /// Of a drafter that has to read a text before it can guess.
    reader: Option<Reader>,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Reader {
    /// Whether it has read this text.
    began: bool,
    /// Texts that it is still left out of, and of how many after the next failure.
    skip: u32,
    next_skip: u32,
}

impl Default for Gate {
    fn default() -> Self {
        let next_pause = PAUSES.0;
        Self { pause: 0, next_pause, asked: 0, span: SPAN, gain: 0.0, cost: 0.0, reader: None }
    }
}

impl Gate {
    /// That of a drafter which has to read a text before it can guess.
    pub fn of_reader() -> Self {
        Self { reader: Some(Reader { next_skip: 1, ..Reader::default() }), ..Self::default() }
    }

    /// Whether the drafter is to be asked in the coming step.
    pub fn is_open(&self) -> bool {
        self.pause == 0
    }

    /// Whether what it takes next is mostly reading the text.
    pub fn is_to_read(&self) -> bool {
        self.reader.as_ref().is_some_and(|reader| !reader.began)
    }

    /// Takes in a step in which the drafter was asked, and what it brought and took.
    pub fn note(&mut self, gain: f64, cost: f64) {
        self.asked += 1;
        if let Some(reader) = &mut self.reader
            && !std::mem::replace(&mut reader.began, true)
        {
            return;
        }
        self.gain += gain;
        self.cost += cost;
        let lost = self.reader.is_some() && self.cost - self.gain > LOSS;
        if self.asked < self.span && !lost {
            return;
        }
        if let Some(reader) = &mut self.reader {
            if self.gain < self.cost {
                // Longer than any text.
                self.pause = u32::MAX;
                reader.skip = reader.next_skip;
                reader.next_skip = (2 * reader.next_skip).min(MOST_SKIPPED);
            } else {
                reader.next_skip = 1;
            }
            (self.asked, self.gain, self.cost) = (0, 0.0, 0.0);
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
        if let Some(reader) = &mut self.reader {
            reader.began = false;
            if reader.skip > 0 {
                reader.skip -= 1;
                self.pause = u32::MAX;
            }
        }
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
    fn one_that_reads_loses_a_few_steps_in_a_text_and_skips_more_and_more_texts() {
        let mut gate = Gate::of_reader();
        // The first step is the reading's, however long; then 0.5 steps are lost at each.
        gate.note(0.0, 100.0);
        let texts: Vec<u32> = (0..40)
            .map(|_| {
                let asked = asked(&mut gate, 500, 0.5, 1.0);
                gate.reset();
                asked
            })
            .collect();
        assert_eq!(texts[..2], [7, 0]);
        let tried: Vec<usize> = (0..40).filter(|&text| texts[text] > 0).collect();
        assert_eq!(tried, [0, 2, 5, 10, 19, 36]);
        assert!(tried[1..].iter().all(|&text| texts[text] == 8));
        // It pays again, and is asked in every text from then on.
        (0..17).for_each(|_| gate.reset());
        assert_eq!(asked(&mut gate, 500, 1.5, 1.0), 500);
        gate.reset();
        assert_eq!(asked(&mut gate, 7, 0.0, 1.0), 5);
        gate.reset();
        gate.reset();
        assert!(gate.is_open());
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
