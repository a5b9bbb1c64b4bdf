//! The processes that tune a model together, if there are several.
//!
//! `mpirun` starts them and tells each how many they are. A program that was built without MPI would
//! make the same run as often, each in the way of the others, so it refuses.

use std::rc::Rc;

use offshoot_engine::tune::Exchange;

use crate::failure::{Failure, note};

/// What Open MPI, and MPICH and those of its kind, call the number of processes.
const SIZES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// This process among those of a run.
pub(crate) struct Processes {
    exchange: Rc<dyn Exchange>,
    #[cfg(feature = "mpi")]
    mpi: Option<Rc<crate::mpi::Mpi>>,
}

impl Processes {
    /// Finds the others, if `mpirun` started some.
    pub(crate) fn join() -> Result<Self, Failure> {
        let size = SIZES.iter().find_map(|name| std::env::var(name).ok()?.parse::<usize>().ok());
        match size {
            None | Some(0 | 1) => Ok(Self::alone()),
            Some(size) => Self::several(size),
        }
    }

    fn alone() -> Self {
        Self {
            exchange: Rc::new(offshoot_engine::tune::Alone),
            #[cfg(feature = "mpi")]
            mpi: None,
        }
    }

    #[cfg(not(feature = "mpi"))]
    fn several(size: usize) -> Result<Self, Failure> {
        Err(Failure::Usage(format!(
            "mpirun started {size} processes, and this offshoot was built without MPI: build it with \
             --features mpi, or start it alone"
        )))
    }

    #[cfg(feature = "mpi")]
    fn several(size: usize) -> Result<Self, Failure> {
        let failed = || {
            Failure::Usage(format!(
                "mpirun started {size} processes, and MPI finds others: use the mpirun of the MPI that \
                 offshoot was built with"
            ))
        };
        let mpi = crate::mpi::Mpi::start().filter(|mpi| mpi.size() == size).ok_or_else(failed)?;
        let mpi = Rc::new(mpi);
        Ok(Self { exchange: Rc::<crate::mpi::Mpi>::clone(&mpi), mpi: Some(mpi) })
    }

    /// What they say to each other.
    pub(crate) fn exchange(&self) -> &Rc<dyn Exchange> {
        &self.exchange
    }

    /// Does `work` in process 0, then in the others: those on its machine find what it left.
    pub(crate) fn first<T>(&self, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let wait = || self.exchange.broadcast(&[]).map_err(offshoot_engine::Error::from);
        if self.exchange.rank() > 0 {
            wait()?;
            return work();
        }
        let done = work()?;
        wait()?;
        Ok(done)
    }

    /// Says what went wrong here, and ends all of them.
    pub(crate) fn end_all(&self, failure: &Failure) -> ! {
        note(format_args!("error: {failure}"));
        let code = failure.code();
        #[cfg(feature = "mpi")]
        if let Some(mpi) = &self.mpi {
            mpi.abort(code.into());
        }
        std::process::exit(code.into())
    }
}
