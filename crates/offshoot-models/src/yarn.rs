//! YaRN: rotary frequencies for texts longer than the trained context.
//!
//! Peng et al. 2023, <https://arxiv.org/abs/2309.00071>, section 3; as transformers and llama.cpp have
//! it. Waves that turn more than `beta_fast` times within the trained context stay, those that turn
//! less than `beta_slow` times are stretched by `factor`, and those between lie between:
//!
//! ```text
//! pair(r)   = rotary_dim ln(context / (2 pi r)) / (2 ln theta)     the pair that turns r times
//! low, high = floor(pair(beta_fast)), ceil(pair(beta_slow))         cut to 0 and rotary_dim - 1
//! ramp_i    = (i - low) / (high - low)                              cut to 0 and 1
//! 1 / divisor_i = ramp_i / factor + 1 - ramp_i
//! magnitude(m) = 1 + 0.1 m ln factor
//! magnitude = magnitude(1)                                          of queries and of keys, or
//!             magnitude(mscale) / magnitude(mscale_all_dim)         where a file gives both
//! ```

use std::f64::consts::TAU;

/// What a file says of the stretching; all above zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// What long waves are stretched by.
    pub factor: f32,
    /// Trained context, in tokens.
    pub context: f32,
    /// Waves that turn more often than this within the trained context stay.
    pub beta_fast: f32,
    /// Those that turn less often are stretched whole.
    pub beta_slow: f32,
}

/// Turns within the trained context from which a wave stays as it is, where a file does not say.
pub(crate) const BETA_FAST: f32 = 32.0;
/// Turns below which it is stretched whole.
pub(crate) const BETA_SLOW: f32 = 1.0;

impl Yarn {
    /// What the frequencies of the `rotary_dim / 2` pairs are divided by.
    pub(crate) fn factors(&self, theta: f64, rotary_dim: usize) -> Vec<f32> {
        let width = rotary_dim as f64;
        let pair = |turns: f32| {
            let waves = f64::from(self.context) / (f64::from(turns) * TAU);
            width * waves.ln() / (2.0 * theta.ln())
        };
        let low = pair(self.beta_fast).floor().max(0.0);
        let high = pair(self.beta_slow).ceil().min(width - 1.0);
        // As transformers and llama.cpp avoid a division by zero.
        let span = if high == low { 0.001 } else { high - low };
        let factor = |i: usize| {
            let ramp = ((i as f64 - low) / span).clamp(0.0, 1.0);
            (1.0 / (ramp / f64::from(self.factor) + 1.0 - ramp)) as f32
        };
        (0..rotary_dim / 2).map(factor).collect()
    }

    /// Tokens of context that the model is fit for with it.
    pub(crate) fn reach(&self) -> usize {
        (f64::from(self.factor) * f64::from(self.context)).round() as usize
    }

    /// The factor of rotated queries and keys, where a file does not say.
    pub(crate) fn magnitude(&self) -> f32 {
        self.weighed_magnitude(1.0) as f32
    }

    /// The magnitude of this weight.
    pub(crate) fn weighed_magnitude(&self, weight: f64) -> f64 {
        if self.factor <= 1.0 { 1.0 } else { 0.1 * weight * f64::from(self.factor).ln() + 1.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_waves_stay_and_long_ones_are_stretched() {
        let yarn = Yarn { factor: 4.0, context: 64.0, beta_fast: 4.0, beta_slow: 1.0 };
        // pair(4) = 16 ln(2.546) / (2 ln 100) = 1.62, pair(1) = 16 ln(10.19) / (2 ln 100) = 4.03.
        let expected = [1.0, 1.0, 16.0 / 13.0, 1.6, 16.0 / 7.0, 4.0, 4.0, 4.0];
        for (ours, by_hand) in yarn.factors(100.0, 16).into_iter().zip(expected) {
            assert!((f64::from(ours) / by_hand - 1.0).abs() < 1e-6, "{ours} for {by_hand}");
        }
        assert!((yarn.magnitude() - 1.138_629_4).abs() < 1e-6);
        assert_eq!(yarn.reach(), 256);
        assert_eq!(Yarn { factor: 0.5, ..yarn }.magnitude(), 1.0);
    }
}
