//! Examples as texts whose tokens are to be predicted.

use std::borrow::Cow;

use offshoot_models::{DenseTuning, DraftTarget, TextTarget};

use super::heads::Drafting;
use super::options::ChoiceLoss;
use crate::Error;
use crate::tune::{Example, Sequence};

/// What one term of a mean weighs in a batch's loss: the mean over tokens, and the mean over choices that
/// are scored as such.
pub(super) struct Shares {
    token: f64,
    choice: f64,
}

impl Shares {
    /// Of all of a batch.
    ///
    /// # Errors
    /// [`Error::Training`] if nothing is trained on, or an example is of a kind that has no such loss.
    pub(super) fn of(batch: &[&Example], loss: ChoiceLoss) -> Result<Self, Error> {
        let (mut tokens, mut choices) = (0, 0);
        for example in batch {
            match (example, loss) {
                (Example::Text(text) | Example::Answer { gold: text, .. }, _) => {
                    tokens += text.targets();
                }
                (Example::Choice { .. }, ChoiceLoss::Candidates) => choices += 1,
                (Example::Choice { candidates, answers, .. }, ChoiceLoss::Language) => {
                    tokens += right(candidates, answers)?.1.len();
                }
                (Example::Preference { .. }, _) => {
                    let what = "pairs of texts of which one is better have no loss here";
                    return Err(Error::Training(what.to_owned()));
                }
            }
        }
        if tokens + choices == 0 {
            return Err(Error::Training("no token of the batch is trained on".to_owned()));
        }
        let share = |n: usize| if n == 0 { 0.0 } else { 1.0 / n as f64 };
        Ok(Self { token: share(tokens), choice: share(choices) })
    }
}

/// The candidate that is trained on, and its place.
fn right<'a>(candidates: &'a [Vec<u32>], answers: &[usize]) -> Result<(usize, &'a [u32]), Error> {
    let place = answers.first().copied().unwrap_or(usize::MAX);
    match candidates.get(place) {
        Some(tokens) if !tokens.is_empty() => Ok((place, tokens)),
        _ => Err(Error::Training("a choice without a right candidate".to_owned())),
    }
}

/// The text of each example whose tokens are to be predicted.
///
/// # Errors
/// [`Error::Training`] if a choice has no right candidate.
pub(super) fn sequences<'a>(
    batch: &[&'a Example],
    loss: ChoiceLoss,
) -> Result<Vec<Option<Cow<'a, Sequence>>>, Error> {
    let of = |example: &&'a Example| match (*example, loss) {
        (Example::Text(text) | Example::Answer { gold: text, .. }, _) => {
            Ok(Some(Cow::Borrowed(text)))
        }
        (Example::Choice { prompt, candidates, answers }, ChoiceLoss::Language) => {
            Ok(Some(Cow::Owned(Sequence::of(prompt, right(candidates, answers)?.1))))
        }
        _ => Ok(None),
    };
    batch.iter().map(of).collect()
}

/// A text that is run.
pub(super) struct Text<'a> {
    /// The tokens.
    pub(super) tokens: Cow<'a, [u32]>,
    /// The place of its example among the micro-batch's, and its own among that one's texts.
    pub(super) example: usize,
    pub(super) number: usize,
}

/// The texts of some examples and what is to be predicted in them.
pub(super) struct MicroBatch<'a> {
    /// The texts.
    pub(super) texts: Vec<Text<'a>>,
    /// The tokens, with their weights in the batch's loss.
    pub(super) targets: Vec<TextTarget>,
    /// What draft heads are to guess.
    pub(super) drafts: Vec<DraftTarget>,
    /// The loss, where it is not the sum that the weights say: of choices, whose weights are its slopes.
    pub(super) loss: Option<f64>,
}

