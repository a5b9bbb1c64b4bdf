//! Ctrl-C: it ends the program at once, except while somebody asks whether to stop.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);
static MODE: AtomicU8 = AtomicU8::new(END);

/// Nobody asks: the program ends.
const END: u8 = 0;
/// Work in progress asks: the first interrupt is left to it, the second ends the program.
const ASK: u8 = 1;
/// A chat: it stops answers, and only the user ends it.
const CHAT: u8 = 2;

/// Exit code of an interrupted program.
pub(crate) const CODE: u8 = 130;

/// While this lives, somebody asks [`asked`].
pub(crate) struct Listener {
    outer: u8,
}

/// Listens from now on.
pub(crate) fn install() {
    // Where no handler can be set, an interrupt ends the program as usual.
    let _ = ctrlc::set_handler(|| {
        let again = ASKED.swap(true, Ordering::SeqCst);
        let mode = MODE.load(Ordering::SeqCst);
        if mode == END || (mode == ASK && again) {
            std::process::exit(CODE.into());
        }
    });
}

/// Leaves the next interrupt to the caller, who asks [`asked`] often.
pub(crate) fn listen() -> Listener {
    let ask = MODE.compare_exchange(END, ASK, Ordering::SeqCst, Ordering::SeqCst);
    Listener { outer: ask.unwrap_or_else(|outer| outer) }
}

/// Leaves all interrupts to the caller, a chat.
pub(crate) fn listen_in_chat() -> Listener {
    Listener { outer: MODE.swap(CHAT, Ordering::SeqCst) }
}

impl Drop for Listener {
    fn drop(&mut self) {
        MODE.store(self.outer, Ordering::SeqCst);
    }
}

/// Whether a stop was asked for.
pub(crate) fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// Forgets a stop that was obeyed; gives whether there was one.
pub(crate) fn take() -> bool {
    ASKED.swap(false, Ordering::SeqCst)
}
