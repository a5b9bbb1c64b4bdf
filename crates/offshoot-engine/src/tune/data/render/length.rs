//! Rows that are too long.
//!
//! What is cut first is the left of the prompt, behind the begin-of-text token: what is asked stands
//! at its end. Where that is not enough, the prompt keeps half of the length and the right of what
//! is learned is cut, the end token with it.

use serde::{Deserialize, Serialize};

use super::Rendered;
use crate::tune::{Example, Sequence};

/// What becomes of a row that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// It is cut.
    #[default]
    Cut,
    /// It is left out.
    Drop,
}

/// How long a sequence may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Length {
    /// Tokens of a sequence at most, at least 2.
    pub max: usize,
    /// What becomes of longer ones.
    pub overlong: Overlong,
}

impl Default for Length {
    /// TRL's default of `max_length`.
    fn default() -> Self {
        Self { max: 1024, overlong: Overlong::Cut }
    }
}

impl Length {
    /// Texts, each fitted on its own.
    pub(super) fn texts(self, sequences: Vec<Sequence>, begin: Option<u32>) -> Rendered {
        let mut rendered = Rendered::default();
        for sequence in sequences {
            rendered.cut |= sequence.tokens.len() > self.max;
            rendered.examples.extend(self.fit(sequence, begin).map(Example::Text));
        }
        rendered.cut &= !rendered.examples.is_empty();
        rendered
    }

    /// A choice, whose prompt gives way to the longest candidate.
    pub(super) fn choice(self, mut example: Example, begin: Option<u32>) -> Rendered {
        let Example::Choice { prompt, candidates, .. } = &mut example else {
            return Rendered::default();
        };
        let longest = candidates.iter().map(Vec::len).max().unwrap_or(0);
        let over = (prompt.len() + longest).saturating_sub(self.max);
        if over > 0 && (self.overlong == Overlong::Drop || !shorten(prompt, over, begin)) {
            return Rendered::default();
        }
        Rendered { examples: vec![example], cut: over > 0 }
    }

    /// An answer, whose prompt gives way to the gold one.
    pub(super) fn answer(self, mut example: Example, begin: Option<u32>) -> Rendered {
        let Example::Answer { gold, prompt, .. } = &mut example else {
            return Rendered::default();
        };
        let long = gold.tokens.len() > self.max;
        match self.fit(std::mem::take(gold), begin) {
            Some(fitted) => {
                *prompt = fitted.trained.iter().position(|&t| t).unwrap_or(*prompt);
                *gold = fitted;
                Rendered { examples: vec![example], cut: long }
            }
            None => Rendered::default(),
        }
    }

    /// A pair, whose prompts lose the same tokens.
    pub(super) fn preference(
        self,
        (mut chosen, mut rejected): (Sequence, Sequence),
        rewards: Option<[f64; 2]>,
        begin: Option<u32>,
    ) -> Rendered {
        let longest = chosen.tokens.len().max(rejected.tokens.len());
        let over = longest.saturating_sub(self.max);
        if over > 0 {
            let fits = self.overlong == Overlong::Cut
                && [&mut chosen, &mut rejected].into_iter().all(|s| s.shorten(over, begin));
            if !fits {
                return Rendered::default();
            }
        }
        let pair = Example::Preference { chosen, rejected, rewards };
        Rendered { examples: vec![pair], cut: over > 0 }
    }

    /// The sequence in the length, if something of it can still be learned.
    fn fit(self, mut sequence: Sequence, begin: Option<u32>) -> Option<Sequence> {
        let over = sequence.tokens.len().saturating_sub(self.max);
        if over == 0 {
            return Some(sequence);
        }
        if self.overlong == Overlong::Drop {
            return None;
        }
        if !sequence.shorten(over, begin) {
            let prompt = sequence.prompt();
            sequence.shorten(prompt.saturating_sub((self.max / 2).max(1)), begin);
            sequence.tokens.truncate(self.max);
            sequence.trained.truncate(self.max);
        }
        (sequence.targets() > 0).then_some(sequence)
    }
}

/// Takes `over` tokens from the left of `prompt`, behind the begin-of-text token. Leaves it as it is
/// if no token of its own would be left.
fn shorten(prompt: &mut Vec<u32>, over: usize, begin: Option<u32>) -> bool {
    let kept = usize::from(begin.is_some() && prompt.first().copied() == begin);
    let fits = prompt.len() > kept + over;
    if fits {
        prompt.drain(kept..kept + over);
    }
    fits
}

