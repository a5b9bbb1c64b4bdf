//! What can go wrong between processes.

use thiserror::Error;

/// Processes that tune together cannot go on.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// Another process has ended.
    #[error("process {rank} is gone: see what it said, then go on with --resume")]
    Gone {
        /// Which.
        rank: usize,
    },
    /// What came is not what is sent here.
    #[error(
        "a message of process {rank} makes no sense: {what}; is it the same build of offshoot?"
    )]
    Message {
        /// Who sent it.
        rank: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Weights that should be the same bits are not.
    #[error(
        "process {rank} holds other weights than process 0, first in tensor {tensor:?}: memory or \
         processor failed; go on from the last checkpoint with --resume"
    )]
    Disagree {
        /// Whose weights differ.
        rank: usize,
        /// The first tensor that does.
        tensor: String,
    },
    /// Processes were started with other settings or examples.
    #[error(
        "process {rank} was started otherwise than process 0 ({}): give all the same settings and \
         examples",
        differences.join("; ")
    )]
    Differs {
        /// Which.
        rank: usize,
        /// One for each field, with the value of process 0 first.
        differences: Vec<String>,
    },
    /// What is asked cannot be shared among so many.
    #[error("{size} processes: {what}")]
    Unshared {
        /// How many there are.
        size: usize,
        /// Why not, and what to do.
        what: &'static str,
    },
}
