//! Ctrl-C: the first asks the work in progress to stop, the second ends the program.

use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Listens from now on.
pub(crate) fn listen() {
    // Where no handler can be set, an interrupt ends the program as usual.
    let _ = ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    });
}

/// Whether a stop was asked for.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// Forgets a stop that was obeyed; gives whether there was one.
pub(crate) fn take() -> bool {
    ASKED.swap(false, Ordering::Relaxed)
}
