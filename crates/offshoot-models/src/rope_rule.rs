//! The formulas by which rotary frequencies are stretched, kept where a model's files give one, so
//! that other files can say it again.

use std::f32::consts::TAU;

use crate::RopeScaling;
use crate::yarn::Yarn;

/// The formula that [`RopeScaling::Factors`] came from.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum RopeRule {
    /// Llama 3.1's.
    Llama3(Llama3),
    /// YaRN.
    Yarn(Yarn),
}

/// What a file says of the rotary frequencies.
pub(crate) struct Stretching {
    pub(crate) scaling: RopeScaling,
    /// Factor of the cosines and sines.
    pub(crate) magnitude: f32,
    pub(crate) rule: Option<RopeRule>,
    /// Tokens of context that it makes a model fit for, where it says so.
    pub(crate) reach: usize,
}

impl Stretching {
    /// Without a magnitude or a formula.
    pub(crate) fn plain(scaling: RopeScaling) -> Self {
        Self { scaling, magnitude: 1.0, rule: None, reach: 0 }
    }
}

/// Llama 3.1's rule: long waves are stretched by `factor`, short ones stay, those between lie
/// between. All numbers are above zero.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Llama3 {
    /// What long waves are stretched by.
    pub factor: f32,
    /// Waves of which the trained context holds fewer are long.
    pub low_freq_factor: f32,
    /// Waves of which it holds more are short; above `low_freq_factor`.
    pub high_freq_factor: f32,
    /// Trained context, in tokens.
    pub context: f32,
}

/// The rules of published models: 3.1 and 3.3, and 3.2.
const PUBLISHED: [Llama3; 2] = [
    Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, context: 8192.0 },
    Llama3 { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, context: 8192.0 },
];

/// How far a factor of a file may be from the formula's: whoever computes one rounds a power and
/// some quotients in single precision.
const CLOSE: f32 = 1e-6;

impl Llama3 {
    /// The published rule that gives these factors.
    pub(crate) fn published(factors: &[f32], theta: f32, rotary_dim: usize) -> Option<Self> {
        let fits = |rule: &Self| {
            let own = rule.factors(theta, rotary_dim);
            own.len() == factors.len()
                && own.iter().zip(factors).all(|(own, told)| (own / told - 1.0).abs() < CLOSE)
        };
        PUBLISHED.into_iter().find(fits)
    }

    /// What the frequencies of the `rotary_dim / 2` pairs are divided by.
    ///
    /// In single precision, in the order of llama.cpp's converter, so that a folder and the GGUF
    /// file made of it have the same factors but for the last bit of a power.
    pub(crate) fn factors(&self, theta: f32, rotary_dim: usize) -> Vec<f32> {
        let (low, high) = (self.low_freq_factor, self.high_freq_factor);
        let factor = |pair: usize| {
            let exponent = (2 * pair) as f32 / rotary_dim as f32;
            let frequency = 1.0 / (f64::from(theta).powf(f64::from(exponent)) as f32);
            let wave = TAU / frequency;
            if wave < self.context / high {
                1.0
            } else if wave > self.context / low {
                self.factor
            } else {
                let smooth = (self.context / wave - low) / (high - low);
                1.0 / ((1.0 - smooth) / self.factor + smooth)
            }
        };
        (0..rotary_dim / 2).map(factor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_rules_are_known_by_their_factors_and_others_are_not() {
        for rule in PUBLISHED {
            let mut factors = rule.factors(500_000.0, 64);
            assert!(factors.iter().any(|f| *f != 1.0 && *f != rule.factor), "{factors:?}");
            assert_eq!(Llama3::published(&factors, 500_000.0, 64), Some(rule));
            assert_eq!(Llama3::published(&factors, 10_000.0, 64), None);
            factors[20] *= 1.01;
            assert_eq!(Llama3::published(&factors, 500_000.0, 64), None);
        }
        assert_eq!(Llama3::published(&[1.0; 32], 500_000.0, 64), None);
    }
}
