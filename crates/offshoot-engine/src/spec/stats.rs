//! What an answer's drafts came to.

use std::time::Duration;

use offshoot_methods::draft::Contribution;
use serde::Serialize;

use super::Acceptance;

/// One drafter's part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct DrafterStats {
    /// Its name.
    pub name: &'static str,
    /// Its guesses among those that were checked.
    pub proposed: usize,
    /// Those that were right.
    pub accepted: usize,
}

/// What the margin guard did, where a row's logits depend on the rows beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
pub struct GuardStats {
    /// Choices that were made from rows other than those of plain decoding.
    pub asked: usize,
    /// Those that were in doubt, and left to a plain step.
    pub acted: usize,
    /// Rows that were made anew before those steps.
    pub remade: usize,
}

impl GuardStats {
    /// The share of choices that were in doubt.
    pub fn rate(&self) -> f64 {
        self.acted as f64 / self.asked.max(1) as f64
    }
}

/// Counts and times of the steps that made an answer's tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Default)]
pub struct SpecStats {
    /// The rule by which guesses stood.
    pub acceptance: Acceptance,
    /// Steps.
    pub steps: usize,
    /// Tokens they decided.
    pub tokens: usize,
    /// Guesses they checked.
    pub guesses: usize,
    /// Tokens that the trees promised, by the drafters' calibrated chances.
    pub promised: f64,
    /// By drafter; a guess of two is counted for both.
    pub drafters: Vec<DrafterStats>,
    /// Time in drafting and in learning from it.
    pub draft: Duration,
    /// Time in the model's steps and the choice of tokens.
    pub check: Duration,
    /// Time in keeping the right rows, and in making rows anew.
    pub commit: Duration,
    /// What the guard did, if there was one.
    pub guard: Option<GuardStats>,
}

impl SpecStats {
    pub(crate) fn new(names: impl Iterator<Item = &'static str>) -> Self {
        let drafters = names.map(|name| DrafterStats { name, proposed: 0, accepted: 0 }).collect();
        Self { drafters, ..Self::default() }
    }

    pub(crate) fn reset(&mut self, acceptance: Acceptance) {
        let mut drafters = std::mem::take(&mut self.drafters);
        drafters.iter_mut().for_each(|d| (d.proposed, d.accepted) = (0, 0));
        *self = Self { acceptance, drafters, ..Self::default() };
    }

    pub(crate) fn credit(&mut self, contributions: &[Contribution]) {
        for (drafter, contribution) in self.drafters.iter_mut().zip(contributions) {
            drafter.proposed += contribution.proposed as usize;
            drafter.accepted += contribution.accepted as usize;
        }
    }

    /// Credits one drafter with what it drew.
    pub(crate) fn credit_draws(&mut self, drafter: usize, draws: Contribution) {
        self.drafters[drafter].proposed += draws.proposed as usize;
        self.drafters[drafter].accepted += draws.accepted as usize;
    }

    /// Tokens a step.
    pub fn tokens_per_step(&self) -> f64 {
        self.tokens as f64 / self.steps.max(1) as f64
    }

    /// Tokens a step that the trees promised.
    pub fn promised_per_step(&self) -> f64 {
        self.promised / self.steps.max(1) as f64
    }
}