impl Sequence {
    /// Tokens before the first that is trained on.
    fn prompt(&self) -> usize {
        self.trained.iter().position(|&t| t).unwrap_or(self.trained.len())
    }

    /// Takes `over` tokens from the left of what stands before the first trained one.
    fn shorten(&mut self, over: usize, begin: Option<u32>) -> bool {
        let mut prompt = self.tokens[..self.prompt()].to_vec();
        let before = prompt.len();
        if !shorten(&mut prompt, over, begin) {
            return false;
        }
        self.trained.drain(..before - prompt.len());
        self.tokens.splice(..before, prompt);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUT: Length = Length { max: 6, overlong: Overlong::Cut };

    fn texts(of: &Rendered) -> Vec<Vec<u32>> {
        let tokens = |example: &Example| match example {
            Example::Text(sequence) => sequence.tokens.clone(),
            other => panic!("{other:?}"),
        };
        of.examples.iter().map(tokens).collect()
    }

    #[test]
    fn the_left_of_the_prompt_goes_first_and_the_begin_stays() {
        let sequence = Sequence::of(&[1, 2, 3, 4, 5], &[6, 7, 8]);
        let cut = CUT.texts(vec![sequence.clone()], Some(1));
        assert_eq!((texts(&cut), cut.cut), (vec![vec![1, 4, 5, 6, 7, 8]], true));
        let cut = CUT.texts(vec![sequence.clone()], None);
        assert_eq!(texts(&cut), [[3, 4, 5, 6, 7, 8]]);
        let Example::Text(Sequence { trained, .. }) = &cut.examples[0] else { panic!() };
        assert_eq!(*trained, [false, false, false, true, true, true]);
        let drop = Length { overlong: Overlong::Drop, ..CUT };
        assert_eq!(drop.texts(vec![sequence.clone()], None), Rendered::default());
        // An answer that goes is told where others of its conversation stay.
        let beside = drop.texts(vec![sequence, Sequence::of(&[1], &[2])], None);
        assert_eq!((texts(&beside), beside.cut), (vec![vec![1, 2]], true));
    }

    #[test]
    fn what_is_learned_is_cut_where_the_prompt_is_not_enough() {
        let sequence = Sequence::of(&[1, 2, 3, 4], &[5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(texts(&CUT.texts(vec![sequence], None)), [[2, 3, 4, 5, 6, 7]]);
        let text = Sequence::of(&[], &[1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(texts(&CUT.texts(vec![text], None)), [[1, 2, 3, 4, 5, 6]]);
    }

    #[test]
    fn candidates_and_pairs_keep_one_prompt() {
        let choice = |prompt: &[u32]| Example::Choice {
            prompt: prompt.to_vec(),
            candidates: vec![vec![7], vec![8, 9]],
            answers: vec![0],
        };
        let cut = CUT.choice(choice(&[1, 2, 3, 4, 5, 6]), Some(1));
        assert_eq!(cut, Rendered { examples: vec![choice(&[1, 4, 5, 6])], cut: true });
        let (a, b) =
            (Sequence::of(&[1, 2, 3, 4, 5], &[6]), Sequence::of(&[1, 2, 3, 4, 5], &[7, 8]));
        let cut = CUT.preference((a, b), Some([2.0, -1.0]), None);
        let (a, b) = (Sequence::of(&[2, 3, 4, 5], &[6]), Sequence::of(&[2, 3, 4, 5], &[7, 8]));
        let rewards = Some([2.0, -1.0]);
        assert_eq!(cut.examples, [Example::Preference { chosen: a, rejected: b, rewards }]);
    }

    #[test]
    fn an_answer_knows_where_its_shortened_prompt_ends() {
        let gold = Sequence::of(&[1, 2, 3, 4, 5, 6], &[7, 8]);
        let example = Example::Answer { gold, prompt: 6, answers: vec!["x".to_owned()] };
        let cut = CUT.answer(example, None);
        let Example::Answer { gold, prompt, .. } = &cut.examples[0] else { panic!() };
        assert_eq!((gold.tokens.len(), *prompt), (6, 4));
    }
}
