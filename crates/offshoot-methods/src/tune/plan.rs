//! The talk between a method and whoever holds the weights.

use super::Direction;

/// Some way along a direction.
#[derive(Debug, Clone, PartialEq)]
pub struct Term {
    /// How far.
    pub scale: f32,
    /// Where to.
    pub direction: Direction,
}

/// A point at which the loss is asked for: the weights and the sum of these terms, in order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Probe {
    /// What is added to the weights; nothing asks for the loss where they are.
    pub terms: Vec<Term>,
}

/// What a step does to the weights in the end.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// `w = w * (1 - decay) - sum of scale z`, where tensors of one row do not decay. The sum begins at
    /// zero and goes in the order of the terms, each by a multiplication and an addition in single
    /// precision.
    Linear {
        /// What is lost of each weight.
        decay: f32,
        /// What is subtracted.
        terms: Vec<Term>,
    },
    /// Adam's moments made again from the last directions: with `g_i z_i` for `(g_i, z_i)` of `history`,
    /// the oldest first,
    /// ```text
    /// m = first  * m + (1 - first)  * g_i z_i           v = second * v + (1 - second) * (g_i z_i)^2
    /// w = w * (1 - decay) - rate * (m * first_correction) / (sqrt(v * second_correction) + epsilon)
    /// ```
    Moments {
        /// What is lost of each weight.
        decay: f32,
        /// The learning rate.
        rate: f32,
        /// Decay of the first moment.
        first: f32,
        /// Decay of the second.
        second: f32,
        /// `1 / (1 - first^t)`.
        first_correction: f32,
        /// `1 / (1 - second^t)`.
        second_correction: f32,
        /// Keeps the quotient finite.
        epsilon: f32,
        /// Directions and their projected gradients, the oldest first.
        history: Vec<Term>,
    },
}

/// What a method wants next.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// The losses at these points, all on the step's one batch, in this order.
    Evaluate(Vec<Probe>),
    /// The step is over.
    Update(Update),
}

/// A method: told losses, it asks for more or ends the step. Its state is made of what it was told
/// alone, so a run can be made again from the losses.
pub trait ZerothOrder: std::fmt::Debug + Send {
    /// Begins step `step`, counted from 0, with learning rate `rate`.
    fn begin(&mut self, step: u32, rate: f64) -> Plan;

    /// Goes on with the losses that the last plan asked for. A loss that is no finite number ends the
    /// step with an update of no terms.
    fn answer(&mut self, losses: &[f64]) -> Plan;
}
