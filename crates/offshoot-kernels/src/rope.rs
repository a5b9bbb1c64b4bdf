//! Tables of the rotary position embedding.

use crate::math::{power, sin_cos};

/// Cosines and sines of one set of rotary frequencies, for as many positions as were needed so far.
#[derive(Debug, Clone)]
pub struct RopeTable {
    /// Angle per position, `rotary_dim / 2` of them, rounded to `f32` as trained models have them.
    frequencies: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    magnitude: f32,
}

impl RopeTable {
    /// Frequencies `theta^(-2 i / rotary_dim) / divisor(i)` for `i < rotary_dim / 2`, of heads
    /// whose first `rotary_dim` elements are rotated; cosines and sines are multiplied by
    /// `magnitude`, commonly 1.
    pub fn new(
        theta: f64,
        rotary_dim: usize,
        magnitude: f32,
        divisor: impl Fn(usize) -> f64,
    ) -> Self {
        let frequencies = (0..rotary_dim / 2)
            .map(|i| (power(theta, -((2 * i) as f64) / rotary_dim as f64) / divisor(i)) as f32)
            .collect();
        Self { frequencies, cos: Vec::new(), sin: Vec::new(), magnitude }
    }

    /// Makes room for the positions below `positions`, so that [`RopeTable::extend_to`] moves nothing.
    pub fn reserve(&mut self, positions: usize) {
        let more = (positions * self.frequencies.len()).saturating_sub(self.cos.len());
        self.cos.reserve(more);
        self.sin.reserve(more);
    }

    /// Makes rows for the positions below `positions`.
    pub fn extend_to(&mut self, positions: usize) {
        let half = self.frequencies.len();
        for position in self.cos.len() / half.max(1)..positions {
            for f in &self.frequencies {
                // The product is rounded to `f32`, as in the reference implementations.
                let (s, c) = sin_cos(f64::from(position as f32 * f));
                self.cos.push(c as f32 * self.magnitude);
                self.sin.push(s as f32 * self.magnitude);
            }
        }
    }

    /// Cosines and sines of `position`, `rotary_dim / 2` each.
    ///
    /// # Panics
    /// If the table was not extended beyond `position`.
    pub fn row(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.frequencies.len();
        let row = position * half..(position + 1) * half;
        (&self.cos[row.clone()], &self.sin[row])
    }

    /// What cosines and sines are multiplied by.
    pub fn magnitude(&self) -> f32 {
        self.magnitude
    }

    /// Angle per position of each pair, `rotary_dim / 2` of them.
    pub fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }
}
