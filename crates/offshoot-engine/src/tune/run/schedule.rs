//! How the learning rate goes through a run.
//!
//! ```text
//! warm-up    rate = r (t + 1) / w                              t < w
//! constant   rate = r
//! linear     rate = r (1 - p)                                  p = (t - w) / (T - w)
//! cosine     rate = r (1 + cos(pi p)) / 2
//! ```
//! t: step from 0, T: steps of the run, w: steps of the warm-up, r: the rate asked for. The curves
//! are those of transformers' `get_scheduler`
//! (<https://huggingface.co/docs/transformers/main_classes/optimizer_schedules>); of them we depart
//! in the warm-up, whose first step there has a rate of zero and so does nothing.
//! The cosine is Loshchilov and Hutter's, 2017, <https://arxiv.org/abs/1608.03983>, equation 5,
//! without restarts.

use serde::{Deserialize, Serialize};

/// The shape of the learning rate behind the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// The same to the end.
    Constant,
    /// Down to zero in a line; the default, as transformers'.
    #[default]
    Linear,
    /// Down to zero along half a cosine.
    Cosine,
}

/// The learning rate of every step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The greatest rate.
    pub rate: f64,
    /// Its shape.
    pub shape: Shape,
    /// Steps until it is reached.
    pub warmup: u64,
    /// Steps of the run.
    pub steps: u64,
}

impl Schedule {
    /// The rate of step `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.rate * (step + 1) as f64 / self.warmup as f64;
        }
        let behind = self.steps.saturating_sub(self.warmup).max(1);
        let progress = ((step - self.warmup) as f64 / behind as f64).min(1.0);
        match self.shape {
            Shape::Constant => self.rate,
            Shape::Linear => self.rate * (1.0 - progress),
            // Not the system's: a run's bits do not depend on the C library.
            Shape::Cosine => self.rate * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * progress)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(shape: Shape, warmup: u64, steps: u64) -> Vec<f64> {
        let schedule = Schedule { rate: 8.0, shape, warmup, steps };
        (0..steps).map(|step| schedule.rate(step)).collect()
    }

    #[test]
    fn shapes_are_those_of_the_formulas() {
        assert_eq!(rates(Shape::Constant, 0, 3), [8.0; 3]);
        assert_eq!(rates(Shape::Linear, 0, 4), [8.0, 6.0, 4.0, 2.0]);
        assert_eq!(rates(Shape::Linear, 4, 6), [2.0, 4.0, 6.0, 8.0, 8.0, 4.0]);
        let cosine = rates(Shape::Cosine, 0, 4);
        let half = 4.0 * (1.0 + std::f64::consts::FRAC_1_SQRT_2);
        for (got, expected) in cosine.iter().zip([8.0, half, 4.0, 8.0 - half]) {
            assert!((got - expected).abs() < 1e-12, "{cosine:?}");
        }
    }

    #[test]
    fn a_warm_up_as_long_as_the_run_ends_at_the_rate() {
        assert_eq!(rates(Shape::Linear, 2, 2), [4.0, 8.0]);
        let longer = Schedule { rate: 1.0, shape: Shape::Cosine, warmup: 9, steps: 3 };
        assert!(longer.rate(8) == 1.0 && longer.rate(100) == 0.0);
    }
}
