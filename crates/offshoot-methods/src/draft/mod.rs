//! Drafting: what the next tokens may be, and how many guesses one step should check.

mod calibration;
mod gate;
mod planner;
mod rejection;
mod step_times;
mod suffix;
mod tree;
mod typical;

pub use calibration::{BINS, CLASSES, Calibration, CellId, Prior};
pub use gate::Gate;
pub use planner::{Contribution, Guess, Limits, Planner};
pub use rejection::{Distribution, Drawn, Verdict, draw, mass, reject, without};
pub use step_times::{MOST_ROWS, StepTimes};
pub use suffix::{Continuation, Match, SuffixAutomaton};
pub use tree::{TokenTree, follow};
pub use typical::Typical;
