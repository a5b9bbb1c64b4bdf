//! The talk between a method and whoever holds the weights.

use std::sync::Arc;

use super::{Direction, Layout};
use crate::Error;

/// Some way along a direction.
#[derive(Debug, Clone, PartialEq)]
pub struct Term {
    /// How far.
    pub scale: f32,
    /// Where to.
    pub direction: Direction,
}

/// A point at which the loss is asked for: `w + u`, where `u` is the sum of these terms. As in an
/// update the sum begins at zero and goes in the order of the terms, each by a multiplication and
/// an addition in single precision.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Probe {
    /// What is added to the weights; nothing asks for the loss where they are.
    pub terms: Vec<Term>,
}

/// What a step does to the weights in the end. [`apply_update`](super::apply_update) says the same
/// element by element.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// `w = w * (1 - decay) - sum of scale z`, where vectors do not decay. The sum
    /// begins at zero and goes in the order of the terms, each by a multiplication and an addition
    /// in single precision.
    Linear {
        /// What is lost of each weight.
        decay: f32,
        /// What is subtracted.
        terms: Vec<Term>,
    },
    /// Adam's moments made again from the last directions. Each run of `group` terms of `history`
    /// is one gradient `g`, the sum of `scale z` over the run, which begins at zero and goes in
    /// order, each term by a multiplication and an addition. For these gradients, the oldest first,
    /// and moments that begin at zero,
    /// ```text
    /// m = first  * m + (1 - first)  * g        v = second * v + (1 - second) * (g * g)
    /// ```
    /// and in the end
    /// ```text
    /// s = rate * (m * first_correction)        r = sqrt(v * second_correction) + epsilon
    /// w = w * (1 - decay) - s / r
    /// ```
    /// where every operation is rounded to single precision and vectors do not decay.
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
        /// How many terms make one gradient, at least 1; the history is a multiple of it.
        group: u32,
        /// Directions and their projected gradients, the oldest first.
        history: Vec<Term>,
    },
}

impl Update {
    /// The update that leaves all weights as they are.
    pub fn nothing() -> Self {
        Self::Linear { decay: 0.0, terms: Vec::new() }
    }

    /// The directions in the order in which they are added up.
    pub fn terms(&self) -> &[Term] {
        match self {
            Self::Linear { terms, .. } => terms,
            Self::Moments { history, .. } => history,
        }
    }
}

/// What a method wants next.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// The losses at these points, all on the step's one batch, in this order.
    Evaluate(Vec<Probe>),
    /// The step is over.
    Update(Update),
}

/// What is kept of a step, from which it can be made again without data or losses.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Record {
    /// A loss was no finite number, so the step did nothing; there are no numbers then.
    pub skipped: bool,
    /// What the method measured, as measured: clipping and rejection come after it. Projected
    /// gradients in the order of the directions, with most methods; each method's page says.
    pub numbers: Vec<f32>,
}

/// What happened to the numbers of a step on their way into the update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Guarded {
    /// How many were cut to the largest that is allowed.
    pub clipped: u32,
    /// How many were thrown away for standing too far out.
    pub rejected: u32,
}

/// What a method is told of its run before the first step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Setting {
    /// The run's seed.
    pub seed: u64,
    /// All that is tuned.
    pub layout: Arc<Layout>,
    /// Decoupled weight decay: a step at rate `eta` takes `eta * decay` of each weight.
    pub decay: f64,
}

/// A method: told losses, it asks for more or ends the step. Its state follows from the records of
/// its steps alone, so a run can be made again, or gone on with, from its trajectory.
pub trait ZerothOrder: std::fmt::Debug + Send {
    /// Begins step `step`, counted from 0, with learning rate `rate`.
    fn begin(&mut self, step: u32, rate: f64) -> Plan;

    /// Goes on with the losses that the last plan asked for. A loss that is no finite number, or a
    /// list of another length, ends the step with an update of no terms.
    fn answer(&mut self, losses: &[f64]) -> Plan;

    /// What is to be kept of the step that ended last.
    fn record(&self) -> &Record;

    /// What the guards did in the step that ended last.
    fn guarded(&self) -> Guarded;

    /// Makes step `step` again from what was kept of it: the same update, and the same state after
    /// it.
    ///
    /// # Errors
    /// [`Error::Record`] if the record holds another count of numbers than such a step measures, or
    /// one that is not finite.
    fn replay(&mut self, step: u32, rate: f64, record: &Record) -> Result<Update, Error>;

    /// How many losses step `step` asks for at most.
    fn forwards(&self, step: u32) -> usize;

    /// A direction like those of step `step`: its form, its mask and the tensors that it covers in
    /// sum are what a rate is to be found for.
    fn like(&self, step: u32) -> Direction;

    /// What a slope that lasts is multiplied by in the long run: 1, or with momentum more.
    fn gain(&self) -> f64;

    /// Of a method whose step is a round of local steps, how many they are: each plan of a step has a
    /// batch of its own, and processes go through them apart before what they measured is averaged.
    fn local_steps(&self) -> Option<u32> {
        None
    }
}
