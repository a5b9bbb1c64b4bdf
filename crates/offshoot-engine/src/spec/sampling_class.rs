//! How much chance is in a text, which decides how often a guess at it comes true.

use serde::{Deserialize, Serialize};

/// Texts for which drafters' scores are worth about the same.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum SamplingClass {
    /// Temperature 0.
    #[default]
    Greedy,
    /// Temperatures up to 0.5.
    Cool,
    /// Those above.
    Warm,
}

impl SamplingClass {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Greedy, Self::Cool, Self::Warm];

    /// That of a temperature.
    pub fn of(temperature: f32) -> Self {
        match temperature {
            0.0 => Self::Greedy,
            cool if cool <= 0.5 => Self::Cool,
            _ => Self::Warm,
        }
    }
}
