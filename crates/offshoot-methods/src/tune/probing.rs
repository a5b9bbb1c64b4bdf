//! Simultaneous perturbation: how a slope along random directions is measured, and which
//! measurements are believed.
//!
//! Spall 1992, <https://doi.org/10.1109/9.119632>; as used by Malladi et al. 2023, definition 1,
//! <https://arxiv.org/abs/2305.17333>:
//! ```text
//! l+ = L(w + eps z; B)    l- = L(w - eps z; B)    g = (l+ - l-) / (2 eps)
//! grad L ~ (1/n) sum over j of g_j z_j
//! ```
//! z: direction with independent, symmetric entries of variance 1; n: directions a step; B: the
//! step's batch, the same in all.
//!
//! On a quadratic `g` is exact. With d entries `E |g z|^2 = (d + n + 1)/n |grad|^2` for Gaussian
//! and
//! `(d + n - 1)/n |grad|^2` for Rademacher entries, so the cosine of one estimate with the gradient
//! is about `sqrt(n / d)`: small, and not a fault.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use super::{Direction, Guarded, Probe, Term};
use crate::Error;

/// How slopes are measured and guarded; part of every method's options.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbeOptions {
    /// `eps`: how far a probe goes along a direction. Default 1e-3 (MeZO's appendix, full tuning
    /// of OPT; 1e-2 for LoRA and 1e-1 for prefixes there).
    pub eps: f64,
    /// `n`: directions a step, all on the same batch. Default 1 (MeZO, section 2.1).
    pub directions: u32,
    /// Numbers beyond this magnitude are cut to it. Default none.
    pub clip_g: Option<f64>,
    /// Numbers beyond this many times the running median of magnitudes are thrown away; 20 is a
    /// cautious choice. Default none, as in the papers.
    pub clip_z: Option<f64>,
}

impl Default for ProbeOptions {
    fn default() -> Self {
        Self { eps: 1e-3, directions: 1, clip_g: None, clip_z: None }
    }
}

/// Directions a step may draw: an index has 24 bits, and the upper half is the rate's own.
pub(crate) const DIRECTIONS_MAX: u32 = 1 << 16;

impl ProbeOptions {
    /// Checks every field against its bounds.
    ///
    /// # Errors
    /// [`Error::Option`] names the first field outside its bounds, and the bounds.
    pub fn validate(&self) -> Result<(), Error> {
        within("probe.eps", self.eps, 1e-10..=1e3, "between 1e-10 and 1000")?;
        let n = f64::from(self.directions);
        let most = f64::from(DIRECTIONS_MAX);
        within("probe.directions", n, 1.0..=most, "between 1 and 65536")?;
        for (field, clip) in [("probe.clip_g", self.clip_g), ("probe.clip_z", self.clip_z)] {
            let bound = "a positive number, or absent";
            within(field, clip.unwrap_or(1.0), f64::MIN_POSITIVE..=f64::MAX, bound)?;
        }
        Ok(())
    }

    /// The two points of each direction: `+eps`, `-eps`, `+eps`, ...
    pub(crate) fn two_sided(&self, directions: &[Direction], base: &[Term]) -> Vec<Probe> {
        let point = |direction: &Direction, eps: f64| {
            let term = Term { scale: eps as f32, direction: direction.clone() };
            Probe { terms: base.iter().cloned().chain([term]).collect() }
        };
        let both = |direction| [point(direction, self.eps), point(direction, -self.eps)];
        directions.iter().flat_map(both).collect()
    }

    /// The slopes that the losses at [`Self::two_sided`] points say.
    pub(crate) fn slopes(&self, losses: &[f64]) -> Vec<f64> {
        // What was added is eps in single precision.
        let eps = f64::from(self.eps as f32);
        losses.chunks_exact(2).map(|pair| (pair[0] - pair[1]) / (2.0 * eps)).collect()
    }
}

/// Refuses a `got` outside `range`, NaN above all.
pub(crate) fn within(
    field: &'static str,
    got: f64,
    range: std::ops::RangeInclusive<f64>,
    bound: &'static str,
) -> Result<(), Error> {
    if range.contains(&got) {
        return Ok(());
    }
    Err(Error::Option { field, bound, got: got.to_string() })
}

/// Checks the rank of directions, and the steps that a factor of them is kept for.
pub(crate) fn within_low_rank(rank: u32, interval: u32) -> Result<(), Error> {
    within("rank", f64::from(rank), 1.0..=1024.0, "between 1 and 1024")?;
    within("interval", f64::from(interval), 1.0..=1e9, "between 1 and a billion")
}

