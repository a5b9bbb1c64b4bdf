//! What is wrong with a trajectory.

use crate::Error;
use crate::tune::Hash;

/// A trajectory that cannot be read or used as asked. Every message is one line.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TrajectoryError {
    /// Bytes of another kind of file.
    #[error("this is no trajectory: one begins with \"offtraj1\"")]
    Magic,
    /// A header that cannot be read or written.
    #[error("the trajectory's header: {0}")]
    Header(String),
    /// A version of the format or of the update that this program does not know.
    #[error(
        "the trajectory's {what} is version {got}, but this program knows version {known} alone"
    )]
    Version {
        /// Of what.
        what: &'static str,
        /// The version there.
        got: u32,
        /// The version that is known.
        known: u32,
    },
    /// Bytes that are damaged or cut off.
    #[error(
        "the trajectory is damaged at byte {offset}: {reason}; the {steps} steps before are whole"
    )]
    Damaged {
        /// Where the first bad frame begins.
        offset: usize,
        /// What is wrong with it.
        reason: &'static str,
        /// Steps before it.
        steps: usize,
    },
    /// Two trajectories that do not belong together.
    #[error("the trajectories differ in {field}: {left} and {right}")]
    Mismatch {
        /// In what.
        field: String,
        /// The first's.
        left: String,
        /// The second's.
        right: String,
    },
    /// A merged trajectory where one run's is needed.
    #[error("the trajectory is merged of {0} runs: slice and cat take one run's")]
    Merged(usize),
    /// Steps that are not there.
    #[error("steps {from} to {to} are not all there: the trajectory has steps {first} to {end}")]
    Range {
        /// The first that was asked for.
        from: u32,
        /// The one behind the last.
        to: u32,
        /// The first there is.
        first: u32,
        /// The one behind the last.
        end: u32,
    },
    /// Tensors other than those of the run.
    #[error(
        "what is tuned here is not what the run tuned: its tensors hash to {expected}, not {got}"
    )]
    Layout {
        /// The run's.
        expected: Hash,
        /// Those given.
        got: Hash,
    },
    /// A run with decay where only sums can be merged.
    #[error("a run with weight decay cannot be merged: what it adds depends on the weights")]
    Decay,
    /// A weight of a merge that is no number.
    #[error("{0} is no weight: give a finite number")]
    Weight(f64),
    /// Nothing to merge.
    #[error("nothing is left to merge: give at least one trajectory a weight other than 0")]
    Nothing,
    /// Later steps of a run alone.
    #[error("the trajectory begins at step {0}: put it behind its beginning first")]
    Beginning(u32),
    /// The method refuses the run's options or a record.
    #[error(transparent)]
    Method(#[from] Error),
}
