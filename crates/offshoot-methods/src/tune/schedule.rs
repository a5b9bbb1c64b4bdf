//! Learning rates over a run.
//!
//! The curves are those of transformers' `get_scheduler`
//! (<https://huggingface.co/docs/transformers/main_classes/optimizer_schedules>); of them we depart in
//! the warm-up, whose first step there has a rate of zero and so does nothing. The cosine is Loshchilov
//! and Hutter's, 2017, <https://arxiv.org/abs/1608.03983>, equation 5, without restarts.

use serde::{Deserialize, Serialize};

use super::probing::within;
use crate::Error;

/// How the rate goes on after the warm-up, with `p` from 0 at its end to 1 at the end of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Curve {
    /// 1: what zeroth-order runs use (MeZO, appendix).
    #[default]
    Constant,
    /// `1 - p`.
    Linear,
    /// `(1 + cos(pi p)) / 2`.
    Cosine,
}

/// A learning rate's share of its base in each step: from `1 / warmup` up to 1 in the first
/// `warmup` steps, then along the curve down to `floor`. A run of more steps than this stays at the
/// end.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Schedule {
    /// The curve.
    pub curve: Curve,
    /// Steps of warm-up.
    pub warmup: u32,
    /// Steps of the run, the warm-up among them.
    pub steps: u32,
    /// Where the curve ends, as a share of the base.
    pub floor: f64,
}

impl Schedule {
    /// Checks the fields against their bounds.
    ///
    /// # Errors
    /// [`Error::Option`] names the first field outside its bounds, and the bounds.
    pub fn validate(&self) -> Result<(), Error> {
        within("floor", self.floor, 0.0..=1.0, "between 0 and 1")?;
        let most = f64::from(self.steps);
        within("warmup", f64::from(self.warmup), 0.0..=most, "at most the steps of the run")
    }

    /// The rate of step `step`, counted from 0, with base `base`.
    pub fn rate(&self, base: f64, step: u32) -> f64 {
        base * self.share(step)
    }

    fn share(&self, step: u32) -> f64 {
        if step < self.warmup {
            return f64::from(step + 1) / f64::from(self.warmup);
        }
        let length = f64::from(self.steps.saturating_sub(self.warmup).max(1));
        let p = (f64::from(step - self.warmup) / length).min(1.0);
        let curve = match self.curve {
            Curve::Constant => return 1.0,
            Curve::Linear => 1.0 - p,
            // Not the system's: a run's bits do not depend on the C library.
            Curve::Cosine => 0.5 * (1.0 + libm::cos(std::f64::consts::PI * p)),
        };
        self.floor + (1.0 - self.floor) * curve
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_is_constant_after_the_warm_up() {
        let schedule = Schedule { warmup: 4, steps: 10, ..Schedule::default() };
        let rates: Vec<f64> = (0..12).map(|step| schedule.rate(2.0, step)).collect();
        assert_eq!(rates[..5], [0.5, 1.0, 1.5, 2.0, 2.0]);
        assert!(rates[5..].iter().all(|&rate| rate == 2.0));
    }

    #[test]
    fn linear_and_cosine_go_from_one_to_the_floor() {
        for curve in [Curve::Linear, Curve::Cosine] {
            let schedule = Schedule { curve, warmup: 2, steps: 10, floor: 0.1 };
            let rates: Vec<f64> = (2..14).map(|step| schedule.rate(1.0, step)).collect();
            assert_eq!(rates[0], 1.0);
            assert!((rates[4] - 0.55).abs() < 1e-12, "half way: {}", rates[4]);
            assert!(rates[..9].windows(2).all(|pair| pair[0] > pair[1]));
            assert!(rates[8..].iter().all(|rate| (rate - 0.1).abs() < 1e-12));
        }
    }

    #[test]
    fn curves_are_those_of_the_formulas() {
        let rates = |curve, warmup, steps| -> Vec<f64> {
            let schedule = Schedule { curve, warmup, steps, floor: 0.0 };
            (0..steps).map(|step| schedule.rate(8.0, step)).collect()
        };
        assert_eq!(rates(Curve::Constant, 0, 3), [8.0; 3]);
        assert_eq!(rates(Curve::Linear, 0, 4), [8.0, 6.0, 4.0, 2.0]);
        assert_eq!(rates(Curve::Linear, 4, 6), [2.0, 4.0, 6.0, 8.0, 8.0, 4.0]);
        assert_eq!(rates(Curve::Linear, 2, 2), [4.0, 8.0]);
        let cosine = rates(Curve::Cosine, 0, 4);
        let half = 4.0 * (1.0 + std::f64::consts::FRAC_1_SQRT_2);
        for (got, expected) in cosine.iter().zip([8.0, half, 4.0, 8.0 - half]) {
            assert!((got - expected).abs() < 1e-12, "{cosine:?}");
        }
    }

    #[test]
    fn odd_lengths_divide_by_nothing() {
        for (warmup, steps) in [(0, 0), (5, 5), (0, 1)] {
            let schedule = Schedule { curve: Curve::Linear, warmup, steps, floor: 0.0 };
            assert!((0..8).all(|step| schedule.rate(1.0, step).is_finite()));
        }
        let long = Schedule { warmup: 9, steps: 5, ..Schedule::default() };
        assert!(long.validate().unwrap_err().to_string().contains("warmup"));
    }
}
