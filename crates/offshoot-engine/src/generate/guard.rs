//! That drafting changes no token where rows depend on the rows beside them.
//!
//! There, a row of a step of several is not the row that plain decoding computes, nor is a row of one
//! behind a cache that such steps have filled; but the logits of both are near it, see
//! [`Runner::noise`](crate::runner::Runner::noise). A choice that no change within that bound would
//! change is the choice of plain decoding, and stands. At another the step ends: what was put into the
//! cache since plain decoding would last have put the same is made anew row by row, as plain decoding
//! makes it, and one plain step decides the token.

use offshoot_methods::SamplingOptions;
use offshoot_methods::draft::{Margin, greatest_magnitude};

use crate::spec::GuardStats;

/// Which choices of an answer stand.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// What logits may change by, over a row's greatest magnitude; `None` where they do not.
    noise: Option<f32>,
    margin: Margin,
    /// Tokens at the start of the cache whose rows are those of plain decoding.
    plain: usize,
    /// Whether the rows of this step are.
    exact: bool,
    /// Whether the next step is to be one of plain decoding.
    owes: bool,
    stats: GuardStats,
}

impl Guard {
    pub(super) fn new(noise: Option<f32>) -> Self {
        Self { noise, ..Self::default() }
    }

    /// What logits may change by, over a row's greatest magnitude.
    pub(super) fn noise(&self) -> Option<f32> {
        self.noise
    }

    pub(super) fn set_noise(&mut self, noise: f32) {
        self.noise = self.noise.map(|_| noise);
    }

    /// An answer begins behind `cached` tokens that are read as plain decoding reads them.
    pub(super) fn begin(&mut self, cached: usize) {
        (self.plain, self.owes, self.stats) = (cached, false, GuardStats::default());
    }

    /// What it came to, if there was anything to guard.
    pub(super) fn stats(&self) -> Option<GuardStats> {
        self.noise.map(|_| self.stats)
    }

    /// Whether the next step must have one row.
    pub(super) fn owes_a_plain_step(&self) -> bool {
        self.owes
    }

    /// A step of `rows` rows is made behind `cached` tokens.
    pub(super) fn begin_step(&mut self, rows: usize, cached: usize) {
        self.exact = self.noise.is_none() || (rows == 1 && self.plain == cached);
        self.owes = false;
    }

    /// By how much the model's own `logits` of a row may differ from those of plain decoding; `None`
    /// if not at all.
    pub(super) fn error_of(&self, logits: &[f32]) -> Option<f32> {
        let noise = self.noise.filter(|_| !self.exact)?;
        Some(noise * greatest_magnitude(logits))
    }

    /// Whether `token`, chosen by `options` and `u` from what are now `logits`, would have been chosen
    /// by plain decoding. If that is not sure, the next step is to be plain.
    pub(super) fn stands(
        &mut self,
        logits: &[f32],
        token: u32,
        (options, u): (&SamplingOptions, f64),
        error: f32,
    ) -> bool {
        let sure = self.margin.is_sure(logits, token, options, u, error);
        self.stats.asked += 1;
        self.stats.acted += usize::from(!sure);
        self.owes |= !sure;
        sure
    }

    /// A step kept rows, so that `cached` tokens are there now.
    pub(super) fn end_step(&mut self, cached: usize) {
        if self.exact {
            self.plain = cached;
        }
    }

    /// Where to make the cache of `cached` tokens anew from, one by one, before a plain step.
    pub(super) fn remake_from(&mut self, cached: usize) -> usize {
        self.stats.remade += cached - self.plain;
        std::mem::replace(&mut self.plain, cached)
    }
}