/// How many magnitudes the running median looks back on.
const MEDIAN_WINDOW: usize = 101;
/// How many it must have seen before it throws anything away.
const MEDIAN_NEEDS: usize = 20;

/// Clipping and rejection. They work on recorded numbers, so that a replay does what the run did.
#[derive(Debug, Clone)]
pub(crate) struct Guards {
    clip_g: Option<f64>,
    clip_z: Option<f64>,
    /// The last magnitudes other than 0, the oldest first; empty if nothing is rejected.
    magnitudes: VecDeque<f32>,
}

impl Guards {
    pub(crate) fn new(options: &ProbeOptions) -> Self {
        let magnitudes = VecDeque::new();
        Self { clip_g: options.clip_g, clip_z: options.clip_z, magnitudes }
    }

    /// What of `numbers` goes on into the update, and what was done to them: those that stand out
    /// are 0, the others cut. All numbers of a step are judged by the steps before it.
    pub(crate) fn judge(&self, numbers: &[f32]) -> (Vec<f32>, Guarded) {
        let mut guarded = Guarded::default();
        let most = self.clip_g.map_or(f32::MAX, |clip| clip as f32);
        let outlier = self.outlier();
        let judge = |&number: &f32| {
            if number.abs() > outlier {
                guarded.rejected += 1;
                return 0.0;
            }
            guarded.clipped += u32::from(number.abs() > most);
            number.clamp(-most, most)
        };
        (numbers.iter().map(judge).collect(), guarded)
    }

    /// Takes a step's numbers into the median, those that were thrown away too: if all grow, they
    /// are soon believed. Zeros say nothing of the scale and are left out.
    pub(crate) fn remember(&mut self, numbers: &[f32]) {
        if self.clip_z.is_none() {
            return;
        }
        for number in numbers.iter().filter(|&&number| number != 0.0) {
            if self.magnitudes.len() == MEDIAN_WINDOW {
                self.magnitudes.pop_front();
            }
            self.magnitudes.push_back(number.abs());
        }
    }

    /// The largest magnitude that is believed.
    fn outlier(&self) -> f32 {
        let Some(times) = self.clip_z.filter(|_| self.magnitudes.len() >= MEDIAN_NEEDS) else {
            return f32::MAX;
        };
        let mut sorted: Vec<f32> = self.magnitudes.iter().copied().collect();
        sorted.sort_unstable_by(f32::total_cmp);
        (times * f64::from(sorted[(sorted.len() - 1) / 2])) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guards(clip_g: Option<f64>, clip_z: Option<f64>) -> Guards {
        Guards::new(&ProbeOptions { clip_g, clip_z, ..ProbeOptions::default() })
    }

    #[test]
    fn clipping_keeps_the_sign() {
        let (kept, guarded) = guards(Some(2.0), None).judge(&[1.0, -5.0, 2.0, 3.0]);
        assert_eq!(kept, [1.0, -2.0, 2.0, 2.0]);
        assert_eq!(guarded, Guarded { clipped: 2, rejected: 0 });
    }

    #[test]
    fn an_outlier_is_rejected_once_the_median_is_known() {
        let mut guards = guards(None, Some(20.0));
        guards.remember(&[1.0; 19]);
        assert_eq!(guards.judge(&[1e6]).0, [1e6]);
        guards.remember(&[-1.0]);
        assert_eq!(guards.judge(&[19.0, -21.0]).0, [19.0, 0.0]);
        assert_eq!(guards.judge(&[19.0, -21.0]).1, Guarded { clipped: 0, rejected: 1 });
    }

    #[test]
    fn a_new_scale_is_believed_after_half_a_window() {
        let mut guards = guards(None, Some(20.0));
        guards.remember(&[1.0; 200]);
        guards.remember(&[100.0; 50]);
        assert_eq!(guards.judge(&[100.0]).0, [0.0]);
        guards.remember(&[100.0]);
        assert_eq!(guards.judge(&[100.0]).0, [100.0]);
    }

    #[test]
    fn options_outside_their_bounds_are_named() {
        let wrong = [
            ProbeOptions { eps: 0.0, ..ProbeOptions::default() },
            ProbeOptions { eps: f64::NAN, ..ProbeOptions::default() },
            ProbeOptions { directions: 0, ..ProbeOptions::default() },
            ProbeOptions { clip_g: Some(-1.0), ..ProbeOptions::default() },
            ProbeOptions { clip_z: Some(0.0), ..ProbeOptions::default() },
        ];
        let fields = ["probe.eps", "probe.eps", "probe.directions", "probe.clip_g", "probe.clip_z"];
        for (options, field) in wrong.iter().zip(fields) {
            let error = options.validate().unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
        }
    }
}