impl<'a> MicroBatch<'a> {
    /// Of `examples`, with what they weigh in their batch. Choices that are scored are scored by `tuning`.
    ///
    /// # Errors
    /// [`Error::Training`] if a choice has no right candidate; [`Error::Model`] if the model cannot run
    /// its texts.
    pub(super) fn new(
        tuning: &DenseTuning,
        examples: &[&'a Example],
        shares: &Shares,
        loss: ChoiceLoss,
    ) -> Result<Self, Error> {
        let mut all =
            Self { texts: Vec::new(), targets: Vec::new(), drafts: Vec::new(), loss: None };
        let mut choices = Vec::new();
        for (place, example) in examples.iter().enumerate() {
            match (example, loss) {
                (Example::Text(text) | Example::Answer { gold: text, .. }, _) => {
                    all.add_text(text, place, shares.token);
                }
                (Example::Choice { prompt, candidates, answers }, ChoiceLoss::Language) => {
                    let (_, tokens) = right(candidates, answers)?;
                    let whole = [prompt.as_slice(), tokens].concat();
                    let text = all.add(Cow::Owned(whole), place, 0);
                    all.predict(text, prompt.len(), tokens, shares.token);
                }
                (Example::Choice { prompt, candidates, answers }, ChoiceLoss::Candidates) => {
                    choices.push(all.add_choice(
                        prompt,
                        candidates,
                        right(candidates, answers)?.0,
                        place,
                    ));
                }
                (Example::Preference { .. }, _) => {}
            }
        }
        if !choices.is_empty() {
            all.weigh(tuning, &choices, shares.choice)?;
        }
        Ok(all)
    }

    /// Adds what draft heads are to guess; `sequences` begins with those of its examples.
    pub(super) fn draft(
        &mut self,
        drafting: &Drafting<'_>,
        sequences: &[Option<Cow<'_, Sequence>>],
    ) {
        for (text, Text { example, .. }) in self.texts.iter().enumerate() {
            if let Some(Some(sequence)) = sequences.get(*example) {
                drafting.add(sequence, text, &mut self.drafts);
            }
        }
    }

    /// Tokens that are run.
    pub(super) fn tokens(&self) -> usize {
        self.texts.iter().map(|text| text.tokens.len()).sum()
    }

    fn add(&mut self, tokens: Cow<'a, [u32]>, example: usize, number: usize) -> usize {
        self.texts.push(Text { tokens, example, number });
        self.texts.len() - 1
    }

    /// Text `text` has `tokens` from place `first` on, each of which is to be predicted.
    fn predict(&mut self, text: usize, first: usize, tokens: &[u32], weight: f64) {
        let places = (first..).zip(tokens).filter(|(at, _)| *at > 0);
        let targets = places.map(|(at, &token)| TextTarget { text, place: at - 1, token, weight });
        self.targets.extend(targets);
    }

    fn add_text(&mut self, sequence: &'a Sequence, example: usize, weight: f64) {
        let last = sequence.trained.iter().rposition(|&trained| trained);
        let Some(last) = last.filter(|&last| last > 0) else { return };
        // What stands behind the last token that counts changes nothing.
        let text = self.add(Cow::Borrowed(&sequence.tokens[..last]), example, 0);
        for at in 1..=last {
            if sequence.trained[at] {
                let token = sequence.tokens[at];
                self.targets.push(TextTarget { text, place: at - 1, token, weight });
            }
        }
    }

    /// Candidates of one token each are compared at one row; others are texts of their own.
    fn add_choice(
        &mut self,
        prompt: &'a [u32],
        candidates: &[Vec<u32>],
        right: usize,
        example: usize,
    ) -> Choice {
        let first = self.targets.len();
        if !prompt.is_empty() && candidates.iter().all(|candidate| candidate.len() == 1) {
            let text = self.add(Cow::Borrowed(prompt), example, 0);
            for candidate in candidates {
                self.predict(text, prompt.len(), candidate, 0.0);
            }
        } else {
            for (number, candidate) in candidates.iter().enumerate() {
                let whole = [prompt, candidate.as_slice()].concat();
                let text = self.add(Cow::Owned(whole), example, number);
                self.predict(text, prompt.len(), candidate, 0.0);
            }
        }
        let lens = candidates.iter().map(|candidate| candidate.len());
        // The first token of all has nothing before it.
        let unseen = usize::from(prompt.is_empty());
        Choice { first, lens: lens.map(|len| len - unseen.min(len)).collect(), right }
    }

    /// Gives the targets of choices the slopes of their losses.
    fn weigh(&mut self, tuning: &DenseTuning, choices: &[Choice], share: f64) -> Result<(), Error> {
        let texts: Vec<&[u32]> = self.texts.iter().map(|text| text.tokens.as_ref()).collect();
        let logs = tuning.score(&texts, &self.targets)?;
        let mut loss: f64 =
            self.targets.iter().zip(&logs).map(|(target, (log, _))| -target.weight * log).sum();
        for choice in choices {
            loss += share * choice.weigh(&logs, &mut self.targets, share);
        }
        self.loss = Some(loss);
        Ok(())
    }
}

/// A choice between candidates whose targets stand one behind the other.
struct Choice {
    first: usize,
    /// How many targets each candidate has.
    lens: Vec<usize>,
    right: usize,
}

impl Choice {
    /// The loss, and its slopes into the weights of the targets, times `share`.
    fn weigh(&self, logs: &[(f64, bool)], targets: &mut [TextTarget], share: f64) -> f64 {
        let mut first = self.first;
        let mut scores = Vec::with_capacity(self.lens.len());
        for &len in &self.lens {
            let of_it = &logs[first..first + len];
            scores.push(of_it.iter().map(|(log, _)| log).sum::<f64>() / len.max(1) as f64);
            first += len;
        }
        let greatest = scores.iter().fold(f64::NEG_INFINITY, |m, &s| m.max(s));
        let total: f64 = scores.iter().map(|s| (s - greatest).exp()).sum();
        let log = greatest + total.ln();
        first = self.first;
        for (candidate, (&len, score)) in self.lens.iter().zip(&scores).enumerate() {
            let wanted = if candidate == self.right { 1.0 } else { 0.0 };
            let slope = (wanted - (score - log).exp()) / len.max(1) as f64;
            targets[first..first + len].iter_mut().for_each(|t| t.weight = share * slope);
            first += len;
        }
        log - scores[self.right]
    }
}
