//! Processes that talk by MPI.

use std::fmt;

use mpi::Count;
use mpi::collective::CommunicatorCollectives;
use mpi::collective::Root;
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::{Communicator, SimpleCommunicator};
use offshoot_engine::tune::{Exchange, ExchangeError};

/// Bytes of all processes together in one call: MPI counts in 32 bits.
const CALL_BYTES: usize = 1 << 30;

/// One of the processes that `mpirun` started. MPI ends with it.
pub(crate) struct Mpi {
    world: SimpleCommunicator,
    _universe: Universe,
}

impl Mpi {
    /// Starts MPI; nothing if it ran before.
    pub(crate) fn start() -> Option<Self> {
        let universe = mpi::initialize()?;
        Some(Self { world: universe.world(), _universe: universe })
    }

    /// Ends all processes.
    pub(crate) fn abort(&self, code: i32) -> ! {
        self.world.abort(code)
    }
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mpi({} of {})", self.rank(), self.size())
    }
}

impl Exchange for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn all_gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, ExchangeError> {
        let mut sizes = vec![0u64; self.size()];
        self.world.all_gather_into(&(own.len() as u64), &mut sizes[..]);
        let mut all: Vec<Vec<u8>> = sizes.iter().map(|&n| Vec::with_capacity(n as usize)).collect();
        let piece = CALL_BYTES / self.size().max(1);
        let calls = sizes.iter().map(|&n| (n as usize).div_ceil(piece)).max().unwrap_or(0);
        for call in 0..calls {
            let part = |n: usize| (n.min((call + 1) * piece)).saturating_sub(call * piece);
            let counts: Vec<Count> = sizes.iter().map(|&n| part(n as usize) as Count).collect();
            let starts: Vec<Count> = counts
                .iter()
                .scan(0, |at, &n| {
                    let start = *at;
                    *at += n;
                    Some(start)
                })
                .collect();
            let mut buffer = vec![0u8; counts.iter().map(|&n| n as usize).sum()];
            let first = (call * piece).min(own.len());
            let own = &own[first..first + part(own.len())];
            {
                let mut parts = PartitionMut::new(&mut buffer[..], &counts[..], &starts[..]);
                self.world.all_gather_varcount_into(own, &mut parts);
            }
            for ((record, &start), &count) in all.iter_mut().zip(&starts).zip(&counts) {
                record.extend_from_slice(&buffer[start as usize..][..count as usize]);
            }
        }
        Ok(all)
    }

    fn broadcast(&self, record: &[u8]) -> Result<Vec<u8>, ExchangeError> {
        let first = self.world.process_at_rank(0);
        let mut size = record.len() as u64;
        first.broadcast_into(&mut size);
        let mut told = match self.rank() {
            0 => record.to_vec(),
            _ => vec![0; size as usize],
        };
        told.chunks_mut(CALL_BYTES).for_each(|chunk| first.broadcast_into(chunk));
        Ok(told)
    }
}
