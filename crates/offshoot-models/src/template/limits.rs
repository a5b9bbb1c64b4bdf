//! Bounds on what a template can take: time, stack and printed bytes.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use crate::Error;

/// What compiling and rendering may take; a chat takes some milliseconds.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// Stack for them: values that a template nests with all its fuel, and expressions of the longest
/// source, take up to 64 MB as they are compared and dropped. Only what is touched uses memory.
const STACK_BYTES: usize = 128 << 20;

/// How a run ended that gave no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// It did not end in time.
    Late,
    /// The engine panicked.
    Panicked,
    /// No thread could be had.
    NoThread,
}

impl From<Broken> for Error {
    fn from(broken: Broken) -> Self {
        Error::BrokenTemplate(match broken {
            Broken::Late => format!("it does not end within {} s", TIME_LIMIT.as_secs()),
            Broken::Panicked => "the template engine failed on it".to_owned(),
            Broken::NoThread => "no thread to run it can be started".to_owned(),
        })
    }
}

/// Runs `work` on a thread with much stack, for some seconds at most.
///
/// Fuel ends nearly all templates long before; lazy values nested thousandfold take time without
/// fuel, and a thread cannot be stopped from outside, so a late one is left to itself.
pub(super) fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Broken> {
    let (sender, receiver) = sync_channel(1);
    thread::Builder::new()
        .name("chat template".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            // Fails if nobody waits any more.
            let _too_late = sender.send(work());
        })
        .map_err(|_| Broken::NoThread)?;
    receiver.recv_timeout(TIME_LIMIT).map_err(|error| match error {
        RecvTimeoutError::Timeout => Broken::Late,
        RecvTimeoutError::Disconnected => Broken::Panicked,
    })
}

/// Printed text, up to a limit.
pub(super) struct Printed {
    /// What was printed.
    pub(super) text: Vec<u8>,
    /// Bytes that may be.
    pub(super) limit: usize,
}

impl Printed {
    /// Whether the limit was reached.
    pub(super) fn is_full(&self) -> bool {
        self.text.len() >= self.limit
    }
}

impl io::Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.limit - self.text.len();
        if room == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let taken = &bytes[..bytes.len().min(room)];
        self.text.extend_from_slice(taken);
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_gives_its_result_or_says_how_it_ended() {
        assert_eq!(run(|| 7), Ok(7));
        assert_eq!(run(|| thread::sleep(Duration::from_secs(60))), Err(Broken::Late));
        assert_eq!(run(|| -> () { panic!("on purpose") }), Err(Broken::Panicked));
    }
}
