//! What processes that tune one model together tell each other.
//!
//! Each holds all weights and makes every update itself; what passes between them are the numbers that
//! updates follow from, a few bytes a step. Two rules keep them in step to the bit:
//!
//! 1. What several of them measured is gathered whole and added up by each in one order, that of
//!    examples and points. The sum that a message library makes on the way is of no fixed order
//!    (<https://github.com/NVIDIA/nccl/issues/157>), so none is asked for.
//! 2. What a step does is decided by process 0 and told. The others carry it out as it is written.
//!
//! How the work is shared changes no bit, so a run of one process and a run of several are one run.

mod agree;
mod error;
mod pieces;
mod shared;
mod threads;

use std::fmt;

pub(crate) use agree::{Fingerprint, agree, digest};
pub use error::ExchangeError;
pub(crate) use pieces::{Pieces, Writer};
pub(crate) use shared::SharedScorer;
pub use threads::{Threads, Traffic};

use crate::Error;

/// The processes of a run, seen from one of them. All have to call the same functions in the same
/// order.
pub trait Exchange: fmt::Debug {
    /// Which of them this is, from 0 on.
    fn rank(&self) -> usize;

    /// How many there are.
    fn size(&self) -> usize;

    /// Everybody's record, in the order of ranks; `own` is that of this process.
    ///
    /// # Errors
    /// [`ExchangeError`] if one of the others is gone.
    fn all_gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, ExchangeError>;

    /// The record of process 0; what the others bring along is left alone.
    ///
    /// # Errors
    /// [`ExchangeError`] if one of the others is gone.
    fn broadcast(&self, record: &[u8]) -> Result<Vec<u8>, ExchangeError>;
}

/// One process without others.
#[derive(Debug, Clone, Copy, Default)]
pub struct Alone;

impl Exchange for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, ExchangeError> {
        Ok(vec![own.to_vec()])
    }

    fn broadcast(&self, record: &[u8]) -> Result<Vec<u8>, ExchangeError> {
        Ok(record.to_vec())
    }
}

/// What of `all` falls to a process: every `size`-th from its own on.
pub(crate) fn share<'a, T>(exchange: &dyn Exchange, all: &'a [T]) -> Vec<&'a T> {
    all.iter().skip(exchange.rank()).step_by(exchange.size()).collect()
}

/// Puts what everybody made of its [`share`] into the order of the whole, which has `count` parts.
pub(crate) fn joined<T>(shares: Vec<Vec<T>>, count: usize) -> Result<Vec<T>, Error> {
    let size = shares.len();
    let mut shares: Vec<_> = shares.into_iter().map(Vec::into_iter).collect();
    let all = (0..count).map(|place| {
        let rank = place % size.max(1);
        let next = shares.get_mut(rank).and_then(Iterator::next);
        next.ok_or_else(|| ExchangeError::Message { rank, what: "parts are missing" }.into())
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_joined_are_the_whole() {
        let all: Vec<u32> = (0..7).collect();
        for size in 1..9 {
            let shares = Threads::run(size, |exchange| {
                let own = share(&exchange, &all);
                own.into_iter().copied().collect::<Vec<u32>>()
            });
            assert_eq!(joined(shares.clone(), 7).unwrap(), all);
            assert!(joined(shares, 8).is_err(), "{size}");
        }
    }

    #[test]
    fn one_process_hears_itself() {
        assert_eq!(Alone.all_gather(&[1, 2]).unwrap(), [[1, 2]]);
        assert_eq!(Alone.broadcast(&[3]).unwrap(), [3]);
    }
}
