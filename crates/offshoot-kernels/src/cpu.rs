//! The processor as kernels see it: an instruction set and a team of threads.

use std::sync::Arc;

use crate::{Isa, Pinning, Team};

/// What every kernel runs on. Clones share the team, so that models beside one another do not
/// contend for the cores.
#[derive(Debug, Clone)]
pub struct Cpu {
    isa: Isa,
    team: Arc<Team>,
}

impl Cpu {
    /// The processor with instruction set `isa` and `threads` threads.
    pub fn new(isa: Isa, threads: usize) -> Self {
        Self { isa, team: Arc::new(Team::new(threads, Pinning::Free)) }
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The thread team.
    pub fn team(&self) -> &Team {
        &self.team
    }
}
