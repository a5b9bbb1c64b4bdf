//! What a step asks of a batch: one number for each point. It need not have a gradient.

mod classification;
mod command;
mod cross_entropy;
mod metric;

use offshoot_methods::tune::Probe;

use super::forward::{Forward, Scores};
use super::space::Space;
use super::tree::TextTree;
use crate::Error;
use crate::tune::Example;

pub use classification::Classification;
pub use command::MetricCommand;
pub use cross_entropy::CrossEntropy;
pub use metric::{Metric, MetricKind};

/// A part of a batch's loss: the loss is the sum of all sums over the sum of all weights, in the order
/// of the examples, so that it depends on no way in which a batch was cut.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Part {
    /// Added up.
    pub sum: f64,
    /// What it counts.
    pub weight: f64,
}

/// The loss of a batch of these parts; 0 if nothing counts.
pub fn mean(parts: &[Part]) -> f64 {
    let sum = parts.iter().fold(0.0, |sum, part| sum + part.sum);
    let weight = parts.iter().fold(0.0, |sum, part| sum + part.weight);
    match weight {
        0.0 => 0.0,
        _ => sum / weight,
    }
}

/// Points of a space at which texts are scored or continued.
pub struct Points<'a> {
    pub(super) forward: &'a mut Forward,
    pub(super) space: &'a mut dyn Space,
    pub(super) probes: &'a [Probe],
}

impl std::fmt::Debug for Points<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Points({:?})", self.probes)
    }
}

impl Points<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.probes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.probes.is_empty()
    }

    /// Scores of the targets of each text, by point, text and target.
    pub(super) fn score(&mut self, texts: &[TextTree]) -> Result<Scores, Error> {
        self.forward.score(self.space, self.probes, texts)
    }

    /// Greedy continuations, by point and prompt; none where a logit is no number.
    ///
    /// # Errors
    /// If the model cannot run them.
    pub fn generate(
        &mut self,
        prompts: &[&[u32]],
        max_tokens: usize,
    ) -> Result<Vec<Vec<Option<Vec<u32>>>>, Error> {
        self.forward.generate(self.space, self.probes, prompts, max_tokens)
    }
}

/// What is made less.
pub trait Objective: std::fmt::Debug + Send {
    /// Its name in logs.
    fn name(&self) -> &'static str;

    /// Whether a batch's loss is no mean over its examples, so that it takes all of them to tell it.
    fn is_of_whole_batches(&self) -> bool {
        false
    }

    /// The parts of the batch's loss at each of the points, in the order of the examples.
    ///
    /// # Errors
    /// If an example is not of a kind that this objective takes, or the model cannot run it.
    fn parts(&mut self, at: &mut Points<'_>, batch: &[&Example]) -> Result<Vec<Vec<Part>>, Error>;
}

/// That `example`, the `index`-th of a batch, is not what an objective takes.
fn unfit(index: usize, example: &Example, objective: &str, takes: &str) -> Error {
    let kind = match example {
        Example::Text(_) => "a text",
        Example::Choice { .. } => "a choice",
        Example::Answer { .. } => "an answer",
        Example::Preference { .. } => "a preference",
    };
    Error::Training(format!(
        "row {index} of the batch is {kind}, and the objective {objective} takes {takes}: choose \
         another objective or another file"
    ))
}
